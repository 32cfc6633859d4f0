"""Compilations in the middle of a measurement: real logs and figures of vLLM 0.24 on an H200."""

import re
from pathlib import Path

import pytest

from pytest_moeperf.engines import ENGINES
from pytest_moeperf.figures import silence_ms
from pytest_moeperf.records import RepeatRecord, RequestRecord
from pytest_moeperf.validity import FINDINGS, Pace, find, stalls

LOGS = Path(__file__).parents[1] / "data" / "logs"
MS = 1_000_000

COLD = "vllm-0.24.0-mixtral-8x7b-tp1-four-bursts.log"
WARM_CACHE = "vllm-0.24.0-mixtral-8x7b-tp1-four-bursts-warm-cache.log"
TTFT_MS = {COLD: (2273.9, 208.3, 1485.7, 257.4), WARM_CACHE: (2094.3, 219.0, 253.9, 237.9)}
DURATION_S = {COLD: (5.655, 3.575, 4.823, 3.596), WARM_CACHE: (5.460, 3.542, 3.622, 3.599)}
"""The same bursts as their client saw them: of a burst, TTFT is the silence."""


def bursts(name):
    """The log of each burst; its client began with one call of /tokenize."""
    _, *parts = re.split(r"(?m)^.*POST /tokenize.*\n", (LOGS / name).read_text())
    return [part.splitlines() for part in parts]


def codes(log):
    repeat = RepeatRecord(requests=(), started_ns=0, ended_ns=0, log=tuple(log))
    found = find(repeat, compile_patterns=ENGINES["vllm"].compile_patterns)
    return {finding.code for finding in found} - {"no_requests"}


@pytest.mark.parametrize("name", [COLD, WARM_CACHE])
def test_the_log_tells_of_the_first_compilation(name):
    assert [codes(log) for log in bursts(name)] == [{"compilation"}, set(), set(), set()]


def burst(ttft_ms, duration_s, silence_ms=None, latency_ms=None):
    """A burst as its client saw it: there the TTFT is the silence, and requests end with it."""
    return Pace(
        duration_s=duration_s,
        latency_ms=1000 * duration_s if latency_ms is None else latency_ms,
        ttft_ms=ttft_ms,
        silence_ms=ttft_ms if silence_ms is None else silence_ms,
    )


def hits(ttfts_ms, durations_s):
    found = stalls([burst(*pair) for pair in zip(ttfts_ms, durations_s, strict=True)])
    return [finding is not None for finding in found]


@pytest.mark.parametrize(
    ("name", "hit"), [(COLD, [True, False, True, False]), (WARM_CACHE, [True, False, False, False])]
)
def test_the_ttft_tells_of_each(name, hit):
    assert hits(TTFT_MS[name], DURATION_S[name]) == hit


@pytest.mark.parametrize(
    ("ttft_ms", "tokens_per_s", "hit"),
    [
        # --enable-return-routed-experts, and one expert per token: five bursts after a start.
        ((2193, 505, 2128, 2047, 505), (2243, 3454, 2408, 2320, 3337), (1, 0, 1, 1, 0)),
        ((2551, 352, 1768, 351, 1997), (2265, 3699, 2625, 3711, 2514), (1, 0, 1, 0, 1)),
        # Tensor parallel, and a start without a compilation after the first burst.
        ((2204, 200, 165), (3133, 6082, 6210), (1, 0, 0)),
        ((2650, 291, 223, 238), (2135, 3526, 3551, 3585), (1, 0, 0, 0)),
        # Llama-3.1-8B: the first burst loses 10 %, and TTFT varies by half without a stall.
        ((275, 191, 131, 173), (11169, 12378, 12935, 12598), (1, 0, 0, 0)),
        ((280, 165, 186, 137), (11326, 12562, 12452, 13070), (1, 0, 0, 0)),
        ((197, 161, 170), (12282, 12676, 12697), (0, 0, 0)),
        # All warm bursts of three starts together.
        (
            (165, 186, 137, 197, 161, 170, 191, 131, 173),
            (12562, 12452, 13070, 12282, 12676, 12697, 12378, 12935, 12598),
            (0,) * 9,
        ),
    ],
    ids=[
        *("routed experts", "one expert", "two GPUs", "third start"),
        *("dense", "dense, another start", "dense, warm", "dense, all starts"),
    ],
)
def test_what_was_hit_is_told_from_what_was_not(ttft_ms, tokens_per_s, hit):
    assert hits(ttft_ms, [12_800 / rate for rate in tokens_per_s]) == [bool(each) for each in hit]


