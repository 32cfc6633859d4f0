"""What is said over `/v1/completions`: the body of a request and the meaning of its stream."""

from __future__ import annotations

import json
import re
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_moeperf.sse import SSEDecoder, SSEError

if TYPE_CHECKING:
    from pytest_moeperf.records import RequestSpec

__all__ = ["Completion", "CompletionStream", "error_message", "request_body"]

DONE = b"[DONE]"
MESSAGE_CHARACTERS = 200
COUNT_LIMIT = 2**31
"""No token count of a server is as large; one in the stream is an error of the server."""

SHAPE_BYTES = 2048
"""Longer events come once in a stream, such as the first one with the ids of the prompt."""
SHAPE_TRIALS = 16
LISTED_BYTES = 4096

SIZES = {b"%x" % size: size for size in range(SHAPE_BYTES + LISTED_BYTES)}
"""Sizes of chunks as HTTP writes them, of all that a shape may match."""

TEXT = re.compile(rb'"text": ?"')
TOKEN_IDS = re.compile(rb'"token_ids": ?\[([0-9, ]+)\]')
# Python refuses to read an integer of thousands of digits.
ID_DIGITS = 10
ID_LIST = re.compile(rb"(?:0|[1-9][0-9]{0,9})(?:, ?(?:0|[1-9][0-9]{0,9}))*")
ZERO = ord("0")
PLAIN = bytes(ord("?") if byte < ord(" ") or byte in b'"\\' else byte for byte in range(256))
"""Changes what must not stand in a JSON string as it is: quotes, backslashes, controls."""
MARK = b"1729172917291729172"
"""Stands for a text and for an id when a shape is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One stream, read: arrivals and counts of its tokens."""

    chunk_ns: array[int]
    chunk_tokens: array[int]
    prompt_tokens: int | None
    output_tokens: int | None
    error: str | None


def request_body(spec: RequestSpec, *, model: str, continuous_usage: bool = False) -> bytes:
    """The JSON body that asks for exactly `spec.output_tokens` tokens, greedily, as a stream.

    `return_token_ids` makes the token count of every chunk exact. A server that does not know it
    ignores it; `continuous_usage` then gives the counts by a running total in every chunk.
    """
    stream_options = {"include_usage": True}
    if continuous_usage:
        stream_options["continuous_usage_stats"] = True
    body = {
        "model": model,
        "prompt": spec.prompt if isinstance(spec.prompt, str) else list(spec.prompt),
        "max_tokens": spec.output_tokens,
        "min_tokens": spec.output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": stream_options,
        "return_token_ids": True,
    }
    return json.dumps(body, separators=(",", ":")).encode()


def error_message(body: bytes) -> str:
    """The message in the body of a refused request, shortened to one line."""
    text = body.decode("utf-8", errors="replace")
    try:
        message = _message(_parse(text), text)
    except _MalformedError:
        message = None
    return _one_line(message or text)


