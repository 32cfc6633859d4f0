"""How far a metric may move before a verdict calls it a change: a table by hardware and metric."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_moeperf.errors import UsageError
from pytest_moeperf.metrics import describe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_moeperf.records import Direction

__all__ = [
    "CPU",
    "GPU",
    "POLICIES",
    "RELEASE_POLICIES",
    "TAIL_FACTOR",
    "Policy",
    "directed",
    "policy_for",
]

CPU = "cpu"
GPU = "gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How far one metric may move before it counts, and what it may cost to find out.

    Ratios are "times as bad, less 1": 0.05 stands for 1.05 times the latency, or the throughput
    divided by 1.05. So a tolerance is the same for a metric and for its inverse.
    """

    tolerance: float
    """What is accepted."""
    catch: float
    """What must not slip through: a PASS rules it out. The gap to the tolerance is room for
    noise."""
    noise: float = 0.0
    """Least standard deviation between two starts in one session, relative."""
    drift: float = 0.0
    """Expected standard deviation between sessions (days, neighbours, temperature), relative."""
    beta: float = 0.05
    """Intervals have the confidence 1 - beta; a loss of `catch` passes with at most half of it."""
    unpaired_starts: int = 5
    """Fresh starts that it takes to blame an engine by stored starts alone."""
    checkpoints: tuple[int, ...] = (3, 5)
    """Pairs of old and new starts after which an A/B is judged."""

    def __post_init__(self) -> None:
        """Raise UsageError for figures that no verdict can come from."""
        for name in ("tolerance", "noise", "drift"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} {value!r}: give a ratio such as 0.05 for 5 %")
        if not (math.isfinite(self.catch) and self.catch >= self.tolerance):
            raise UsageError(
                f"catch {self.catch!r}: give a ratio from the tolerance {self.tolerance!r} up"
            )
        if not 0 < self.beta < 1:
            raise UsageError(f"beta {self.beta!r}: give a chance between 0 and 1, such as 0.05")
        if self.unpaired_starts < 1:
            raise UsageError(f"unpaired_starts {self.unpaired_starts!r}: give a number from 1 up")
        pairs = list(self.checkpoints)
        if not pairs or pairs[0] < 2 or sorted(set(pairs)) != pairs:  # noqa: PLR2004 - one pair shows no noise.
            raise UsageError(
                f"checkpoints {self.checkpoints!r}: give rising numbers of pairs, such as (3, 5)"
            )

    @property
    def tolerance_log(self) -> float:
        """The tolerance as a distance of natural logarithms."""
        return math.log1p(self.tolerance)

    @property
    def catch_log(self) -> float:
        """What must be caught, as a distance of natural logarithms."""
        return math.log1p(self.catch)

    def widened(self, factor: float) -> Policy:
        """The same for a statistic that is `factor` times as noisy."""
        return replace(
            self,
            tolerance=self.tolerance * factor,
            catch=self.catch * factor,
            noise=self.noise * factor,
            drift=self.drift * factor,
        )


def _policies(
    *,
    ttft: Policy,
    steady: Policy,
    e2el: Policy,
    threshold: Policy,
    longest: Policy,
    startup: Policy,
) -> Mapping[str, Policy]:
    return {
        "ttft_ms": ttft,
        "tpot_ms": steady,
        "itl_token_ms": steady,
        "itl_chunk_ms": steady,
        "e2el_ms": e2el,
        "request_throughput": steady,
        "output_throughput": steady,
        "output_throughput_per_gpu_gib": steady,
        "total_throughput": steady,
        "steady_output_throughput": steady,
        "goodput": threshold,
        "goodput_share": threshold,
        # A count that is 0 in a sound engine has no noise, and one start is enough.
        "failed_requests": Policy(tolerance=0.0, catch=0.0, unpaired_starts=1),
        "max_stall_ms": longest,
        "startup_s": startup,
    }


def _cpu(tolerance: float, catch: float, *, noise: float, drift: float) -> Policy:
    # Two starts: what is caught is so large that a third one adds little but minutes.
    return Policy(tolerance=tolerance, catch=catch, noise=noise, drift=drift, unpaired_starts=2)


