"""Which measured starts may become a reference."""

import dataclasses
import math

import pytest

from pytest_moeperf.admission import refusals, robust_deviation
from pytest_moeperf.baseline import Baseline, Gate


@pytest.fixture
def candidate(make_recording, make_start):
    """Builds a candidate whose starts have these values; None is a start without the metric."""

    def make(*values, tolerance=0.05):
        gates = {"tpot_ms.p50": Gate(direction="lower", tolerance=tolerance, unit="ms")}
        first, *others = [
            make_recording(start=make_start(f"start-{number}", tpot=(value,)), gates=gates)
            for number, value in enumerate(values)
        ]
        baseline = Baseline.begun(first)
        for recording in others:
            baseline = baseline.extended(recording, source="x")
        return baseline

    return make


def test_five_like_starts_are_admitted(candidate):
    assert refusals(candidate(20.0, 20.1, 19.9, 20.2, 20.0), starts=5) == ()


def test_too_few_starts_are_refused(candidate):
    assert refusals(candidate(20.0, 20.1), starts=5) == ("has 2 of 5 starts",)


def test_starts_that_vary_more_than_the_tolerance_are_refused(candidate):
    [refusal] = refusals(candidate(20.0, 24.0, 20.0, 24.0, 22.0), starts=5)
    assert refusal == (
        "tpot_ms.p50 varies by 12.9 % between starts, more than its tolerance of 5 %: nothing "
        "could be judged by it"
    )


def test_one_odd_start_is_no_reason(candidate):
    assert refusals(candidate(20.0, 20.1, 24.0, 20.2, 20.0), starts=5) == ()


def test_a_drift_between_the_halves_is_refused(candidate):
    [refusal] = refusals(candidate(20.0, 20.0, 20.6, 21.2, 21.2), starts=5)
    assert refusal == (
        "tpot_ms.p50 is +6.0 % in the later half of the starts: the machine or the engine changed "
        "meanwhile"
    )


def test_a_metric_that_a_start_lacks_is_refused(candidate, make_start):
    [refusal] = refusals(candidate(20.0, 20.0, None, 20.0, 20.0), starts=5)
    assert refusal == "tpot_ms.p50 was not measured in every start"


def test_one_start_may_be_enough_where_it_is_asked_for(candidate):
    assert refusals(candidate(20.0), starts=1) == ()


def test_a_cell_that_nothing_judges_is_no_reference(candidate):
    without = dataclasses.replace(candidate(20.0), gates={})
    assert refusals(without, starts=1) == ("has no metric that is judged",)


def test_counts_that_are_zero_are_no_spread(candidate):
    assert refusals(candidate(0.0, 0.0, 0.0, 0.0, 0.0, tolerance=0.0), starts=5) == ()


def test_the_deviation_is_that_of_normal_values_and_robust():
    assert robust_deviation([1.0, 2.0, 3.0, 4.0, 100.0]) == pytest.approx(1.4826)
    assert robust_deviation([math.log(20.0)]) == 0.0
