import hashlib
from dataclasses import replace
from itertools import pairwise
from statistics import mean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.errors import UsageError
from pytest_moeperf.workload import (
    Burst,
    ClosedLoop,
    OpenLoop,
    SharedPrefix,
    ShareGPT,
    TraceEntry,
    TraceReplay,
    plan,
    rate_ladder,
)

CLOSED = ClosedLoop(concurrency=2, isl=5, osl=7, requests=4)
BURST = Burst(requests=3, isl=5, osl=7)
POISSON = OpenLoop(request_rate=4, requests=16, isl=5, osl=7)
RAMP = OpenLoop(request_rate=2, end_rate=6, requests=8, isl=5, osl=7)
THINKING = ClosedLoop(concurrency=2, think_s=0.5, think="exponential", isl=5, osl=7, requests=6)
GROUPS = Burst(requests=6, isl=5, osl=7, prompts=SharedPrefix(groups=2, prefix=3))
REPLAY = TraceReplay(path="traces/Azure Code.csv")
TRACE = (
    TraceEntry(7_000_000_000, 3, 9),
    TraceEntry(5_000_000_000, 8, 2),
    TraceEntry(7_000_000_000, 4, 1),
)
CONVERSATIONS = (("one", 3), ("two", 900), ("three", None))


def draw(workload, **changes):
    settings = {"seed": 0, "vocab_size": 100, "first_id": 3, "context_tokens": 2048, **changes}
    return plan(workload, **settings)


def gaps_s(workload, seed=0):
    offsets = [0, *(request.offset_ns for request in draw(workload, seed=seed).requests)]
    return [(later - earlier) / 1e9 for earlier, later in pairwise(offsets)]


@pytest.mark.parametrize(
    ("workload", "slug"),
    [
        (CLOSED, "closed-c2-isl5-osl7-n4"),
        (BURST, "burst-n3-isl5-osl7"),
        (POISSON, "poisson-r4-isl5-osl7-n16"),
        (
            OpenLoop(request_rate=0.5, requests=2, isl=1, osl=1, arrivals="constant"),
            "constant-r0.5-isl1-osl1-n2",
        ),
        (
            OpenLoop(request_rate=10, requests=2, isl=1, osl=1, arrivals="gamma", burstiness=0.25),
            "gamma0.25-r10-isl1-osl1-n2",
        ),
        (
            Burst(requests=2, isl=8, osl=8, prompts=ShareGPT("data/My Chats.json")),
            "burst-n2-isl8-osl8-sharegpt-my-chats",
        ),
        (RAMP, "poisson-r2to6-isl5-osl7-n8"),
        (THINKING, "closed-c2-isl5-osl7-n6-think-exp0.5"),
        (replace(THINKING, think_seed=3), "closed-c2-isl5-osl7-n6-think-exp0.5-s3"),
        (replace(CLOSED, think_s=2), "closed-c2-isl5-osl7-n4-think2"),
        (GROUPS, "burst-n6-isl5-osl7-prefix2x3"),
        (REPLAY, "trace-azure-code"),
        (TraceReplay(path="a.jsonl", speed=0.5, requests=9), "trace-a-x0.5-n9"),
    ],
)
def test_the_slug_tells_everything_that_is_played(workload, slug):
    assert workload.slug == slug


@pytest.mark.parametrize(
    ("workload", "label"),
    [
        (CLOSED, "2 at a time, 5 in, 7 out"),
        (BURST, "burst of 3, 5 in, 7 out"),
        (POISSON, "poisson, 4 req/s, 5 in, 7 out"),
        (RAMP, "poisson, 2 to 6 req/s, 5 in, 7 out"),
        (THINKING, "2 at a time after 0.5 s each, 5 in, 7 out"),
        (GROUPS, "burst of 6, 5 in, 7 out, 2 shared prefixes of 3"),
        (
            Burst(requests=2, isl=8, osl=8, prompts=ShareGPT("data/chats.json")),
            "burst of 2, 8 in, 8 out, prompts from chats.json",
        ),
        (replace(REPLAY, speed=2), "trace Azure Code.csv at 2 times its speed"),
    ],
)
def test_the_label_reads_as_a_phrase(workload, label):
    assert workload.label == label


