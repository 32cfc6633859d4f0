"""How far a figure of balance can be trusted: whether runs agree, and within which bounds it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_moeperf.balance.counts import merged
from pytest_moeperf.errors import RoutingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from pytest_moeperf.balance.counts import ExpertCounts

__all__ = ["Interval", "agreement", "cluster_interval"]

_ALIKE = 1e-12
"""Ranks that differ by less are all the same rank, whatever rounding says."""

_CHUNK = 64
"""Resamples that are drawn at once, which bounds the memory that they take."""


def agreement(one: ExpertCounts, other: ExpertCounts) -> tuple[float | None, ...]:
    """By layer: whether the experts that are hot in one run are hot in the other, in −1..1.

    Spearman's rank correlation of the counts; equal counts share the mean of their ranks. 1 is the
    same order, 0 none. None where a run loads all experts of the layer alike: it has no order.
    """
    if one.layers != other.layers or one.experts != other.experts:
        raise RoutingError(
            f"counts of {one.experts} experts in {len(one.layers)} layers and of {other.experts} "
            f"in {len(other.layers)}: expected two runs of one model"
        )
    pairs = zip(one.counts, other.counts, strict=True)
    return tuple(_correlation(_ranks(left), _ranks(right)) for left, right in pairs)


def _ranks(values: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Ascending from 1."""
    _, places, ties = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(ties) - (ties - 1) / 2)[places])


def _correlation(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float | None:
    left, right = left - left.mean(), right - right.mean()
    scale = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum() / scale) if scale > _ALIKE else None


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and the bounds of its confidence interval."""

    low: float
    value: float
    """As counted; it may lie outside, where chance alone makes counts look uneven."""
    high: float


def cluster_interval(
    requests: Sequence[ExpertCounts],
    statistic: Callable[[npt.NDArray[np.int64]], float],
    *,
    generator: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 1000,
    least: float = -np.inf,
    most: float = np.inf,
) -> Interval | None:
    """Bounds for a statistic of the summed counts, `[layers, experts]`; None for one request.

    Tokens of one request are routed alike, so whole requests are drawn with replacement (the
    cluster bootstrap). The bounds are 2 × value − quantile of the resamples (the basic bootstrap;
    Davison and Hinkley 1997, §5.2), within what the statistic can be, `least` to `most`. Quantiles
    alone would be wrong: any chance makes counts look less even, in a resample twice over.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"confidence {confidence!r} of {resamples!r} resamples: expected a share below 1 of "
            f"at least 1"
        )
    value = statistic(merged(requests).counts)
    if len(requests) < 2:  # noqa: PLR2004 - one request says nothing of how requests differ
        return None
    drawn = [statistic(counts) for counts in _resampled(requests, resamples, generator)]
    below, above = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = np.clip([2 * value - above, 2 * value - below], least, most)
    return Interval(low=float(low), value=value, high=float(high))


def _resampled(
    requests: Sequence[ExpertCounts], resamples: int, generator: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """Sums of as many requests, some of which are in it more than once."""
    count = len(requests)
    # Products of floats are far faster, and exact below 2⁵³.
    parts = np.stack([request.counts for request in requests]).astype(np.float64)
    for done in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - done)
        times = generator.multinomial(count, np.full(count, 1 / count), size=size)
        yield from np.tensordot(times.astype(np.float64), parts, axes=1).astype(np.int64)
