import math

import pytest

from pytest_moeperf.errors import UsageError
from pytest_moeperf.metrics import METRICS
from pytest_moeperf.policy import POLICIES, RELEASE_POLICIES, Policy, policy_for


def test_every_directed_metric_has_a_policy_on_every_hardware():
    directed = {metric.key for metric in METRICS.values() if metric.direction}
    for table in (POLICIES, RELEASE_POLICIES):
        assert {kind: set(metrics) for kind, metrics in table.items()} == {
            "cpu": directed,
            "gpu": directed,
        }


def test_a_cpu_is_given_more_room_than_a_gpu():
    cpu, gpu = policy_for("cpu", "tpot_ms.p50"), policy_for("h200", "tpot_ms.p50")
    assert (cpu.tolerance, cpu.catch, cpu.unpaired_starts) == (0.50, 1.00, 2)
    assert (gpu.tolerance, gpu.catch, gpu.unpaired_starts) == (0.03, 0.05, 5)
    assert cpu.noise > gpu.noise


def test_the_time_to_the_first_token_is_given_more_room():
    policy = policy_for("h200", "ttft_ms.p50")
    assert (policy.tolerance, policy.catch) == (0.30, 0.60)


def test_the_latency_of_whole_requests_is_given_a_little_more_room():
    policy = policy_for("h200", "e2el_ms.p50")
    assert (policy.tolerance, policy.catch) == (0.05, 0.08)


def test_tails_are_given_more_room_than_medians():
    assert policy_for("h100", "tpot_ms.p90").tolerance == pytest.approx(0.06)
    tail = policy_for("h100", "tpot_ms.p99")
    assert (tail.tolerance, tail.catch) == (pytest.approx(0.09), pytest.approx(0.15))
    assert (tail.noise, tail.drift) == (pytest.approx(0.03), pytest.approx(0.015))


def test_a_release_is_looked_at_twice_as_sharply():
    policy = policy_for("h200", "output_throughput", release=True)
    assert (policy.tolerance, policy.catch) == (0.015, pytest.approx(0.03))
    assert (policy.checkpoints, policy.unpaired_starts) == ((5, 10), 10)
    assert policy_for("cpu", "tpot_ms.p50", release=True) == policy_for("cpu", "tpot_ms.p50")


def test_margins_are_the_same_for_a_metric_and_its_inverse():
    policy = Policy(tolerance=0.5, catch=1.0)
    assert policy.tolerance_log == pytest.approx(math.log(1.5))
    assert policy.catch_log == pytest.approx(math.log(2))


def test_a_metric_without_direction_takes_no_baseline():
    with pytest.raises(UsageError, match=r"tokens_per_chunk\.mean has no better direction"):
        policy_for("cpu", "tokens_per_chunk.mean")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tolerance": -0.1}, "tolerance -0.1: give a ratio"),
        ({"tolerance": math.nan}, "tolerance nan: give a ratio"),
        ({"noise": -1}, "noise -1: give a ratio"),
        ({"drift": math.inf}, "drift inf: give a ratio"),
        ({"catch": 0.05}, r"catch 0\.05: give a ratio from the tolerance 0\.1 up"),
        ({"catch": math.inf}, "catch inf: give a ratio"),
        ({"beta": 0.0}, "beta 0.0: give a chance"),
        ({"unpaired_starts": 0}, "unpaired_starts 0: give a number from 1 up"),
        ({"checkpoints": ()}, r"checkpoints \(\): give rising numbers"),
        ({"checkpoints": (1, 3)}, "give rising numbers"),
        ({"checkpoints": (5, 3)}, "give rising numbers"),
        ({"checkpoints": (3, 3)}, "give rising numbers"),
    ],
)
def test_a_policy_that_decides_nothing_is_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        Policy(**{"tolerance": 0.1, "catch": 0.2, **fields})