class CompletionStream:
    """Reads one stream while it comes; whatever the bytes are, it raises nothing.

    Most events are counted by `_Shape`, without parsing them.
    """

    __slots__ = (
        "_chunk_ns",
        "_chunk_tokens",
        "_decoder",
        "_note_ns",
        "_note_tokens",
        "_output_tokens",
        "_parsed",
        "_prompt_tokens",
        "_shape",
        "done",
        "error",
        "tokens",
    )

    def __init__(self) -> None:
        self._decoder = SSEDecoder()
        self._chunk_ns = array("q")
        self._chunk_tokens = array("I")
        self._note_ns = self._chunk_ns.append
        self._note_tokens = self._chunk_tokens.append
        self._prompt_tokens: int | None = None
        self._output_tokens: int | None = None
        self._shape: _Shape | None = None
        self._parsed = 0
        self.tokens = 0
        """Tokens so far, by the counts of the chunks."""
        self.done = False
        """Whether the server said that the stream is complete."""
        self.error: str | None = None
        """The first error in the stream so far, in one line."""

    @property
    def chunks(self) -> int:
        """Chunks with tokens so far."""
        return len(self._chunk_ns)

    @property
    def last_ns(self) -> int:
        """When the last chunk with tokens arrived; 0 before the first."""
        return self._chunk_ns[-1] if self._chunk_ns else 0

    def feed(self, data: bytes, arrival_ns: int) -> int:
        """Take the next bytes of the body; return how many chunks with tokens they complete.

        An event arrives with the bytes that complete it; events of one call share its time.
        """
        before = len(self._chunk_ns)
        failure = None
        try:
            events = self._decoder.feed(data)
        except SSEError as error:
            events, failure = error.events, str(error)
        for event in events:
            tokens = 0 if self._shape is None else self._shape.tokens(event)
            if tokens:
                self._note_ns(arrival_ns)
                self._note_tokens(tokens)
                self.tokens += tokens
            else:
                self._take(event, arrival_ns)
        if failure is not None:
            self._fail(failure)
        return len(self._chunk_ns) - before

    @property
    def settled(self) -> bool:
        """Whether `feed_frame` may know the next event, if one begins with the next byte."""
        return self._shape is not None and self._decoder.idle

    def feed_frame(self, frame: bytes, arrival_ns: int) -> bool:
        """Take one whole chunk of HTTP's chunked coding that holds one event like those before.

        False, and nothing is taken, where `frame` is not certain to be that; it must begin where a
        chunk begins, and the stream be `settled`. It spares the usual read both the HTTP parser and
        the decoder.
        """
        shape = self._shape
        if shape is None:
            return False
        head, tail = shape.framed_head, shape.framed_tail
        end = frame.find(b"\r\n")
        if (
            SIZES.get(frame[:end]) != len(frame) - end - 4
            or not frame.startswith(head, end)
            or not frame.endswith(tail)
        ):
            return False
        tokens = shape.tokens_of_gap(frame[end + len(head) : -len(tail)])
        if not tokens:
            return False
        self._note_ns(arrival_ns)
        self._note_tokens(tokens)
        self.tokens += tokens
        return True

    def completion(self) -> Completion:
        """What the stream was; for its end, since the arrays are not copied."""
        error = self.error
        if error is None and not self.done:
            error = f"stream ended after {self.tokens} tokens without {DONE.decode()}"
        elif error is None and not self._chunk_ns:
            error = "stream without tokens"
        return Completion(
            chunk_ns=self._chunk_ns,
            chunk_tokens=self._chunk_tokens,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            error=error,
        )

    def _take(self, event: bytes, arrival_ns: int) -> None:
        """Read one event in full."""
        if event == DONE:
            self.done = True
            return
        before = len(self._chunk_ns)
        text = event.decode("utf-8", errors="replace")
        try:
            self._read(text, arrival_ns)
        except _MalformedError as problem:
            self._fail(f"{problem} in the stream: {text}")
        if len(self._chunk_ns) > before:
            self._parsed += 1
            self._learn(event)

    def _read(self, text: str, arrival_ns: int) -> None:
        chunk = _parse(text)
        if (message := _message(chunk, text)) is not None:
            self._fail(message)
            return
        total = self._read_usage(_part(chunk, "usage", dict))
        for choice in _part(chunk, "choices", list):
            # Tokens of the running total that no chunk before has brought.
            growth = None if total is None else max(0, total - self.tokens)
            tokens = _choice_tokens(choice, growth)
            if tokens:
                self._note_ns(arrival_ns)
                self._note_tokens(tokens)
                self.tokens += tokens

    def _read_usage(self, usage: dict[str, Any]) -> int | None:
        """Note the totals; return that of the output."""
        total = _count(usage, "completion_tokens")
        if usage:
            self._prompt_tokens = _count(usage, "prompt_tokens")
            self._output_tokens = total
        return total

    def _learn(self, event: bytes) -> None:
        # Not for ever where no event is like the one before: trying a shape costs a parse.
        counted = len(self._chunk_ns) - self._parsed
        if len(event) <= SHAPE_BYTES and self._parsed <= counted + SHAPE_TRIALS:
            self._shape = _Shape.of(event, self._shape) or self._shape

    def _fail(self, message: str) -> None:
        if self.error is None:
            self.error = _one_line(message)