def _gpu(tolerance: float, catch: float, *, noise: float) -> Policy:
    return Policy(tolerance=tolerance, catch=catch, noise=noise, drift=noise / 2)


POLICIES: Mapping[str, Mapping[str, Policy]] = {
    # A shared machine of two cores: identical runs of 1-3 s differ by 5-15 %, sessions by as much
    # again, and for a minute or so by 40 % where a neighbour on the host is busy.
    CPU: _policies(
        ttft=_cpu(0.60, 1.20, noise=0.09, drift=0.10),
        steady=_cpu(0.50, 1.00, noise=0.07, drift=0.10),
        e2el=_cpu(0.50, 1.00, noise=0.07, drift=0.10),
        threshold=_cpu(0.80, 2.00, noise=0.12, drift=0.12),
        longest=_cpu(1.00, 4.00, noise=0.30, drift=0.15),
        # The page cache decides how long imports and weights take.
        startup=_cpu(1.00, 2.50, noise=0.20, drift=0.12),
    ),
    # A GPU of its own: the standard deviation between starts of a session in baselines/h200, three
    # or four starts of vLLM 0.24.0 or SGLang 0.5.16 a cell (docs/verdicts.md says how computed).
    GPU: _policies(
        # Of a single stream 0.2 and 1.9 % (Mixtral-8x7B), 22 % (Llama-3.1-8B, 11 to 17 ms).
        ttft=_gpu(0.30, 0.60, noise=0.120),
        # A decode step 0.03 to 3.0 %, pooled 1.0 %; above 1 % are Mixtral-8x7B's in vLLM with 1, 2
        # and 8 streams: 1.7, 3.0, 2.6 %. The throughput of a burst 0.7 to 1.9 %, pooled 1.4 %.
        steady=_gpu(0.03, 0.05, noise=0.010),
        # Of a few arrivals, with queueing and prefill and the host in it: 0.2 to 2.5 %, once 6.9 %.
        e2el=_gpu(0.05, 0.08, noise=0.020),
        threshold=_gpu(0.10, 0.15, noise=0.030),
        longest=_gpu(0.50, 0.80, noise=0.150),
        # With warm caches: 10 to 20 %.
        startup=_gpu(0.75, 1.50, noise=0.200),
    ),
}
"""By kind of hardware and metric, for means and medians."""


def _released(policy: Policy) -> Policy:
    return replace(
        policy,
        tolerance=policy.tolerance / 2,
        catch=policy.catch * 0.6,
        unpaired_starts=2 * policy.unpaired_starts,
        checkpoints=(5, 10),
    )


RELEASE_POLICIES: Mapping[str, Mapping[str, Policy]] = {
    CPU: POLICIES[CPU],
    GPU: {
        metric: _released(policy) if policy.tolerance else policy
        for metric, policy in POLICIES[GPU].items()
    },
}
"""For a release: half the tolerance, for about three times the starts; wants a baseline of ten. A
shared CPU cannot give more than it gives every night."""

TAIL_FACTOR: Mapping[str, float] = {"p90": 2.0, "p99": 3.0}
"""How many times the tolerance and noise of the median a tail takes."""


def policy_for(hardware: str, metric_key: str, *, release: bool = False) -> Policy:
    """The policy of a metric on a hardware class: `cpu`, or the name of a GPU such as `h200`.

    An unknown metric, or one without a better direction, raises UsageError.
    """
    metric, statistic = describe(metric_key)
    directed(metric_key, metric.direction)
    table = RELEASE_POLICIES if release else POLICIES
    policy = table[CPU if hardware == CPU else GPU][metric.key]
    factor = TAIL_FACTOR.get(statistic or "")
    return policy.widened(factor) if factor else policy


def directed(key: str, direction: Direction | None) -> Direction:
    """The direction of the metric `key`; UsageError if neither way is better."""
    if direction is None:
        raise UsageError(f"{key} has no better direction; hold it against bounds instead")
    return direction
