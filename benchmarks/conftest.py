"""Inputs of the size of a real play, made without a server."""

import json

import pytest

from pytest_moeperf.records import RequestRecord, Sample, StartRecord

STREAMS = 256
CHUNKS = 128
NS_PER_MS = 10**6


def vllm_event(token_id):
    """One token as vLLM's `/v1/completions` sends it."""
    chunk = {
        "id": "cmpl-0f1e2d3c4b5a69788796a5b4c3d2e1f0",
        "object": "text_completion",
        "created": 1767323045,
        "model": "mini-moe",
        "choices": [
            {
                "index": 0,
                "text": " expert",
                "logprobs": None,
                "finish_reason": None,
                "stop_reason": None,
                "token_ids": [token_id],
                "prompt_logprobs": None,
                "prompt_token_ids": None,
            }
        ],
        "usage": None,
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


@pytest.fixture(scope="session")
def reads():
    """A whole stream as it comes off a socket: arrival in ns and bytes, one read a token."""
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":64,"completion_tokens":128}}\n\n'
    events = [*(vllm_event(100 + number) for number in range(CHUNKS)), usage, b"data: [DONE]\n\n"]
    return [(number * 10 * NS_PER_MS, event) for number, event in enumerate(events)]


@pytest.fixture(scope="session")
def requests():
    """256 streams of 128 chunks of one token, all in flight together."""
    return tuple(
        RequestRecord(
            index=index,
            sent_ns=index * NS_PER_MS,
            chunk_ns=tuple(
                # 10 ms a token, with a jitter that no two chunks share.
                (index + 50 + 10 * number) * NS_PER_MS
                + (index * 7919 + number * 104729) % NS_PER_MS
                for number in range(CHUNKS)
            ),
            chunk_tokens=(1,) * CHUNKS,
            prompt_tokens=64,
            output_tokens=CHUNKS,
            asked_output_tokens=CHUNKS,
            ended_ns=(index + 60 + 10 * CHUNKS) * NS_PER_MS,
        )
        for index in range(STREAMS)
    )


@pytest.fixture(scope="session")
def make_start():
    """Builds the start of number `index`, with three repeats of every metric."""
    from pytest_moeperf.metrics import KEYS  # noqa: PLC0415 - not while pytest starts

    def make(index):
        return StartRecord(
            start_id=f"start-{index}",
            session_id=f"session-{index}",
            recorded_at="2026-01-02T03:04:05+00:00",
            startup_s=41.25,
            engine_version="0.32.0",
            environment={"kernel": "6.1.0", "server_cores": "2", "torch": "2.13.0+cpu"},
            repeats=tuple(
                Sample(
                    seed=seed,
                    values=dict.fromkeys(KEYS, 30 + index / 7 + seed / 3),
                )
                for seed in range(3)
            ),
        )

    return make
