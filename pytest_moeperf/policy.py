"""How far a metric may move before a verdict calls it a change: a table by hardware and metric."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_moeperf.errors import UsageError
from pytest_moeperf.metrics import describe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_moeperf.records import Direction

__all__ = ["CPU", "GPU", "POLICIES", "TAIL_FACTOR", "Policy", "directed", "policy_for"]

CPU = "cpu"
GPU = "gpu"


@dataclass(frozen=True, slots=True)
class Policy:
    """How far one metric may move before it counts."""

    tolerance: float
    """0.05: up to 1.05 times as bad is accepted, whichever way the metric gets better."""
    alpha: float = 0.001
    """Chance of calling mere noise a change, one-sided. Small, as a session judges many gates."""
    noise: float = 0.0
    """Least standard deviation between two starts of one engine, relative."""

    def __post_init__(self) -> None:
        """Raise UsageError for figures that no verdict can come from."""
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise UsageError(f"tolerance {self.tolerance!r}: give a ratio such as 0.05 for 5 %")
        if not 0 < self.alpha < 1:
            raise UsageError(f"alpha {self.alpha!r}: give a chance between 0 and 1, such as 0.001")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise UsageError(f"noise {self.noise!r}: give a ratio such as 0.01 for 1 %")


def _policies(
    *, ttft: Policy, steady: Policy, threshold: Policy, longest: Policy, startup: Policy
) -> Mapping[str, Policy]:
    return {
        "ttft_ms": ttft,
        "tpot_ms": steady,
        "itl_token_ms": steady,
        "itl_chunk_ms": steady,
        "e2el_ms": steady,
        "request_throughput": steady,
        "output_throughput": steady,
        "total_throughput": steady,
        "steady_output_throughput": steady,
        "goodput": threshold,
        "goodput_share": threshold,
        "failed_requests": Policy(tolerance=0.0),
        "max_stall_ms": longest,
        "startup_s": startup,
    }


POLICIES: Mapping[str, Mapping[str, Policy]] = {
    # A shared machine of two cores: identical runs of 1-3 s differ by 5-15 %, and for a minute or
    # so by 40 % where a neighbour on the host is busy.
    CPU: _policies(
        ttft=Policy(tolerance=0.60, noise=0.09),
        steady=Policy(tolerance=0.50, noise=0.07),
        threshold=Policy(tolerance=0.80, noise=0.12),
        longest=Policy(tolerance=1.00, noise=0.30),
        # The page cache decides how long imports and weights take.
        startup=Policy(tolerance=1.00, noise=0.20),
    ),
    # A machine of its own: repeats differ by about 0.7 %, starts by about 1 %.
    GPU: _policies(
        ttft=Policy(tolerance=0.05, noise=0.015),
        steady=Policy(tolerance=0.03, noise=0.010),
        threshold=Policy(tolerance=0.10, noise=0.030),
        longest=Policy(tolerance=0.50, noise=0.150),
        startup=Policy(tolerance=0.50, noise=0.100),
    ),
}
"""By kind of hardware and metric, for means and medians."""

TAIL_FACTOR: Mapping[str, float] = {"p90": 2.0, "p99": 3.0}
"""How many times the tolerance and noise of the median a tail takes."""


def policy_for(hardware: str, metric_key: str) -> Policy:
    """The policy of a metric on a hardware class: `cpu`, or the name of a GPU such as `h200`.

    An unknown metric, or one without a better direction, raises UsageError.
    """
    metric, statistic = describe(metric_key)
    directed(metric_key, metric.direction)
    policy = POLICIES[CPU if hardware == CPU else GPU][metric.key]
    factor = TAIL_FACTOR.get(statistic or "", 1.0)
    return Policy(
        tolerance=policy.tolerance * factor, alpha=policy.alpha, noise=policy.noise * factor
    )


def directed(key: str, direction: Direction | None) -> Direction:
    """The direction of the metric `key`; UsageError if neither way is better."""
    if direction is None:
        raise UsageError(f"{key} has no better direction; hold it against bounds instead")
    return direction