def test_workloads_are_values():
    assert ClosedLoop(concurrency=2, isl=5, osl=7, requests=4) == CLOSED
    assert len({CLOSED, BURST, POISSON, Burst(requests=3, isl=5, osl=7)}) == 3


@pytest.mark.parametrize(
    ("workload", "running"), [(CLOSED, 2), (BURST, 3), (POISSON, None), (REPLAY, None)]
)
def test_concurrency_is_what_the_workload_decides(workload, running):
    assert workload.concurrency == running


@pytest.mark.parametrize("workload", [CLOSED, BURST, POISSON])
def test_random_prompts_have_exact_length_and_ordinary_ids(workload):
    for request in draw(workload).requests:
        assert len(request.prompt) == 5
        assert set(request.prompt) <= set(range(3, 100))
        assert request.output_tokens == 7


def test_requests_are_numbered_in_the_order_of_sending():
    assert [request.index for request in draw(CLOSED).requests] == [0, 1, 2, 3]


def test_no_two_prompts_of_a_plan_or_of_two_seeds_are_alike():
    workload = Burst(requests=50, isl=16, osl=1)
    prompts = [
        tuple(request.prompt) for seed in (0, 1) for request in draw(workload, seed=seed).requests
    ]
    assert len(set(prompts)) == 100


def test_random_prompts_use_all_ids_evenly():
    workload = Burst(requests=100, isl=1000, osl=1)
    drawn = [
        token for request in draw(workload, vocab_size=13).requests for token in request.prompt
    ]
    shares = [drawn.count(token) / len(drawn) for token in range(3, 13)]
    assert shares == pytest.approx([0.1] * 10, abs=0.005)


@given(st.integers(), st.sampled_from([CLOSED, BURST, POISSON]))
def test_a_seed_always_gives_the_same_plan(seed, workload):
    assert draw(workload, seed=seed) == draw(workload, seed=seed)


def test_the_plan_of_a_seed_is_the_same_in_every_release_of_this_version():
    first = draw(POISSON).requests[0]
    assert tuple(first.prompt) == (21, 94, 30, 20, 15)
    assert first.offset_ns == 469_235_498


def test_every_repeat_meets_the_same_schedule_with_other_prompts():
    first, second = (draw(POISSON, seed=seed).requests for seed in (0, 1))
    assert [one.offset_ns for one in first] == [one.offset_ns for one in second]
    assert [one.prompt for one in first] != [one.prompt for one in second]
    other = draw(replace(POISSON, arrivals_seed=1)).requests
    assert [one.offset_ns for one in first] != [one.offset_ns for one in other]


def test_other_arrivals_leave_the_prompts_as_they_are():
    constant = OpenLoop(request_rate=9, requests=16, isl=5, osl=7, arrivals="constant")
    assert [request.prompt for request in draw(POISSON).requests] == [
        request.prompt for request in draw(constant).requests
    ]


def test_a_closed_loop_sends_when_a_slot_is_free():
    drawn = draw(CLOSED)
    assert drawn.concurrency == 2
    assert {request.offset_ns for request in drawn.requests} == {None}


def test_a_burst_sends_everything_at_once():
    drawn = draw(BURST)
    assert drawn.concurrency is None
    assert [request.offset_ns for request in drawn.requests] == [0, 0, 0]


def test_constant_arrivals_are_evenly_spaced():
    workload = OpenLoop(request_rate=4, requests=4, isl=5, osl=7, arrivals="constant")
    offsets = [request.offset_ns for request in draw(workload).requests]
    assert offsets == [250_000_000, 500_000_000, 750_000_000, 1_000_000_000]


@given(
    seed=st.integers(0, 1000),
    rate=st.floats(0.1, 1000),
    requests=st.integers(1, 50),
    burstiness=st.floats(0.1, 10),
)
def test_open_loops_offer_exactly_their_rate(seed, rate, requests, burstiness):
    workload = OpenLoop(
        request_rate=rate,
        requests=requests,
        isl=1,
        osl=1,
        arrivals="gamma",
        burstiness=burstiness,
        arrivals_seed=seed,
    )
    offsets = [request.offset_ns for request in draw(workload).requests]
    assert offsets == sorted(offsets)
    assert offsets[-1] == pytest.approx(requests / rate * 1e9, abs=1)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_vary_as_a_gamma_distribution_of_that_shape(burstiness):
    workload = OpenLoop(
        request_rate=2, requests=20_000, isl=1, osl=1, arrivals="gamma", burstiness=burstiness
    )
    gaps = gaps_s(workload)
    assert mean(gaps) == pytest.approx(0.5)
    assert pstdev(gaps) / mean(gaps) == pytest.approx(burstiness**-0.5, rel=0.05)


