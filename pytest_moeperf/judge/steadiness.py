"""Says where starts of one engine differ so much that no mean stands for them."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_moeperf import stats

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Unsteadiness", "surely_scattered", "unsteadiness"]

_FEWEST = 4
"""Of three starts two are close by luck, or the third is."""

_LEAST_OF_A_MODE = 2
"""One start apart from the others is an outlier, which a test's noise has to bear."""

_GAP_OF_MODES = 3
"""Between two modes is more room than inside them; what lies evenly only scatters."""

_MAD_TO_DEVIATION = 1.4826
"""For normal noise."""


@dataclass(frozen=True, slots=True)
class Unsteadiness:
    """How starts of one engine differ."""

    size_log: float
    """Between the two groups of starts, or the robust standard deviation of one."""
    two_modes: bool


def surely_scattered(
    groups: Sequence[Sequence[float]], *, limit_log: float, p_limit: float
) -> bool:
    """Whether starts with a standard deviation of `limit_log` would hardly ever scatter so much."""
    full = [group for group in groups if group]
    squares = math.fsum(
        (value - mean) ** 2
        for group in full
        for mean in (statistics.fmean(group),)
        for value in group
    )
    df = sum(len(group) - 1 for group in full)
    return df > 0 and squares > limit_log**2 * stats.chi_square_quantile_above(p_limit, df)


def unsteadiness(groups: Sequence[Sequence[float]], *, limit_log: float) -> Unsteadiness | None:
    """How starts differ by more than `limit_log`; None where they are steady.

    A group holds the starts of one engine in one place; groups are centred first, so that what
    distinguishes them counts for nothing. Both rules need more than one odd start.
    """
    centred = [
        [value - centre for value in group]
        for group in groups
        if len(group) > 1
        for centre in (statistics.median(group),)
    ]
    together = sorted(itertools.chain(*centred))
    gap = max(_gaps_of_modes(together), default=0.0)
    if gap > limit_log:
        return Unsteadiness(gap, two_modes=True)
    # A steady group beside it does not make a group steady.
    many = (group for group in (together, *centred) if len(group) >= _FEWEST)
    deviation = max((_MAD_TO_DEVIATION * _scatter(group, 0.0) for group in many), default=0.0)
    return Unsteadiness(deviation, two_modes=False) if deviation > limit_log else None


def _gaps_of_modes(ordered: Sequence[float]) -> Iterator[float]:
    """Every gap that is wide beside the scatter of what lies below it and above it."""
    for split in range(_LEAST_OF_A_MODE, len(ordered) - _LEAST_OF_A_MODE + 1):
        gap = ordered[split] - ordered[split - 1]
        sides = (ordered[:split], ordered[split:])
        if gap > _GAP_OF_MODES * max(_scatter(side, statistics.median(side)) for side in sides):
            yield gap


def _scatter(values: Sequence[float], centre: float) -> float:
    return statistics.median(abs(value - centre) for value in values)
