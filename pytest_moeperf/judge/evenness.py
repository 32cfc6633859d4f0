"""Verdicts on how evenly experts are used, and on which of them are hot.

Imports numpy, so it is imported where experts were counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_moeperf.balance import (
    ExpertCounts,
    agreement,
    balancedness,
    cluster_interval,
    coefficient_of_variation,
    collapses,
    dead_experts,
    largest_deviation,
    layer_balancedness,
    max_over_mean,
    merged,
    normalised_entropy,
    rank_loads,
)
from pytest_moeperf.errors import UsageError
from pytest_moeperf.metrics import quantity
from pytest_moeperf.records import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    import numpy.typing as npt

    from pytest_moeperf.balance import ExpertPlacement, Interval
    from pytest_moeperf.records import Direction

    Floats: TypeAlias = npt.NDArray[np.float64]
    Loads: TypeAlias = npt.NDArray[np.int64] | Floats

__all__ = [
    "HOT_EXPERTS",
    "MEASURES",
    "collapse",
    "dead",
    "hot_experts",
    "measure",
    "percent",
    "some_layers",
    "untrained",
    "worst_layers",
]

HOT_EXPERTS = "hot_experts_agreement"

SEED = 20_260_101
"""Of the resampling: the same counts give the same verdict on every machine."""

MOST_NAMED = 3
"""Layers of a verdict, and experts of a layer, that are named; more are counted."""

_COUNT_MORE = "send more requests to be sure"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measure:
    """A figure of balance, with what a reader and the bootstrap must know of it."""

    by_layer: Callable[[Loads], Floats]
    direction: Direction
    least: float = 0.0
    most: float = np.inf
    overall: Callable[[Loads], float] | None = None
    """One figure for all layers; None: that of the worst layer counts."""

    def of(self, loads: Loads) -> float:
        """The figure that is judged."""
        if self.overall is not None:
            return self.overall(loads)
        figures = self.by_layer(loads)
        return float(figures.max() if self.direction == "lower" else figures.min())

    def worst(self, loads: Loads) -> int:
        """Row of the layer that is least even."""
        figures = self.by_layer(loads)
        return int(figures.argmax() if self.direction == "lower" else figures.argmin())


MEASURES = {
    "balancedness": _Measure(
        by_layer=layer_balancedness, direction="higher", most=1.0, overall=balancedness
    ),
    "coefficient_of_variation": _Measure(by_layer=coefficient_of_variation, direction="lower"),
    "largest_deviation": _Measure(by_layer=largest_deviation, direction="lower"),
    "layer_balancedness": _Measure(by_layer=layer_balancedness, direction="higher", most=1.0),
    "max_over_mean": _Measure(by_layer=max_over_mean, direction="lower", least=1.0),
    "normalised_entropy": _Measure(by_layer=normalised_entropy, direction="higher", most=1.0),
}
"""What can be judged, by the name of its function in `balance`."""


def measure(
    name: str,
    requests: Sequence[ExpertCounts],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    placement: ExpertPlacement | None = None,
    why: str,
) -> Verdict:
    """Judge a measure of the worst layer, or `balancedness` of all, against a bound.

    It fails only where both the figure and all of its 95 % interval over requests are beyond the
    bound; where only the figure is, more requests are needed to tell. With a `placement` the loads
    are those of ranks.
    """
    found = _known(name, at_most=at_most, at_least=at_least)
    total = merged(requests)

    def loads(counts: npt.NDArray[np.int64]) -> Loads:
        if placement is None:
            return counts
        return rank_loads(_with_counts(total, counts), placement)

    interval = cluster_interval(
        requests,
        lambda counts: found.of(loads(counts)),
        generator=np.random.default_rng(SEED),
        least=found.least,
        most=found.most,
    )
    value = found.of(loads(total.counts))
    beyond = _beyond(value, at_most, at_least)
    outcome = Outcome.PASS
    if beyond:
        sure = interval is not None and all(
            _beyond(end, at_most, at_least) for end in (interval.low, interval.high)
        )
        outcome = Outcome.REGRESSED if sure else Outcome.INCONCLUSIVE
    unit = "expert" if placement is None else "rank"
    row = found.worst(loads(total.counts))
    where = "of all layers" if found.overall else "there"
    position = "beyond" if beyond else "within"
    reason = (
        f"{_extreme(loads(total.counts)[row], total.layers[row], unit)}; {name} {where} is "
        f"{quantity(value)}{_certainty(interval, len(requests))}, {position} what is allowed "
        f"({_allowed(at_most, at_least)}): {why}"
    )
    return Verdict(
        metric=name if placement is None else f"{name} over {placement.ranks} ranks",
        outcome=outcome,
        direction=found.direction,
        measured=value,
        certain=None if interval is None else (interval.low, interval.high),
        upper=at_most,
        lower=at_least,
        reason=reason if outcome is not Outcome.INCONCLUSIVE else f"{reason}; {_COUNT_MORE}",
    )


def _known(name: str, *, at_most: float | None, at_least: float | None) -> _Measure:
    if name not in MEASURES:
        raise UsageError(f"{name!r} is no measure of balance; valid are {', '.join(MEASURES)}")
    found = MEASURES[name]
    if (at_most is None) == (found.direction == "lower") or (at_least is None) == (at_most is None):
        right = "at_most" if found.direction == "lower" else "at_least"
        better = "less" if found.direction == "lower" else "more"
        raise UsageError(f"{better} {name} is better: bound it by {right}()")
    if any(bound is not None and math.isnan(bound) for bound in (at_most, at_least)):
        raise UsageError(f"{name}: the bound nan is no number")
    return found


def _with_counts(total: ExpertCounts, counts: npt.NDArray[np.int64]) -> ExpertCounts:
    tokens = int(counts[0].sum()) // total.top_k
    return ExpertCounts(counts=counts, tokens=tokens, top_k=total.top_k, layers=total.layers)


def _beyond(value: float, at_most: float | None, at_least: float | None) -> bool:
    return (at_most is not None and value > at_most) or (at_least is not None and value < at_least)


def _allowed(at_most: float | None, at_least: float | None) -> str:
    return f"at most {at_most:g}" if at_most is not None else f"at least {at_least:g}"


def _certainty(interval: Interval | None, requests: int) -> str:
    if interval is None:
        return " of one request"
    return (
        f" ({quantity(interval.low)} to {quantity(interval.high)} by 95 % of {requests} requests "
        "drawn anew)"
    )


def _extreme(loads: Loads, layer: int, unit: str) -> str:
    """What the worst layer looks like, in words that need no definition."""
    share = loads / loads.sum()
    farthest = int(np.abs(share - 1 / len(share)).argmax())
    return (
        f"{unit} {farthest} of layer {layer} gets {percent(share[farthest])} of its load, a fair "
        f"share is {percent(1 / len(share))}"
    )


def percent(share: float) -> str:
    """As a reader sees it: `12.5 %`."""
    return f"{100 * share:.1f} %"


def collapse(counts: ExpertCounts) -> Verdict:
    """Fail where the router of a layer gives most of its tokens to very few experts."""
    found = collapses(counts)
    if found:
        outcome = Outcome.REGRESSED
        reason = (
            f"{_some([each.message for each in found])}; the other experts are paid for in memory "
            "and do next to nothing"
        )
    else:
        outcome, reason = Outcome.PASS, f"no router of {len(counts.layers)} layers has collapsed"
    return _counted("collapsed_layers", counts, len(found), outcome, reason)


def dead(counts: ExpertCounts) -> Verdict:
    """Fail where an expert gets no token at all."""
    found = dead_experts(counts) or ()
    if found:
        outcome = Outcome.REGRESSED
        named = [f"layer {layer}: no token took expert {expert}" for layer, expert in found]
        reason = f"{_some(named)}; such an expert takes memory and serves nobody"
    else:
        outcome, reason = Outcome.PASS, "every expert of every layer had tokens"
    return _counted("dead_experts", counts, len(found), outcome, reason)


def _counted(
    metric: str, counts: ExpertCounts, found: int, outcome: Outcome, reason: str
) -> Verdict:
    if dead_experts(counts) is None:
        outcome = Outcome.INCONCLUSIVE
        reason = (
            f"{counts.tokens} tokens are too few to tell: a fair share of them is below 20 for "
            f"each of {counts.experts} experts; {_COUNT_MORE}"
        )
    return Verdict(
        metric=metric,
        outcome=outcome,
        direction="lower",
        measured=float(found),
        upper=0.0,
        reason=reason,
    )


def _some(messages: Sequence[str]) -> str:
    more = len(messages) - MOST_NAMED
    return "; ".join([*messages[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])


def hot_experts(
    one: ExpertCounts,
    other: ExpertCounts,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    compared_with: str,
    why: str,
) -> Verdict:
    """Judge whether two loads have the same hot experts, by the mean over layers of `agreement`.

    Bounded by `at_least` for loads of one kind, by `at_most` for loads of two.
    """
    by_layer = {
        layer: found
        for layer, found in zip(one.layers, agreement(one, other), strict=True)
        if found is not None
    }
    metric = f"{HOT_EXPERTS} with {compared_with}"
    if not by_layer:
        reason = "every layer loads all of its experts alike: none is hot"
        return Verdict(metric=metric, outcome=Outcome.INCONCLUSIVE, reason=reason)
    value = sum(by_layer.values()) / len(by_layer)
    beyond = _beyond(value, at_most, at_least)
    odd = (min if at_least is not None else max)(by_layer, key=by_layer.__getitem__)
    row = one.layers.index(odd)
    return Verdict(
        metric=metric,
        outcome=Outcome.REGRESSED if beyond else Outcome.PASS,
        direction="higher" if at_least is not None else "lower",
        measured=value,
        lower=at_least,
        upper=at_most,
        reason=(
            f"the order of hot experts correlates by {value:.2f} in the mean of "
            f"{len(by_layer)} layers (1 is the same order, 0 none), "
            f"{'beyond' if beyond else 'within'} what is allowed ({_allowed(at_most, at_least)}): "
            f"{why}; layer {odd} by {by_layer[odd]:.2f}, its busiest are {_hottest(one, row)} in "
            f"one load and {_hottest(other, row)} in {compared_with}"
        ),
    )


def _hottest(counts: ExpertCounts, row: int) -> str:
    order = np.argsort(-counts.counts[row], kind="stable")[: counts.top_k]
    return ", ".join(str(expert) for expert in order)


def untrained(metric: str, model: str) -> Verdict:
    """Refuse to judge the balance of weights that nobody trained."""
    return Verdict(
        metric=metric,
        outcome=Outcome.INCOMPARABLE,
        reason=(
            f"{model} has random weights, whose balance says nothing of a router; judge a trained "
            "model, such as tiny-moe-balanced, or a published one with --weights real"
        ),
    )


def worst_layers(counts: ExpertCounts, most: int) -> ExpertCounts:
    """Only the least even layers, in the order of the model."""
    return some_layers(counts, largest_deviation(counts.counts), most)


def some_layers(counts: ExpertCounts, by: Floats, most: int) -> ExpertCounts:
    """The layers with the largest figures, in the order of the model."""
    rows = sorted(int(row) for row in np.argsort(-by, kind="stable")[:most])
    return ExpertCounts(
        counts=counts.counts[rows],
        tokens=counts.tokens,
        top_k=counts.top_k,
        layers=tuple(counts.layers[row] for row in rows),
    )