def test_poisson_gaps_are_exponential():
    gaps = gaps_s(OpenLoop(request_rate=2, requests=20_000, isl=1, osl=1))
    above_mean = sum(gap > 0.5 for gap in gaps) / len(gaps)
    assert above_mean == pytest.approx(0.3679, abs=0.01)  # 1/e


def test_sharegpt_asks_for_the_recorded_length_up_to_osl():
    workload = Burst(requests=3, isl=100, osl=50, prompts=ShareGPT("chats.json"))
    drawn = draw(workload, conversations=CONVERSATIONS).requests
    assert {request.prompt: request.output_tokens for request in drawn} == {
        "one": 3,
        "two": 50,
        "three": 50,
    }


def test_sharegpt_repeats_a_conversation_only_after_all_others():
    workload = Burst(requests=6, isl=100, osl=50, prompts=ShareGPT("chats.json"))
    prompts = [request.prompt for request in draw(workload, conversations=CONVERSATIONS).requests]
    assert set(prompts[:3]) == set(prompts[3:]) == {"one", "two", "three"}


def test_sharegpt_without_conversations_is_misuse():
    workload = Burst(requests=1, isl=1, osl=1, prompts=ShareGPT("chats.json"))
    with pytest.raises(UsageError, match="sharegpt-chats has no conversations"):
        draw(workload)


def test_a_request_that_exceeds_the_context_is_misuse():
    workload = Burst(requests=1, isl=2000, osl=49)
    with pytest.raises(
        UsageError, match=r"burst-n1-isl2000-osl49 needs 2000 \+ 49 = 2049 tokens, .* has 2048:"
    ):
        draw(workload)


@pytest.mark.parametrize("context_tokens", [12, None])
def test_a_request_may_fill_the_context(context_tokens):
    assert draw(BURST, context_tokens=context_tokens).requests


# Values that cannot be


@pytest.mark.parametrize(
    ("workload", "field"),
    [
        *((BURST, field) for field in ("requests", "isl", "osl")),
        (CLOSED, "concurrency"),
        (REPLAY, "requests"),
        *((GROUPS.prompts, field) for field in ("groups", "prefix")),
    ],
)
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, "1", True, float("inf")])
def test_what_is_no_count_is_misuse_as_soon_as_it_is_written(workload, field, value):
    with pytest.raises(UsageError) as caught:
        replace(workload, **{field: value})
    assert str(caught.value) == (
        f"{field} = {value!r} in a workload: it must be a whole number above 0"
    )


@pytest.mark.parametrize(
    ("workload", "field"),
    [
        (POISSON, "request_rate"),
        (RAMP, "end_rate"),
        (replace(POISSON, arrivals="gamma"), "burstiness"),
        (REPLAY, "speed"),
    ],
)
@pytest.mark.parametrize("value", [0, -0.5, "3", True, float("inf"), float("nan")])
def test_what_is_no_rate_is_misuse_as_soon_as_it_is_written(workload, field, value):
    with pytest.raises(UsageError) as caught:
        replace(workload, **{field: value})
    assert str(caught.value) == (
        f"{field} = {value!r} in a workload: it must be a number above 0, and finite"
    )


def test_unknown_arrivals_are_quoted_and_the_known_are_listed():
    with pytest.raises(UsageError, match="'poison' in a workload: valid are poisson, constant, ga"):
        replace(POISSON, arrivals="poison")


def test_burstiness_without_gamma_arrivals_is_misuse():
    with pytest.raises(UsageError, match="burstiness = 2 has no effect on poisson"):
        replace(POISSON, burstiness=2)


@pytest.mark.parametrize("prompts", ["chats.json", None, SharedPrefix])
def test_prompts_that_are_none_are_misuse(prompts):
    with pytest.raises(
        UsageError, match=r"in a workload: give ShareGPT\(…\), SharedPrefix\(…\) or"
    ):
        replace(BURST, prompts=prompts)


