"""The words of a verdict: one plain sentence for who reads it at night."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_moeperf.metrics import quantity

if TYPE_CHECKING:
    from pytest_moeperf.records import Direction

__all__ = ["Figures", "count", "doubt", "drift", "losses", "percent", "scatter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a sentence quotes, in the metric's unit."""

    key: str
    unit: str
    direction: Direction
    measured: float
    expected: float
    limit: float
    """The worst value within the tolerance."""
    reference: str
    """Whose value `expected` is: `the baseline`, `the old engine`."""

    @property
    def head(self) -> str:
        """What was measured and what was allowed: how every sentence begins."""
        bound = "up to" if self.direction == "lower" else "down to"
        return (
            f"{self.key} is {self._position()} ({quantity(self.measured, self.unit)} against "
            f"{quantity(self.expected, self.unit)}; allowed {bound} "
            f"{quantity(self.limit, self.unit)})"
        )

    def _position(self) -> str:
        if self.measured == self.expected:
            return f"as in {self.reference}"
        if not self.expected:
            return f"above 0, which is what {self.reference} has"
        change = self.measured / self.expected - 1
        if change >= 1:
            return f"{quantity(change + 1)} times that of {self.reference}"
        return f"{percent(abs(change))} {'above' if change > 0 else 'below'} {self.reference}"


def percent(ratio: float) -> str:
    """41 %, but 4.1 % and 0.4 % where a whole number would hide it."""
    return f"{100 * ratio:.0f} %" if ratio >= 0.095 else f"{100 * ratio:.2g} %"  # noqa: PLR2004


def losses(loss_log: float, direction: Direction) -> str:
    """How much a loss on the log scale moves the metric: 42 % of a latency, 30 % of a rate."""
    ratio = math.expm1(loss_log) if direction == "lower" else -math.expm1(-loss_log)
    return percent(ratio)


def count(number: int, noun: str) -> str:
    """`one start`, `3 starts`."""
    return f"one {noun}" if number == 1 else f"{number} {noun}s"


def doubt(direction: Direction, *, visible_log: float, possible_log: float | None) -> str:
    """Why noise leaves a verdict open.

    `visible_log` is the smallest loss that would have been seen; `possible_log` one that cannot be
    ruled out, None where the tolerance is exceeded already.
    """
    seen = f"only a loss of more than {losses(visible_log, direction)}"
    if possible_log is None:
        return f"{seen} stands out from noise"
    possible = losses(possible_log, direction)
    return f"a loss of {possible} cannot be ruled out, and {seen} would have been seen"


def drift(loss_log: float, direction: Direction) -> str:
    """What two engines that are equally slow say of what they run on."""
    return (
        f"; but both are worse than the baseline by {losses(loss_log, direction)} or more: the "
        "machine or what else both share has changed since it was recorded, not the engine"
    )


def scatter(key: str, direction: Direction, size_log: float, *, two: bool) -> str:
    """Why no mean stands for the starts of one engine."""
    size = losses(size_log, direction)
    how = f"fall into two groups, {size} apart" if two else f"scatter by {size}"
    return (
        f"{key} cannot be judged: starts of one and the same engine {how}; find out what a start "
        "decides anew, such as autotuning, memory layout or clocks"
    )
