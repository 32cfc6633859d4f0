"""A log of two requests, worked out by hand, and client records beside it."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest

from pytest_moeperf.records import RequestRecord
from pytest_moeperf.truth import Figure, Truth, compare

MS = 1_000_000
HEAD = {
    "version": 1,
    "mode": "spread",
    "ttft_ns": 50 * MS,
    "itl_ns": 10 * MS,
    "merge": 1,
    "origin_ns": 0,
    "requests": 2,
    "sends": 5,
    "short_sends": 0,
    "broken_streams": 0,
}
KEYS = (101, 100)
"""The second request of the plan came first."""
ARRIVALS_MS = (0, 4)
COUNTS = (3, 2)
SENDS_MS = (50, 60, 71, 54, 64)


def log(*, sends_ms=SENDS_MS, **changes):
    numbers = [*KEYS, *(ms * MS for ms in ARRIVALS_MS), *COUNTS, *(ms * MS for ms in sends_ms)]
    return json.dumps(HEAD | changes).encode() + b"\n" + struct.pack(f"={len(numbers)}q", *numbers)


def record(index, sent_ms, chunks_ms):
    return RequestRecord(
        index=index,
        sent_ns=round(sent_ms * MS),
        chunk_ns=tuple(round(ms * MS) for ms in chunks_ms),
        chunk_tokens=(1,) * len(chunks_ms),
        asked_output_tokens=len(chunks_ms),
        ended_ns=round(chunks_ms[-1] * MS),
    )


@pytest.fixture
def truth():
    return Truth.decode(log())


@pytest.fixture
def exact():
    """What a client would record that is 0.1 ms behind at everything."""
    return (
        record(0, 4.1, (54.1, 64.1)),
        record(1, 0.1, (50.1, 60.1, 71.1)),
    )


def test_a_log_is_read_request_by_request(truth):
    assert truth.keys.tolist() == [101, 100]
    assert truth.arrivals.start_ns.tolist() == [0, 4 * MS]
    assert truth.arrivals.ttft_ms().tolist() == [50, 50]
    assert truth.arrivals.itl_ms().tolist() == [10, 11, 10]
    assert truth.arrivals.mean_itl_ms().tolist() == [10.5, 10]
    # 5 chunks in the 71 ms from the first arrival to the last send.
    assert truth.arrivals.chunks_per_s() == pytest.approx(5 / 0.071)


def test_a_request_without_chunks_has_no_latency():
    sends = dict(zip(("counts", "sends"), ((5, 0), 5), strict=True))
    numbers = [101, 100, 0, 4 * MS, *sends["counts"], *(ms * MS for ms in (50, 60, 71, 80, 90))]
    truth = Truth.decode(json.dumps(HEAD).encode() + b"\n" + struct.pack("=11q", *numbers))
    assert truth.arrivals.ttft_ms().tolist() == [50]
    assert truth.arrivals.itl_ms().tolist() == [10, 11, 9, 10]
    assert truth.arrivals.mean_itl_ms().tolist() == [10]


def test_lateness_counts_from_the_schedule_of_each_stream(truth):
    assert truth.lateness_ms().tolist() == [0, 0, 1, 0, 0]


def test_lateness_in_step_is_that_of_the_first_chunk_of_each_step():
    # Ticks at 50, 60, 70 ms; the request of 4 ms is due at 60 and 70, as its 54 are no tick.
    truth = Truth.decode(log(mode="step", sends_ms=(50, 61, 70, 62, 73)))
    assert truth.lateness_ms().tolist() == [0, 1, 0]


def test_lateness_of_merged_events_is_that_of_their_send():
    # In pairs: due at 50, 50, 70 and at 54, 54.
    truth = Truth.decode(log(merge=2, sends_ms=(50, 50, 72, 54, 54)))
    assert truth.lateness_ms().tolist() == [0, 0, 2, 0, 0]


@pytest.mark.parametrize(
    "broken",
    [b"", b"{}\n", log(version=2), log()[:-8], log(requests=3), b"not a log\n"],
    ids=["empty", "no head", "other version", "cut", "other count", "text"],
)
def test_what_is_no_log_is_refused(broken):
    with pytest.raises(ValueError):  # noqa: PT011 - of json, of numpy or our own
        Truth.decode(broken)


def test_a_constant_delay_is_no_error_of_any_latency(truth, exact):
    accuracy = compare(exact, truth, first_key=100)
    for figure in (accuracy.ttft_ms_p50, accuracy.ttft_ms_p99, accuracy.itl_ms_p50):
        assert figure.error == pytest.approx(0, abs=1e-9)
    assert accuracy.chunks_per_s.relative == pytest.approx(0, abs=1e-9)
    assert accuracy.stamp_delay_ms_p50 == pytest.approx(0.1)
    assert accuracy.stamp_delay_ms_p99 == pytest.approx(0.1)
    assert accuracy.excesses() == ()


def test_requests_are_found_by_their_key_in_any_order(truth, exact):
    assert compare(exact[::-1], truth, first_key=100) == compare(exact, truth, first_key=100)


def test_errors_are_seen_minus_true(truth):
    # Request 1 is sent 2 ms early in the client's eyes, its last chunk seen 4 ms late.
    seen = (record(0, 4, (54, 64)), record(1, -2, (50, 60, 75)))
    accuracy = compare(seen, truth, first_key=100)
    assert accuracy.ttft_ms_p50 == Figure(50, 51)
    # Linear between 50 and 52 at rank 0.99.
    assert accuracy.ttft_ms_p99.seen == pytest.approx(51.98)
    assert accuracy.itl_ms_p50 == Figure(10, 10)
    # True gaps 10, 10, 11 and seen gaps 10, 10, 15, between the last two at rank 1.98 of 0..2.
    assert accuracy.itl_ms_p99.true == pytest.approx(10.98)
    assert accuracy.itl_ms_p99.seen == pytest.approx(14.9)
    assert accuracy.chunks_per_s.seen == pytest.approx(5 / 0.077)
    assert accuracy.excesses() == (
        "throughput -7.8%",
        "TTFT p50 +1.00 ms",
        "ITL p99 +3.92 ms",
        "TTFT p99 +1.98 ms",
    )


def test_a_lost_chunk_is_told(truth, exact):
    lossy = (exact[0], record(1, 0.1, (50.1, 60.1)))
    accuracy = compare(lossy, truth, first_key=100)
    assert (accuracy.chunks_seen, accuracy.chunks_sent) == (4, 5)
    assert accuracy.excesses()[0] == "4 of 5 chunks"


@pytest.mark.parametrize(("first_key", "kept"), [(99, 2), (100, 1)])
def test_a_log_of_other_requests_is_refused(truth, exact, first_key, kept):
    with pytest.raises(ValueError, match=r"the server logged 2 requests, the client"):
        compare(exact[:kept], truth, first_key=first_key)


def test_records_without_gaps_are_refused(truth):
    single = (record(0, 4, (54,)), record(1, 0, (50,)))
    with pytest.raises(ValueError, match="no request brought two chunks"):
        compare(single, truth, first_key=100)


def test_a_late_server_is_not_the_clients_fault(truth, exact):
    accuracy = compare(exact, truth, first_key=100)
    # 0, 0, 0, 0, 1 at rank 3.96 of 0..4.
    assert accuracy.lateness_ms_p99 == pytest.approx(0.96)
    assert accuracy.schedule_held
    assert not replace(accuracy, lateness_ms_p99=1.01).schedule_held


@pytest.mark.parametrize(
    ("name", "figure", "excess"),
    [
        ("chunks_per_s", Figure(1000, 996), ()),
        ("chunks_per_s", Figure(1000, 994), ("throughput -0.6%",)),
        ("itl_ms_p50", Figure(10, 10.29), ()),
        ("itl_ms_p50", Figure(10, 9.69), ("ITL p50 -0.31 ms",)),
        ("ttft_ms_p50", Figure(100, 100.9), ()),
        ("ttft_ms_p50", Figure(100, 101.1), ("TTFT p50 +1.10 ms",)),
        ("ttft_ms_p99", Figure(50, 50.99), ()),
        ("ttft_ms_p99", Figure(500, 501.01), ("TTFT p99 +1.01 ms",)),
    ],
)
def test_limits(truth, exact, name, figure, excess):
    accuracy = compare(exact, truth, first_key=100)
    assert replace(accuracy, **{name: figure}).excesses() == excess


def test_arrays_of_the_client_are_read_as_they_are(truth, exact):
    arrays = [replace(each, chunk_ns=np.array(each.chunk_ns)) for each in exact]
    assert compare(arrays, truth, first_key=100) == compare(exact, truth, first_key=100)
