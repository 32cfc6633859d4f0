"""Estimators that the verdicts rest on: percentiles, log medians, variances, Student's t."""

from __future__ import annotations

import functools
import math
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "PERCENTILE_FLOOR",
    "chi_square_quantile_above",
    "f_above",
    "from_log",
    "half_range",
    "log_median",
    "percentile",
    "shrunk_variance",
    "t_below",
    "t_quantile",
]

PERCENTILE_FLOOR = {50: 1, 90: 64, 99: 662}
"""Fewest observations that a percentile is given for. Below them even the largest observation may
lie under the true percentile too often (MLPerf inference rules, early stopping at 99 %)."""

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
    from scipy.special import stdtrit  # noqa: PLC0415 - 0.1 s, only to judge

    return float(stdtrit(df, probability))


def t_below(value: float, df: float) -> float:
    """Chance that Student's t is at most `value`."""
    from scipy.special import stdtr  # noqa: PLC0415 - 0.1 s, only to judge

    return float(stdtr(df, value))


def f_above(ratio: float, df: float, df_below: float) -> float:
    """Chance that the ratio of two estimates of one variance, on so many df each, is larger."""
    from scipy.special import fdtrc  # noqa: PLC0415 - 0.1 s, only to judge

    return float(fdtrc(df, df_below, ratio))


@functools.cache
def chi_square_quantile_above(probability: float, df: float) -> float:
    """What chi-square exceeds with this probability."""
    from scipy.special import chdtri  # noqa: PLC0415 - 0.1 s, only to judge

    return float(chdtri(df, probability))
