"""When warm-up is over, and what a server meets before."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.validity import Pace
from pytest_moeperf.warmup import Drill, Met, Once, Proof, Steady, drill_plan, drills
from pytest_moeperf.workload import Burst, ClosedLoop, OpenLoop, Plan, plan

CONTEXT = 4096


def pace(duration_s, **fields):
    """A play of one wave of requests, whose latency is its duration."""
    latency_ms = fields.pop("latency_ms", 1e3 * duration_s)
    return Pace(
        **{
            "duration_s": duration_s,
            "latency_ms": latency_ms,
            "ttft_ms": 200.0,
            "silence_ms": 200.0,
            **fields,
        }
    )


def plays(rule, paces):
    """How many plays a rule asks for."""
    for count, each in enumerate(paces, 1):
        rule.observe(each)
        if rule.over:
            return count
    return None


@pytest.mark.parametrize(
    ("durations", "needed"),
    [
        ((1.5, 1.5), 2),
        ((1.5, 1.4), 2),
        ((1.5, 1.9), 2),
        ((3.0, 1.5, 1.45), 3),
        ((9.0, 6.0, 3.0, 2.9), 4),
    ],
    ids=["warm", "noise", "slower", "one cold play", "three cold plays"],
)
def test_a_cpu_is_warm_once_plays_get_no_faster(durations, needed):
    rule = Steady()
    assert plays(rule, map(pace, durations)) == needed
    assert rule.reason == "the last play was no faster than the best one by 10 %"


def test_warm_up_ends_at_its_bound_and_says_that_nothing_was_shown():
    rule = Steady()
    assert plays(rule, map(pace, (16, 8, 4, 2, 1, 0.5))) == 5
    assert rule.evidence == ""
    assert rule.reason == "not steady after 5 plays, the most there may be"


@given(st.lists(st.floats(0.01, 100), min_size=8, max_size=8))
def test_warm_up_never_takes_more_plays_than_its_bound(durations):
    assert plays(Steady(), map(pace, durations)) in range(2, 6)
    assert plays(Proof(), map(pace, durations)) in range(3, 9)


def test_a_warm_server_plays_once():
    assert plays(Once(), [pace(3.0)]) == 1


@pytest.mark.parametrize(
    ("durations", "needed"),
    [
        # Mixtral-8x7B on an H200: seconds of the first four bursts of three starts. The third
        # burst of the first start was hit by a compilation again.
        ((5.66, 3.58, 4.82, 3.60), 4),
        ((5.46, 3.54, 3.62, 3.60), 3),
        ((6.00, 3.63, 3.60, 3.57), 3),
        # The first play proves nothing: it and one that was hit may take equally long.
        ((5.66, 5.52, 3.60, 3.62), 4),
        ((3.58, 3.60, 3.59), 3),
        # Slower than the best one by 5.6 %, then by 2.8 %.
        ((5.7, 3.6, 3.8, 3.7), 4),
        # --enable-return-routed-experts: the third and the fourth burst were hit.
        ((5.71, 3.71, 5.32, 5.52, 3.84), 5),
    ],
)
def test_a_gpu_is_warm_once_a_play_is_as_fast_as_the_best(durations, needed):
    rule = Proof()
    assert plays(rule, map(pace, durations)) == needed
    assert rule.reason.endswith("% from the best one's, without a compilation or a stall")


def test_a_play_that_compiled_proves_nothing():
    rule = Proof()
    warm = pace(3.6)
    assert plays(rule, [warm, warm, pace(3.6, compiled=True), warm]) == 4
    # Nor is it a measure for the next one.
    assert plays(Proof(), [warm, pace(3.6, compiled=True), warm, warm]) == 4


def test_a_play_that_stalled_proves_nothing():
    # 0.6 s of the 16 s of an open loop: its latencies hardly tell.
    stalled = pace(16.0, latency_ms=1.56e3, silence_ms=800.0)
    calm = pace(16.0, latency_ms=1.52e3)
    assert plays(Proof(), [calm, calm, stalled, calm]) == 4


def test_plays_without_a_latency_end_by_the_bound():
    rule = Proof()
    assert plays(rule, [pace(1.0, latency_ms=None)] * 8) == 8
    assert not rule.evidence


def planned(workload):
    return plan(workload, seed=0, vocab_size=1000, first_id=3, context_tokens=CONTEXT)


def needed(workload, met=None, context_tokens=CONTEXT):
    return drills(planned(workload), met or Met(), context_tokens=context_tokens)


def meet(workload, met):
    for drill in needed(workload, met):
        met.add(drill)


BURST = Burst(requests=100, isl=79, osl=128)


def test_a_single_stream_meets_steps_of_its_own_size():
    # 32 tokens: the sizes from 32 to 63, with every remainder.
    assert needed(ClosedLoop(concurrency=1, isl=32, osl=64, requests=8)) == (
        Drill(prompts=(32, 33, 36, 40), at_once=1, steps=(32,)),
    )


def test_a_burst_meets_every_step_and_batch_up_to_all_of_it():
    alone, *bursts = needed(BURST)
    assert alone.at_once == 1
    assert alone.steps == (64, 128, 256, 512, 1024, 2048, 4096)
    # Of the largest size a prompt must leave room for the context's last two tokens.
    assert alone.prompts[:4] == (64, 65, 68, 72)
    assert alone.prompts[-4:] == (4080, 4081, 4084, 4088)
    assert [drill.at_once for drill in bursts] == [
        batch for batch in (2, 4, 8, 16, 32, 64, 100) for _ in range(2)
    ]


def test_of_very_many_requests_at_once_256_are_met():
    alone, *bursts = needed(Burst(requests=300, isl=16, osl=8), context_tokens=65_536)
    # 256 × 16 tokens are 4096, 300 × 16 are 4800: both in the step of 4096 to 8191.
    assert alone.steps[-1] == 4096
    assert bursts[-1].at_once == 256
    assert {len(drill.prompts) for drill in bursts} == {2, 4, 8, 16, 32, 64, 128, 256}


def test_prompts_together_are_once_a_multiple_of_16_and_once_not():
    # 2 x 79 = 158 = 9 x 16 + 14, so 14 less; 16 x 79 is a multiple, so one less is none.
    bursts = {drill.at_once: [] for drill in needed(BURST)}
    for drill in needed(BURST):
        bursts[drill.at_once].append(drill.prompts)
    assert bursts[2] == [(79, 65), (79, 79)]
    assert bursts[16] == [(79,) * 16, (*[79] * 15, 78)]


def test_a_burst_is_of_prompts_of_the_usual_length():
    requests = tuple(SimpleNamespace(prompt=(1,) * tokens) for tokens in (20, 24, 3000))
    alone, *bursts = drills(Plan(requests=requests, concurrency=2), Met(), context_tokens=CONTEXT)
    # From the shortest prompt up to two of the usual 24: the steps of 16 and 32 tokens.
    assert alone.steps == (16, 32)
    # 2 × 24 is a multiple of 16, so one less is none.
    assert [drill.prompts for drill in bursts] == [(24, 24), (24, 23)]


def test_what_was_met_is_not_met_again():
    met = Met()
    meet(BURST, met)
    assert needed(BURST, met) == ()
    assert needed(replace(BURST, requests=64), met) == ()
    # The single stream's prompts are shorter than any before.
    assert [
        drill.steps for drill in needed(ClosedLoop(concurrency=1, isl=32, osl=8, requests=8), met)
    ] == [(32,)]
    # The rate ladder's 24 requests were no batch of the burst.
    rate = OpenLoop(request_rate=8, isl=79, osl=128, requests=24)
    assert {drill.at_once for drill in needed(rate, met)} == {24}


def test_text_is_taken_for_four_characters_a_token():
    requests = tuple(SimpleNamespace(prompt="word" * tokens) for tokens in (40, 50, 60))
    [alone, *_] = drills(Plan(requests=requests, concurrency=1), Met(), context_tokens=None)
    assert alone.steps == (32,)


@given(st.integers(1, 300), st.integers(1, 500), st.integers(1, 64), st.integers(16, 5000))
def test_drills_fit_the_context_and_meet_all_there_is(requests, isl, concurrency, context):
    workload = ClosedLoop(
        concurrency=concurrency, isl=min(isl, context - 8), osl=8, requests=requests
    )
    played = plan(workload, seed=0, vocab_size=1000, first_id=3, context_tokens=context)
    met = Met()
    for drill in drills(played, met, context_tokens=context):
        assert 0 < min(drill.prompts) <= max(drill.prompts) <= context - 2
        assert drill.at_once <= len(drill.prompts)
        met.add(drill)
    assert drills(played, met, context_tokens=context) == ()
    at_once = min(concurrency, requests)
    assert at_once == 1 or at_once in met.batches


def test_a_drill_is_played_with_random_tokens_and_two_of_output():
    made = drill_plan(Drill(prompts=(5, 9), at_once=2), range(3, 1000), random.Random(1))  # noqa: S311 - tokens
    assert [len(request.prompt) for request in made.requests] == [5, 9]
    assert {request.output_tokens for request in made.requests} == {2}
    assert made.concurrency == 2
    assert made.requests[0].prompt[:5] != made.requests[1].prompt[:5]
    assert all(3 <= token < 1000 for request in made.requests for token in request.prompt)
