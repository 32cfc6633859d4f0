"""Estimators that the verdicts rest on: percentiles, log medians, and the noise between starts."""

from __future__ import annotations

import functools
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "PERCENTILE_FLOOR",
    "PRIOR_DF",
    "Comparison",
    "compare",
    "from_log",
    "half_range",
    "log_median",
    "percentile",
    "shrunk_variance",
    "t_quantile",
]

PERCENTILE_FLOOR = {50: 1, 90: 64, 99: 662}
"""Fewest observations that a percentile is given for. Below them even the largest observation may
lie under the true percentile too often (MLPerf inference rules, early stopping at 99 %)."""

PRIOR_DF = 20
"""What the noise table of a hardware class weighs against the stored starts, in degrees of
freedom: with the usual 1 to 10 starts a cell's own spread alone would be a guess."""

_SMALLEST = 1e-9
"""Stands for zero on the log scale; far below any latency in ms or rate per second."""


def percentile(ordered: Sequence[float], rank: float) -> float:
    """Interpolate linearly between the closest ranks, as `numpy.percentile` does by default.

    `ordered` is sorted ascending and not empty; `rank` is in 0..100.
    """
    position = (len(ordered) - 1) * rank / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    weight = position - below
    # Clamped: rounding must not carry the result past the larger neighbour.
    return min(ordered[below] + (ordered[above] - ordered[below]) * weight, ordered[above])


def log_median(values: Sequence[float]) -> float:
    """Median of the natural logarithms; zero counts as 1e-9, so that it stays finite."""
    return statistics.median(math.log(max(value, _SMALLEST)) for value in values)


def from_log(value: float) -> float:
    """Undo `log_median`, its stand-in for zero included."""
    result = math.exp(value)
    return 0.0 if result <= 2 * _SMALLEST else result


def half_range(values: Sequence[float]) -> float | None:
    """Half of what lies between the smallest and the largest; None for fewer than two."""
    return (max(values) - min(values)) / 2 if len(values) > 1 else None


def shrunk_variance(variance: float, df: float, *, prior_variance: float, prior_df: float) -> float:
    """Average two variances by their degrees of freedom (the moderated variance of limma)."""
    return (prior_df * prior_variance + df * variance) / (prior_df + df)


@functools.cache
def t_quantile(probability: float, df: float) -> float:
    """Quantile of Student's t distribution."""
    from scipy.special import stdtrit  # noqa: PLC0415 - 0.1 s that a collection never needs.

    return float(stdtrit(df, probability))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One start against stored starts, on the natural log scale."""

    measured_log: float
    expected_log: float
    resolution_log: float
    """Smallest distance between the two that noise alone does not explain."""

    @property
    def distance_log(self) -> float:
        """Measured minus expected; the logarithm of their ratio."""
        return self.measured_log - self.expected_log


def compare(
    repeats: Sequence[float],
    starts: Sequence[Sequence[float]],
    *,
    noise: float,
    alpha: float,
) -> Comparison:
    """Weigh one start's repeats against the repeats of stored starts.

    A start counts with the median of its repeats. The variance between starts is the stored
    starts' own, shrunk towards `noise` (a standard deviation on the log scale) and never below
    it: few starts agree by luck more often than a machine is quiet. `alpha` is one-sided.
    """
    medians = [log_median(values) for values in starts]
    df = len(medians) - 1
    own = statistics.variance(medians) if df else 0.0
    shrunk = shrunk_variance(own, df, prior_variance=noise**2, prior_df=PRIOR_DF)
    variance = max(shrunk, noise**2)
    standard_error = math.sqrt(variance * (1 + 1 / len(medians)))
    return Comparison(
        measured_log=log_median(repeats),
        expected_log=statistics.fmean(medians),
        resolution_log=t_quantile(1 - alpha, PRIOR_DF + df) * standard_error,
    )