def test_a_stall_names_both_waits():
    calm, stalled = stalls([burst(505.0, 3.7), burst(2193.0, 5.7)])
    assert calm is None
    assert stalled.code == "stall"
    assert stalled.code in FINDINGS
    assert stalled.message == "the median TTFT was 2193 ms, 505 ms in other plays"
    assert "warm up" in stalled.advice


def test_a_burst_that_is_taken_in_by_fewer_steps_has_not_stalled():
    # SGLang 0.5.16, Mixtral-8x7B on an H200: the third start with all that was played on it.
    plays = [
        burst(ttft_ms, 12_800 / tokens_per_s, silence_ms, latency_ms)
        for ttft_ms, tokens_per_s, silence_ms, latency_ms in (
            (300.6, 3242.7, 404.9, 3930.1),
            (471.2, 3356.1, 997.3, 3795.5),
            (468.8, 3209.8, 412.1, 3967.6),
            (463.3, 3223.7, 382.2, 3952.2),
        )
    ]
    warm_up = [burst(290.0, 12_800 / 3225.1), burst(363.0, 12_800 / 3236.8)]
    assert stalls(plays, others=warm_up) == (None,) * 4


def test_one_stream_that_stalls_once_is_told_by_its_share_of_the_requests():
    # Eight requests of 500 ms; one of them waits 400 ms more.
    calm, stalled = burst(15.0, 4.0, 8.0, 500.0), burst(15.0, 4.4, 408.0, 550.0)
    assert [each is not None for each in stalls([calm, stalled])] == [False, True]
    late = burst(15.0, 4.0, 408.0, 510.0)
    assert stalls([calm, late]) == (None, None)


def test_a_stall_between_tokens_is_one_as_well():
    calm, stalled = burst(30.0, 4.2), burst(31.0, 4.4, silence_ms=200.0)
    found = stalls([calm, stalled])
    assert found[0] is None
    assert found[1].message == (
        "no token came for 200 ms with requests in flight, 30.0 ms in other plays"
    )


def test_one_repeat_alone_is_no_stall():
    assert stalls([burst(1500.0, 4.8)]) == (None,)
    assert stalls([]) == ()


def test_a_play_that_is_not_judged_may_show_it():
    [found] = stalls([burst(1500.0, 4.8)], others=[burst(208.0, 3.6)])
    assert found.message == "the median TTFT was 1500 ms, 208 ms in other plays"


@pytest.mark.parametrize(
    ("waits_ms", "duration_s"),
    [((1000.0, 1450.0), 2.0), ((10.0, 65.0), 2.0)],
    ids=["a long prefill varies", "a small part of the repeat"],
)
def test_variation_is_no_stall(waits_ms, duration_s):
    assert hits(waits_ms, (duration_s, duration_s)) == [False, False]


@pytest.mark.parametrize(("ttft_ms", "hit"), [(65.0, False), (75.0, True)])
def test_a_wait_that_all_requests_felt_is_a_stall_from_3_percent_of_the_repeat_on(ttft_ms, hit):
    # 55 or 65 ms more than the other play's 10, of 2 s; the requests took 60 ms more.
    assert hits((10.0, ttft_ms), (1.94, 2.0)) == [False, hit]


def request(index, sent_ms, *chunks_ms):
    return RequestRecord(
        index=index,
        sent_ns=sent_ms * MS,
        chunk_ns=tuple(at * MS for at in chunks_ms),
        chunk_tokens=(1,) * len(chunks_ms),
        asked_output_tokens=len(chunks_ms),
        ended_ns=(chunks_ms[-1] if chunks_ms else sent_ms) * MS,
    )


def test_the_silence_is_the_longest_wait_of_all_requests_together():
    # 20 to 100 ms: nothing for anybody; a request that is sent meanwhile does not end it.
    played = (request(0, 0, 10, 20, 100), request(1, 5, 15, 105), request(2, 60, 110))
    assert silence_ms(played) == 80.0


def test_the_wait_for_the_first_token_is_silence():
    assert silence_ms((request(0, 0, 70, 80), request(1, 0, 75, 85))) == 70.0


def test_the_time_between_requests_is_not():
    assert silence_ms((request(0, 0, 10, 20), request(1, 500, 530, 540))) == 30.0


def test_a_request_without_tokens_has_no_silence_of_its_own():
    assert silence_ms(()) is None
    assert silence_ms((request(0, 5),)) == 0.0
