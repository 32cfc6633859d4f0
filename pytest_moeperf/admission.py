"""Whether measured starts may become a reference: pure."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from pytest_moeperf.baseline import start_levels
from pytest_moeperf.wording import percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_moeperf.baseline import Baseline

__all__ = ["refusals", "robust_deviation"]

_NORMAL = 1.4826
"""Median absolute deviation × this estimates the standard deviation of normal values."""
_FEWEST_TO_SPLIT = 4
"""Each half of fewer starts would be one start, which is noise."""


def robust_deviation(values: Sequence[float]) -> float:
    """Standard deviation by the median absolute deviation, which one odd value cannot move."""
    middle = statistics.median(values)
    return _NORMAL * statistics.median(abs(value - middle) for value in values)


def refusals(candidate: Baseline, *, starts: int) -> tuple[str, ...]:
    """Why a candidate is no reference yet, a clause each; none for one that may be stored."""
    return tuple(_refusals(candidate, starts))


def _refusals(candidate: Baseline, starts: int) -> Iterator[str]:
    if len(candidate.starts) < starts:
        yield f"has {len(candidate.starts)} of {starts} starts"
    if not candidate.gates and candidate.routing is None:
        yield "has no metric that is judged"
    for metric, gate in sorted(candidate.gates.items()):
        levels = start_levels(candidate.starts, metric)
        if len(levels) < len(candidate.starts):
            yield f"{metric} was not measured in every start"
            continue
        spread = robust_deviation(levels)
        if spread > gate.tolerance > 0:
            yield (
                f"{metric} varies by {100 * spread:.1f} % between starts, more than its tolerance "
                f"of {percent(gate.tolerance)}: nothing could be judged by it"
            )
        drift = _drift(levels)
        if drift is not None and abs(drift) > math.log1p(gate.tolerance):
            yield (
                f"{metric} is {100 * math.expm1(drift):+.1f} % in the later half of the starts: "
                "the machine or the engine changed meanwhile"
            )


def _drift(levels: Sequence[float]) -> float | None:
    """Later half minus earlier half: the same engine on both sides, so it should be nothing."""
    if len(levels) < _FEWEST_TO_SPLIT:
        return None
    half = len(levels) // 2
    return statistics.fmean(levels[-half:]) - statistics.fmean(levels[:half])
