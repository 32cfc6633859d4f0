"""Fuzz the reading of streams: same result for every split of the bytes, and nothing raised.

::

    uv venv --python 3.11 /tmp/fuzz && uv pip install --python /tmp/fuzz atheris -e .
    /tmp/fuzz/bin/python scripts/fuzz_streams.py -max_total_time=600

Every input is read in one piece, in the pieces that its first bytes tell, and with every event
parsed in full; all three must agree in events, counts, totals and error. It is also taken apart at
`|` into what all chunks of a stream share and what they differ in, to meet the counting of chunks
that are not parsed. All options are those of libFuzzer; a folder given as an argument keeps what
was found between runs. A failure is written to `crash-…` in the current folder, and that path as an
argument runs it again: make a test of it. It takes a core as long as it runs, so keep it off a
machine that is measuring.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pytest_moeperf"]):
    from pytest_moeperf.completions import Completion, CompletionStream
    from pytest_moeperf.sse import SSEDecoder, SSEError

CUTS = 8
LIMIT_BYTES = 64
USUAL = (
    b'data: {"id":"c","choices":[{"index":0,"text":" w1","token_ids":[12],'
    b'"prompt_token_ids":null}],"usage":null}\n\n'
)
SEEDS = (
    USUAL * 3 + b"data: [DONE]\n\n",
    USUAL + USUAL.replace(b"12", b"0, 7") + USUAL.replace(b" w1", b'\\"token_ids\\":[1]'),
    b'data: {"choices": [{"text": "a"}]}\n\n' * 3,
    b'data: {"choices":[{"text":"a"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}\r\n\r\n',
    b'data: {"error":{"message":"dead"}}\n\ndata: {"object":"error","message":"full"}\n\n',
    b"\xef\xbb\xbf: hi\rdata\rdata: a\r\rid: 1\n\n",
)
# Before a text, between it and the ids, after them; then texts and ids in turn.
SHARED_SEEDS = (
    b'{"choices":[{"index":0,"text":"|","token_ids":[|]}]}|a|1|b|2,3|\\|4|\\n|05',
    b'{"choices": [{"text": "|", "token_ids": [|]}], "usage": null}|a|1, 2|","token_ids":[1,2]',
    b'{"choices":[{"text":"|","b":{"token_ids":[|]}}]}|a|1|b|2,3',
    b'{"choices":[{"text":"|","token_ids":[|],"token_ids":[5]}]}|a|1|b|2,3',
    b'{"choices":[{"text":"|"}|]}|a|',
)
WORDS = ("data: ", "\\x0a\\x0a", '\\"token_ids\\":[', '\\"text\\":\\"', '\\"usage\\":', "[DONE]")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder, "seeds")
        seeds.mkdir()
        for number, seed in enumerate(SEEDS + SHARED_SEEDS):
            (seeds / str(number)).write_bytes(bytes(CUTS) + seed)
        words = Path(folder, "words")
        words.write_text("".join(f'"{word}"\n' for word in WORDS), encoding="utf-8")
        replays = any(Path(argument).is_file() for argument in sys.argv[1:])
        extra = [] if replays else [str(seeds)]
        atheris.Setup([*sys.argv, f"-dict={words}", "-max_len=1024", *extra], check)
        atheris.Fuzz()


def check(data: bytes) -> None:
    cuts, body = data[:CUTS], data[CUTS:]
    edges = sorted(cut * len(body) // 255 for cut in cuts)
    pieces = [body[start:end] for start, end in itertools.pairwise([0, *edges, len(body)])]
    # The short limit is reached, the usual one is not.
    for limit_bytes in (LIMIT_BYTES, LIMIT_BYTES**3):
        expect(events(pieces, limit_bytes), events([body], limit_bytes))
    whole = read([body])
    expect(read(pieces), whole)
    expect(read([body], parse_all=True), whole)
    chunks = sharing(body)
    expect(read([chunks], parse_all=True), read([chunks]))


def sharing(body: bytes) -> bytes:
    head, between, tail, *gaps = [*body.split(b"|"), b"", b""]
    filled = [(b"a", b"1"), *zip(gaps[::2], gaps[1::2], strict=False)]
    return b"".join(
        b"data: " + head + text + between + ids + tail + b"\n\n" for text, ids in filled
    )


def events(pieces: list[bytes], limit_bytes: int) -> tuple[list[bytes], bool]:
    decoder = SSEDecoder(limit_bytes=limit_bytes)
    found = []
    for piece in pieces:
        try:
            found += decoder.feed(piece)
        except SSEError as error:
            return found + error.events, True
    return found, False


def read(pieces: list[bytes], *, parse_all: bool = False) -> tuple[int, bool, Completion]:
    stream = CompletionStream()
    if parse_all:
        # It has parsed more than it counted, so it tries no shape.
        stream._parsed = sys.maxsize  # noqa: SLF001 - no use but this one
    chunks = sum(stream.feed(piece, 0) for piece in pieces)
    expect(stream.tokens, sum(stream.completion().chunk_tokens))
    return chunks, stream.done, stream.completion()


def expect(one: object, other: object) -> None:
    if one != other:
        raise AssertionError(f"{one!r} is not {other!r}")


if __name__ == "__main__":
    main()