@dataclass(slots=True)
class _Shape:
    """What the events of one stream have in common, so that they can be counted unparsed.

    An event is the same bytes before the content of its text, between that and its ids, and after
    them. A JSON parser that has read the same bytes is in the same state, and it is so again after
    other plain characters in the string and other numbers in the list. So an event that fits means
    the same as the one that was tried, with another text and another number of tokens: also where
    a key is nested, doubled, or part of a text, and it is valid JSON if that one was.
    """

    head: bytes
    between: bytes | None
    """None: the events bring no ids, and a text counts as one token."""
    tail: bytes
    framed_head: bytes = field(init=False, compare=False)
    """With what stands before it in a chunk of HTTP, behind the size."""
    framed_tail: bytes = field(init=False, compare=False)

    def __post_init__(self) -> None:
        self.framed_head = b"\r\ndata: " + self.head
        self.framed_tail = self.tail + b"\n\n\r\n"

    @classmethod
    def of(cls, event: bytes, known: _Shape | None) -> _Shape | None:
        """The shape of an event that brought tokens, unless it is known or has none."""
        key = TEXT.search(event)
        if key is None or MARK in event:
            return None
        # Wrong guesses of where the text and the ids are do no harm: they fail the trial.
        head, rest = event[: key.end()], event[key.end() :]
        rest = rest[rest.find(b'"') :]
        ids = TOKEN_IDS.search(rest)
        if ids is None:
            shape = cls(head, None, rest)
        else:
            shape = cls(head, rest[: ids.start(1)], rest[ids.end(1) :])
        return shape if shape != known and shape._holds() else None

    def _holds(self) -> bool:
        """Whether a mark put into both gaps comes out as the text and the ids of the one choice.

        The mark is nowhere else, so these are the places that count.
        """
        listed = b"" if self.between is None else self.between + MARK
        try:
            chunk = _parse((self.head + MARK + listed + self.tail).decode("utf-8", "replace"))
        except _MalformedError:
            return False
        ids = None if self.between is None else [int(MARK)]
        match chunk:
            # A total would have to be noted from every event.
            case {"choices": [{"text": text, **others}], **beside} if not beside.get("usage"):
                return bool(text == MARK.decode() and others.get("token_ids") == ids)
        return False

    def tokens(self, event: bytes) -> int:
        """Tokens of an event of this shape; 0 where that is not certain."""
        if not (event.startswith(self.head) and event.endswith(self.tail)):
            return 0
        return self.tokens_of_gap(event[len(self.head) : -len(self.tail)])

    def tokens_of_gap(self, gap: bytes) -> int:
        if self.between is None:
            return 1 if gap and gap.translate(PLAIN) == gap else 0
        text, _, ids = gap.partition(self.between)
        if text.translate(PLAIN) != text:
            return 0
        if ids.isdigit() and ids[0] != ZERO and len(ids) <= ID_DIGITS:
            return 1
        if len(ids) <= LISTED_BYTES and ID_LIST.fullmatch(ids):
            return ids.count(b",") + 1
        return 0


class _MalformedError(Exception):
    """An event that is not what it must be."""


def _parse(text: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise _MalformedError("not JSON") from None
    if not isinstance(body, dict):
        raise _MalformedError("not an object")
    return body


def _part(chunk: dict[str, Any], key: str, kind: type[Any]) -> Any:
    """A list or an object in a chunk, empty where there is none."""
    value = chunk.get(key) or kind()
    if not isinstance(value, kind):
        raise _MalformedError(f"malformed {key!r}")
    return value


def _count(usage: dict[str, Any], key: str) -> int | None:
    count = usage.get(key)
    if count is None:
        return None
    # An exact type: a bool is an int.
    if type(count) is not int or not 0 <= count < COUNT_LIMIT:
        raise _MalformedError(f"impossible {key!r}")
    return count


def _choice_tokens(choice: Any, growth: int | None) -> int:
    """Tokens in a chunk: by their ids, else by the growth of the running total."""
    if not isinstance(choice, dict):
        raise _MalformedError("malformed 'choices'")
    token_ids = choice.get("token_ids")
    if token_ids is not None:
        if not isinstance(token_ids, list):
            raise _MalformedError("malformed 'token_ids'")
        return len(token_ids)
    if growth is not None:
        return growth
    # The server tells neither. One per chunk is a guess; the total of the usage exposes it.
    return 1 if choice.get("text") else 0


def _message(body: dict[str, Any], text: str) -> str | None:
    """The message of an error object, in either shape that servers use, else `text`.

    None if it is no error.
    """
    error = body.get("error")
    if error is None and body.get("object") != "error":
        return None
    message = error
    if error is None or isinstance(error, dict):
        message = (error or body).get("message")
    return message if isinstance(message, str) and message.strip() else text


def _one_line(text: str) -> str:
    """`text` with nothing in it that would break a terminal, a line or a file."""
    line = " ".join(text.split())
    if len(line) > MESSAGE_CHARACTERS:
        line = line[: MESSAGE_CHARACTERS - 1] + "…"
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line
    )
