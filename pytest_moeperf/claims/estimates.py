"""What our starts say a figure is, how surely, and what that makes of a published one."""

from __future__ import annotations

import enum
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_moeperf.stats import log_median, t_quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

    Starts = Sequence[Sequence[float]]
    """The plays of each start."""

__all__ = [
    "BETWEEN_STARTS",
    "CONFIDENCE",
    "TOLERANCE",
    "Estimate",
    "Outcome",
    "Range",
    "accepted",
    "estimate",
    "outcome",
    "quotient",
]

TOLERANCE: Final = 0.10
"""How far a published figure may lie from ours: prompts, clients and versions are not the same."""
BETWEEN_STARTS: Final = 0.02
"""How far another start may lie from the only one that was measured: on H200, one standard
deviation between starts was 0.9 % of the throughput of Mixtral-8x7B."""
CONFIDENCE: Final = 0.95

Range = tuple[float | None, float | None]
"""As published; None: open on that side."""


class Outcome(enum.StrEnum):
    """What our figures say about a published one."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    UNDECIDED = "undecided"
    """Our interval lies across the edge of what confirms it."""
    UNTESTED = "not tested here"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure of ours, and between what it may lie."""

    value: float
    low: float
    high: float
    certain: bool
    """Whether `low` and `high` are a confidence interval over starts, not a mere range."""

    @classmethod
    def exact(cls, value: float) -> Estimate:
        """A figure that was calculated."""
        return cls(value, value, value, certain=True)

    def divided(self, divisor: float) -> Estimate:
        """The same of a part, such as of one token of a request."""
        value, low, high = (each / divisor for each in (self.value, self.low, self.high))
        return Estimate(value, low, high, certain=self.certain)


def accepted(published: float | Range) -> tuple[float, float]:
    """What confirms it: a published range as it is, or 10 % around a single figure."""
    if isinstance(published, tuple):
        low, high = published
        return (-math.inf if low is None else low, math.inf if high is None else high)
    return published / (1 + TOLERANCE), published * (1 + TOLERANCE)


def outcome(ours: Estimate | None, published: float | Range) -> Outcome:
    """Confirmed if all of our interval is accepted, refuted if none of it is."""
    if ours is None:
        return Outcome.UNTESTED
    low, high = accepted(published)
    if low <= ours.low and ours.high <= high:
        return Outcome.CONFIRMED
    if ours.high < low or high < ours.low:
        return Outcome.REFUTED
    return Outcome.UNDECIDED


def estimate(starts: Starts) -> Estimate | None:
    """The geometric mean of the starts' medians, as baselines state it.

    Around it Student's interval over starts. One start has none; there it is the range of its
    plays, and what another start may differ.
    """
    if not starts:
        return None
    levels = _levels(starts)
    center = statistics.fmean(levels)
    if len(levels) == 1:
        low, high = min(starts[0]) / (1 + BETWEEN_STARTS), max(starts[0]) * (1 + BETWEEN_STARTS)
        return Estimate(math.exp(center), low, high, certain=False)
    return _interval(center, _variance_of_mean(levels), len(levels) - 1)


def quotient(of: Starts, over: Starts) -> Estimate | None:
    """`of` ÷ `over` with Welch's interval, or the whole range where a side has only one start."""
    upper, lower = estimate(of), estimate(over)
    if upper is None or lower is None:
        return None
    value = upper.value / lower.value
    if not (upper.certain and lower.certain):
        return Estimate(value, upper.low / lower.high, upper.high / lower.low, certain=False)
    parts = [_variance_of_mean(_levels(side)) for side in (of, over)]
    shares = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (of, over), strict=True))
    df = sum(parts) ** 2 / shares if shares else math.inf
    return _interval(math.log(value), sum(parts), df)


def _levels(starts: Starts) -> list[float]:
    return [log_median(plays) for plays in starts]


def _variance_of_mean(levels: Sequence[float]) -> float:
    return statistics.variance(levels) / len(levels)


def _interval(center: float, variance: float, df: float) -> Estimate:
    """Around a mean of logarithms whose variance has `df` degrees of freedom."""
    half = t_quantile((1 + CONFIDENCE) / 2, df) * math.sqrt(variance) if variance else 0.0
    return Estimate(
        math.exp(center), math.exp(center - half), math.exp(center + half), certain=True
    )