def test_a_trace_brings_lengths_and_so_takes_random_prompts_alone():
    with pytest.raises(UsageError, match=r"a trace takes RandomTokens\(\) alone"):
        replace(REPLAY, prompts=ShareGPT("chats.json"))


@pytest.mark.parametrize("make", [ShareGPT, lambda path: TraceReplay(path=path)])
@pytest.mark.parametrize("path", [None, "", 3])
def test_a_path_that_is_none_is_misuse(make, path):
    with pytest.raises(
        UsageError, match=f"^path = {path!r} in a workload: give the path of a file"
    ):
        make(path)


def test_a_vocabulary_without_ordinary_ids_is_misuse():
    with pytest.raises(UsageError, match="no token ids to draw prompts from between 3 and 3"):
        draw(BURST, vocab_size=3)


# Think time


def rests_s(workload):
    return [request.think_ns / 1e9 for request in draw(workload).requests]


def test_without_think_time_nobody_rests():
    assert rests_s(CLOSED) == [0, 0, 0, 0]
    assert rests_s(BURST) == [0, 0, 0]


def test_every_request_of_a_slot_but_the_first_comes_after_a_rest():
    assert rests_s(replace(CLOSED, think_s=0.25)) == [0, 0, 0.25, 0.25]


def test_exponential_rests_have_their_mean_and_their_shape():
    rests = rests_s(replace(THINKING, requests=20_002))[2:]
    assert mean(rests) == pytest.approx(0.5, rel=0.02)
    above_mean = sum(rest > 0.5 for rest in rests) / len(rests)
    assert above_mean == pytest.approx(0.3679, abs=0.01)  # 1/e


def test_every_repeat_meets_the_same_rests():
    one, other = (draw(THINKING, seed=seed).requests for seed in (0, 1))
    assert [each.think_ns for each in one] == [each.think_ns for each in other]
    third = draw(replace(THINKING, think_seed=1)).requests
    assert [each.think_ns for each in one] != [each.think_ns for each in third]


def test_rests_leave_the_prompts_as_they_are():
    thinking = replace(CLOSED, think_s=1, think="exponential")
    assert [each.prompt for each in draw(thinking).requests] == [
        each.prompt for each in draw(CLOSED).requests
    ]


@pytest.mark.parametrize("think_s", [-1, float("nan"), float("inf")])
def test_rests_that_cannot_be_are_misuse(think_s):
    with pytest.raises(UsageError, match=f"^think_s = {think_s} in a workload: .* from 0 up, and"):
        replace(CLOSED, think_s=think_s)


def test_an_unknown_kind_of_rest_is_misuse():
    with pytest.raises(UsageError, match="think = 'deep' in a workload: valid are constant, exp"):
        replace(CLOSED, think="deep")


# Ramp


def test_a_ramp_sends_evenly_in_the_integrated_rate():
    """From 2 to 6 requests a second, 8 requests take 2 s: 2 t + t^2 of them by t."""
    ramp = replace(RAMP, arrivals="constant")
    offsets_s = [request.offset_ns / 1e9 for request in draw(ramp).requests]
    assert [2 * at + at**2 for at in offsets_s] == pytest.approx([1, 2, 3, 4, 5, 6, 7, 8])
    assert offsets_s[2] == 1  # 2 + 1 = 3 by the middle.
    assert offsets_s[-1] == 2


def test_a_ramp_may_fall():
    """From 6 to 2 requests a second: 6 t - t^2 of them by t."""
    falling = replace(RAMP, request_rate=6, end_rate=2, arrivals="constant")
    offsets_s = [request.offset_ns / 1e9 for request in draw(falling).requests]
    assert [6 * at - at**2 for at in offsets_s] == pytest.approx([1, 2, 3, 4, 5, 6, 7, 8])


def test_a_ramp_to_the_same_rate_is_none():
    flat = replace(POISSON, end_rate=POISSON.request_rate)
    assert [each.offset_ns for each in draw(flat).requests] == pytest.approx(
        [each.offset_ns for each in draw(POISSON).requests], abs=1
    )


