"""What a paced server reads and writes: HTTP requests in, vLLM's stream of events out."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from typing import Any, Self

__all__ = [
    "MODEL",
    "STREAM_HEAD",
    "CompletionRequest",
    "HttpRequest",
    "answer",
    "end_of_stream",
    "payloads",
    "take_request",
]

MODEL = "paced"

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)

FIRST_TOKEN_ID, TOKEN_IDS = 1000, 9000
"""Ids of four digits count up from chunk to chunk, so that all chunks are of one size."""
STREAM_ID = f"cmpl-{0:032x}"
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found"}
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*(?:\r\n|\Z)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, whole."""

    method: bytes
    path: bytes
    body: bytes


def take_request(received: bytes) -> tuple[HttpRequest | None, bytes]:
    """Split off the first request that is whole; None while it is not.

    Bodies are delimited by their content length, as clients of this API send them. Raises
    ValueError for anything else.
    """
    head, separator, rest = received.partition(b"\r\n\r\n")
    if not separator:
        return None, received
    method, path, _version = head.partition(b"\r\n")[0].split(b" ")
    if _CHUNKED.search(head):
        raise ValueError("a request body in chunks: send it with a content-length")
    given = _CONTENT_LENGTH.search(head)
    length = int(given[1]) if given else 0
    if len(rest) < length:
        return None, received
    return HttpRequest(method, path, rest[:length]), rest[length:]


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """What a paced server needs to know of a completion that is asked for."""

    key: int
    """First token id of the prompt, which names the request in the log; -1 for a text."""
    prompt_tokens: int
    output_tokens: int
    usage: bool

    @classmethod
    def of(cls, body: bytes) -> Self:
        """Read the JSON body; raises ValueError for one that asks for no stream of tokens."""
        fields = json.loads(body)
        if not isinstance(fields, dict) or "prompt" not in fields or not fields.get("stream"):
            raise ValueError("give a JSON object with 'prompt' and 'stream': true")
        prompt, output_tokens = fields["prompt"], int(fields.get("max_tokens", 16))
        if output_tokens < 1:
            raise ValueError(f"max_tokens = {output_tokens}: at least 1 is needed")
        by_ids = isinstance(prompt, list) and prompt and isinstance(prompt[0], int)
        return cls(
            key=prompt[0] if by_ids else -1,
            prompt_tokens=len(prompt) if by_ids else len(str(prompt).split()),
            output_tokens=output_tokens,
            usage=bool((fields.get("stream_options") or {}).get("include_usage")),
        )


@functools.cache
def payloads(output_tokens: int, merge: int) -> tuple[bytes, ...]:
    """What a stream of `output_tokens` sends, one item a send of up to `merge` events.

    Every event is an HTTP chunk of its own, as uvicorn writes them.
    """
    # Filled into a template: this is done while other streams wait for their chunks.
    template = _framed(_event(FIRST_TOKEN_ID)).replace(b"%", b"%%")
    template = template.replace(b"[%d]" % FIRST_TOKEN_ID, b"[%d]")
    ids = [FIRST_TOKEN_ID + number % TOKEN_IDS for number in range(output_tokens)]
    events = [template % token_id for token_id in ids]
    events[-1] = _framed(_event(ids[-1], finish_reason="length"))
    return tuple(b"".join(events[at : at + merge]) for at in range(0, output_tokens, merge))


def end_of_stream(request: CompletionRequest) -> bytes:
    """Usage if it was asked for, the last event, and the end of the HTTP response."""
    done = _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    if not request.usage:
        return done
    usage = {
        "prompt_tokens": request.prompt_tokens,
        "total_tokens": request.prompt_tokens + request.output_tokens,
        "completion_tokens": request.output_tokens,
    }
    return _framed(_data([], usage)) + done


def answer(status: int, body: Any) -> bytes:
    """A whole response in JSON."""
    text = json.dumps(body).encode()
    return (
        f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(text)}\r\n\r\n"
    ).encode() + text


def _event(token_id: int, *, finish_reason: str | None = None) -> bytes:
    choice = {
        "index": 0,
        "text": " a",
        "logprobs": None,
        "finish_reason": finish_reason,
        "stop_reason": None,
        "token_ids": [token_id],
        "prompt_logprobs": None,
        "prompt_token_ids": None,
    }
    return _data([choice], None)


def _data(choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
    body = {
        "id": STREAM_ID,
        "object": "text_completion",
        "created": 1767225600,
        "model": MODEL,
        "choices": choices,
        "usage": usage,
    }
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _framed(event: bytes) -> bytes:
    return f"{len(event):x}\r\n".encode() + event + b"\r\n"
