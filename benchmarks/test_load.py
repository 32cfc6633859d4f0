"""What the load client does beside waiting: plans before a play, streams after it."""

import pytest

from pytest_moeperf.completions import CompletionStream, request_body
from pytest_moeperf.sse import SSEDecoder
from pytest_moeperf.workload import ClosedLoop, OpenLoop, plan

pytestmark = pytest.mark.benchmark(group="load")

CLOSED = ClosedLoop(concurrency=64, isl=1024, osl=128, requests=256)
OPEN = OpenLoop(request_rate=32, isl=1024, osl=128, requests=256)


def read(reads):
    stream = CompletionStream()
    for arrival_ns, data in reads:
        stream.feed(data, arrival_ns)
    return stream.completion()


def decode(chunks):
    decoder = SSEDecoder()
    return sum(len(decoder.feed(chunk)) for chunk in chunks)


@pytest.mark.parametrize("read_bytes", [None, 64, 4096])
def test_decode_one_stream(benchmark, reads, read_bytes):
    """128 tokens, read event by event, in pieces, and many at once."""
    stream = b"".join(data for _, data in reads)
    chunks = [data for _, data in reads]
    if read_bytes is not None:
        chunks = [stream[at : at + read_bytes] for at in range(0, len(stream), read_bytes)]
    assert benchmark(decode, chunks) == len(reads)


def test_read_one_stream(benchmark, reads):
    """128 tokens from bytes to arrivals and counts."""
    completion = benchmark(read, reads)
    assert completion.error is None
    assert sum(completion.chunk_tokens) == completion.output_tokens


@pytest.mark.parametrize("workload", [CLOSED, OPEN], ids=lambda workload: workload.slug)
def test_plan_256_requests(benchmark, workload):
    made = benchmark(plan, workload, seed=0, vocab_size=32_000, first_id=3, context_tokens=4096)
    assert len(made.requests) == workload.requests


def test_encode_256_requests(benchmark):
    made = plan(CLOSED, seed=0, vocab_size=32_000, first_id=3, context_tokens=4096)
    bodies = benchmark(lambda: [request_body(spec, model="mini-moe") for spec in made.requests])
    assert len(bodies) == CLOSED.requests