def test_poisson_arrivals_follow_the_ramp():
    """From 10 to 30 a second over 1000 s: a quarter of the time has 10 + 2.5 on average."""
    ramp = replace(RAMP, request_rate=10, end_rate=30, requests=20_000)
    offsets_s = [request.offset_ns / 1e9 for request in draw(ramp).requests]
    quarters = [sum(250 * k < at <= 250 * (k + 1) for at in offsets_s) for k in range(4)]
    # 250 s at 12.5, 17.5, 22.5 and 27.5 a second; three standard deviations are about 200.
    assert quarters == pytest.approx([3125, 4375, 5625, 6875], abs=200)


@given(st.integers(0, 1000), st.floats(0.1, 1000), st.floats(0.1, 1000), st.integers(1, 50))
def test_a_ramp_sends_exactly_its_requests_in_its_time(seed, start, end, requests):
    ramp = OpenLoop(
        request_rate=start, end_rate=end, arrivals_seed=seed, requests=requests, isl=1, osl=1
    )
    offsets = [request.offset_ns for request in draw(ramp).requests]
    assert len(offsets) == requests
    assert offsets == sorted(offsets)
    assert offsets[-1] == pytest.approx(2 * requests / (start + end) * 1e9, rel=1e-9, abs=1)


def test_a_ladder_holds_the_duration():
    rungs = rate_ladder(replace(POISSON, request_rate=4, requests=8), [1, 2, 8, 0.1])
    assert {rate: rung.requests for rate, rung in rungs.items()} == {1: 2, 2: 4, 8: 16, 0.1: 1}
    assert rungs[8] == replace(POISSON, request_rate=8, requests=16)


@pytest.mark.parametrize("rate", [0, "2", float("inf")])
def test_a_rung_without_a_rate_is_misuse(rate):
    with pytest.raises(UsageError, match=f"^request_rate = {rate!r} in a workload"):
        rate_ladder(POISSON, [1, rate])


# Trace


def test_a_trace_is_played_by_time_with_the_lengths_of_each_request():
    requests = draw(REPLAY, trace=TRACE).requests
    assert [(each.offset_ns, len(each.prompt), each.output_tokens) for each in requests] == [
        (0, 8, 2),
        (2_000_000_000, 3, 9),
        (2_000_000_000, 4, 1),
    ]
    assert [each.index for each in requests] == [0, 1, 2]


def test_a_trace_may_be_played_faster_and_in_part():
    requests = draw(replace(REPLAY, speed=4, requests=2), trace=TRACE).requests
    assert [each.offset_ns for each in requests] == [0, 500_000_000]


def test_prompts_of_a_trace_come_from_the_seed():
    one, same, other = (
        [each.prompt for each in draw(REPLAY, trace=TRACE, seed=seed).requests]
        for seed in (0, 0, 1)
    )
    assert one == same != other


def test_a_trace_without_entries_is_misuse():
    with pytest.raises(UsageError, match="trace-azure-code has no entries of its trace to replay"):
        draw(REPLAY)


def test_a_request_of_a_trace_that_exceeds_the_context_is_misuse():
    with pytest.raises(
        UsageError,
        match=r"trace-azure-code needs 3 \+ 9 = 12 tokens, .* has 11: leave such requests out",
    ):
        draw(REPLAY, trace=TRACE, context_tokens=11)
    assert draw(REPLAY, trace=TRACE, context_tokens=12).requests


# Shared prefixes


def test_prompts_of_a_group_begin_alike_and_end_each_on_its_own():
    prompts = [tuple(each.prompt) for each in draw(GROUPS, vocab_size=10_000).requests]
    assert {len(prompt) for prompt in prompts} == {5}
    assert len({prompt[:3] for prompt in prompts[0::2]}) == 1
    assert len({prompt[:3] for prompt in prompts[1::2]}) == 1
    assert len({prompt[:3] for prompt in prompts}) == 2
    assert len({prompt[3:] for prompt in prompts}) == 6


def test_every_seed_has_other_prefixes():
    one, other = (draw(GROUPS, seed=seed, vocab_size=10_000).requests[0] for seed in (0, 1))
    assert one.prompt[:3] != other.prompt[:3]


