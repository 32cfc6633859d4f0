"""What counts as a measured value."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_moeperf import stats

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_moeperf.records import Direction

__all__ = ["in_unit", "median", "usable"]


def usable(values: Iterable[float | None], *, least: float = 0.0) -> list[float]:
    """Leave out what is missing; ValueError for what is no finite number from `least` up.

    An error in measuring is never a verdict.
    """
    numbers = [value for value in values if value is not None]
    for number in numbers:
        if not (math.isfinite(number) and number >= least):
            raise ValueError(f"{number!r} is no measurement: expected a number from {least} up")
    return numbers


def median(values: Sequence[float]) -> float:
    """The median on the logarithmic scale, in the metric's unit."""
    return stats.from_log(stats.log_median(values))


def in_unit(oriented_log: float, direction: Direction) -> float:
    """Undo the orientation and the logarithm of a start's value."""
    return stats.from_log(oriented_log if direction == "higher" else -oriented_log)