@pytest.mark.parametrize(
    ("requests", "isl", "prompts", "block_tokens", "rate"),
    [
        # 8 of 10 requests find 96 of their 128 tokens.
        (10, 128, SharedPrefix(groups=2, prefix=96), 16, 8 * 96 / 1280),
        # Only whole blocks are kept: 96 of 100.
        (10, 128, SharedPrefix(groups=2, prefix=100), 16, 8 * 96 / 1280),
        (10, 128, SharedPrefix(groups=2, prefix=100), 1, 8 * 100 / 1280),
        # The last token of a prompt is always computed, and with it its block.
        (4, 64, SharedPrefix(groups=1, prefix=64), 16, 3 * 48 / 256),
        (4, 64, SharedPrefix(groups=1, prefix=15), 16, 0),
    ],
)
def test_the_expected_hit_rate_by_hand(requests, isl, prompts, block_tokens, rate):
    workload = Burst(requests=requests, isl=isl, osl=1, prompts=prompts)
    assert workload.prefix_hit_rate(block_tokens) == pytest.approx(rate)


@pytest.mark.parametrize(
    "workload", [CLOSED, POISSON, REPLAY, replace(BURST, prompts=ShareGPT("a.json"))]
)
def test_other_prompts_expect_no_hits(workload):
    assert workload.prefix_hit_rate(16) == 0


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 4, 16]))
def test_the_expected_hit_rate_is_what_a_cache_of_blocks_gives(groups, prefix, isl, block):
    """A cache that keeps each block by all tokens up to its end, as vLLM's does."""
    prefix, requests = min(prefix, isl), groups + 4
    workload = Burst(
        requests=requests, isl=isl, osl=1, prompts=SharedPrefix(groups=groups, prefix=prefix)
    )
    cache, hits = set(), 0
    for request in draw(workload, vocab_size=2**31).requests:
        # The last token is computed anew whatever the cache holds.
        for end in range(block, isl, block):
            hits += block if tuple(request.prompt[:end]) in cache else 0
        cache |= {tuple(request.prompt[:end]) for end in range(block, isl + 1, block)}
    assert workload.prefix_hit_rate(block) == pytest.approx(hits / (requests * isl))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (SharedPrefix(groups=2, prefix=6), "prefix = 6 in a workload: prompts have only isl = 5"),
        (SharedPrefix(groups=6, prefix=3), "groups = 6 in a workload: with requests = 6 no two"),
    ],
)
def test_a_prefix_that_cannot_be_shared_is_misuse(prompts, message):
    with pytest.raises(UsageError, match=message):
        replace(GROUPS, prompts=prompts)


# Reproducible to the byte


def digest(workload):
    drawn = draw(workload, seed=7, conversations=CONVERSATIONS, trace=TRACE)
    rows = [
        (
            each.index,
            each.prompt if isinstance(each.prompt, str) else tuple(each.prompt),
            each.output_tokens,
            each.offset_ns,
            each.think_ns,
        )
        for each in drawn.requests
    ]
    return hashlib.sha256(repr((drawn.concurrency, rows)).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("workload", "stored"),
    [
        (CLOSED, "c700decc0c34e6d4"),
        (replace(CLOSED, think_s=0.25), "db7acbc13d16999a"),
        (THINKING, "30be2eeb630f7829"),
        (BURST, "ddc92d226cfab618"),
        (POISSON, "b90183887c94f2a6"),
        (replace(POISSON, arrivals="constant"), "09dad592a969492c"),
        (replace(POISSON, arrivals="gamma", burstiness=0.25, arrivals_seed=2), "9d81d18be36cff47"),
        (RAMP, "68d6fadca71a9fce"),
        (replace(RAMP, arrivals="gamma", burstiness=3), "d4351084c664f1d7"),
        (replace(BURST, prompts=ShareGPT("chats.json")), "305dcbd547ba6113"),
        (GROUPS, "dc5dc0bee7a4627f"),
        (replace(REPLAY, speed=3), "e7c03ed274868ca3"),
    ],
    ids=lambda value: getattr(value, "slug", ""),
)
def test_the_plan_of_every_kind_is_stored_as_a_digest(workload, stored):
    """Another digest is another workload: raise WORKLOAD_VERSION, or find out what changed."""
    assert digest(workload) == stored
