"""What a change of baselines changes, and whether it lowers a bar: pure."""

from __future__ import annotations

import enum
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_moeperf.baseline import expiry, level, start_levels
from pytest_moeperf.compat import differences
from pytest_moeperf.metrics import quantity
from pytest_moeperf.records import Outcome
from pytest_moeperf.waiver import Waiver, latest_expiry
from pytest_moeperf.wording import percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pytest_moeperf.baseline import Baseline, Gate
    from pytest_moeperf.records import Sample, StartRecord

__all__ = [
    "CellChange",
    "Lowering",
    "Move",
    "Rule",
    "due",
    "lowerings",
    "unexcused",
    "what_changed",
]

_ENOUGH_STARTS = 5
"""Fewer than these, and fewer than before, make a bar that noise may lower."""

_ROUNDING_LOG = 1e-4
"""Stored figures are rounded; a change of less is none."""


class Rule(enum.StrEnum):
    """The ways to lower a bar; a waiver names the one that it excuses."""

    WORSE = "worse"
    """The figures are worse by more than half of the tolerance."""
    WIDENED = "widened"
    """The tolerance is wider, or the better direction another."""
    UNGATED = "ungated"
    """A metric is judged no more."""
    REMOVED = "removed"
    """The file is gone."""
    REPLACED = "replaced"
    """Machine, model, server or workload are others, so that the old figures say nothing."""
    EDITED = "edited"
    """A recorded start has other values than it had."""
    THINNED = "thinned"
    """Fewer starts than before, and than a reference needs."""
    EXTENDED = "extended"
    """An expiry is later without new figures, or a known regression may be larger."""
    REROUTED = "rerouted"
    """The same prompts and weights take other experts."""
    ANCHOR = "anchor"
    """The fixed reference is gone, or worse by more than half of the tolerance."""


@dataclass(frozen=True, slots=True)
class Lowering:
    """One way in which a change would let a slower engine pass."""

    baseline: str
    metric: str | None
    rule: Rule
    message: str

    def waiver(self, today: str) -> Waiver:
        """The waiver that would excuse it, for its author to fill in."""
        return Waiver(
            baseline=self.baseline,
            metric=self.metric,
            rule=self.rule.value,
            reason="(why)",
            owner="(who answers for it)",
            issue="(its URL)",  # no URL, so that nobody forgets to fill this in
            expires=latest_expiry(today),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One gated metric before and after."""

    metric: str
    unit: str
    old: float | None
    new: float | None
    ratio: float | None
    """new ÷ old."""
    effect: float | None
    """Relative, positive is better."""
    old_tolerance: float | None
    """None where it is not gated."""
    new_tolerance: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellChange:
    """One baseline before and after; None on the side where there is none."""

    baseline: str
    old: Baseline | None
    new: Baseline | None
    moves: tuple[Move, ...]
    lowerings: tuple[Lowering, ...]


def what_changed(
    old: Mapping[str, Baseline], new: Mapping[str, Baseline], *, today: str
) -> tuple[CellChange, ...]:
    """Every baseline that differs between two sets, by its place."""
    return tuple(
        CellChange(
            baseline=place,
            old=old.get(place),
            new=new.get(place),
            moves=_moves(old.get(place), new.get(place)),
            lowerings=lowerings(old.get(place), new.get(place), today=today),
        )
        for place in sorted(old.keys() | new.keys())
        if old.get(place) != new.get(place)
    )


def _moves(old: Baseline | None, new: Baseline | None) -> tuple[Move, ...]:
    gates = {**(old.gates if old else {}), **(new.gates if new else {})}
    return tuple(_move(old, new, metric, gate) for metric, gate in sorted(gates.items()))


def _move(old: Baseline | None, new: Baseline | None, metric: str, gate: Gate) -> Move:
    before, now = (level(each.starts, metric) if each else None for each in (old, new))
    gain = _gain(old.starts, new.starts, metric, gate) if old and new else None
    return Move(
        metric=metric,
        unit=gate.unit,
        old=before,
        new=now,
        ratio=now / before if before and now is not None else None,
        effect=None if gain is None else math.expm1(gain),
        old_tolerance=_tolerance(old, metric),
        new_tolerance=_tolerance(new, metric),
    )


def _tolerance(baseline: Baseline | None, metric: str) -> float | None:
    gate = baseline.gates.get(metric) if baseline else None
    return gate.tolerance if gate else None


def _gain(
    old: Sequence[StartRecord], new: Sequence[StartRecord], metric: str, gate: Gate
) -> float | None:
    """Logarithm of how many times better the new starts are; None where a side has none."""
    before, now = start_levels(old, metric), start_levels(new, metric)
    if not before or not now:
        return None
    difference = statistics.fmean(now) - statistics.fmean(before)
    return difference if gate.direction == "higher" else -difference


def lowerings(old: Baseline | None, new: Baseline | None, *, today: str) -> tuple[Lowering, ...]:
    """Every way in which `new` lets pass what `old` would not."""
    if old is None or (new is None and old.expired(today)):
        return ()
    place = old.place
    if new is None:
        return (Lowering(place, None, Rule.REMOVED, "the baseline is gone: nothing is judged"),)
    if differing := differences(new.fingerprint, old.fingerprint):
        message = f"another baseline in its place: {differing[0]} before the change"
        message = message.replace(" in the baseline before", " before")
        return (Lowering(place, None, Rule.REPLACED, message),)
    found = [
        *_of_metrics(old, new),
        *_of_starts(old, new),
        *_of_expiry(old, new),
        *_of_known(old, new, today),
        *_of_anchor(old, new),
        *_of_routing(old, new),
    ]
    return tuple(Lowering(place, metric, rule, message) for metric, rule, message in found)


_Found = tuple[str | None, Rule, str]


def _of_metrics(old: Baseline, new: Baseline) -> Iterator[_Found]:
    for metric, gate in sorted(old.gates.items()):
        now = new.gates.get(metric)
        if now is None:
            yield metric, Rule.UNGATED, "is judged no more"
            continue
        if now.tolerance > gate.tolerance:
            yield (
                metric,
                Rule.WIDENED,
                f"the tolerance is {percent(now.tolerance)}, was {percent(gate.tolerance)}",
            )
        if now.direction != gate.direction:
            yield metric, Rule.WIDENED, f"{now.direction} is better now, was {gate.direction}"
        yield from _worse(old.starts, new.starts, metric, gate, Rule.WORSE)


def _worse(
    old: Sequence[StartRecord],
    new: Sequence[StartRecord],
    metric: str,
    gate: Gate,
    rule: Rule,
) -> Iterator[_Found]:
    gain = _gain(old, new, metric, gate)
    if gain is None:
        if start_levels(old, metric):
            yield metric, rule, "has no value any more"
        return
    if -gain > math.log1p(gate.tolerance / 2) + _ROUNDING_LOG:
        before, now = level(old, metric), level(new, metric)
        change = f" ({100 * (now / before - 1):+.1f} %)" if before and now is not None else ""
        yield (
            metric,
            rule,
            (
                f"{quantity(before)} → {quantity(now, gate.unit)}{change} is worse by more than "
                f"half of the tolerance of {percent(gate.tolerance)}"
            ),
        )


def _of_starts(old: Baseline, new: Baseline) -> Iterator[_Found]:
    before = {start.start_id: _values(start.repeats) for start in old.starts}
    now = {start.start_id: _values(start.repeats) for start in new.starts}
    for start_id in sorted(before.keys() & now.keys()):
        if not before[start_id].items() <= now[start_id].items():
            yield (
                None,
                Rule.EDITED,
                f"the start {start_id} has other values than were recorded",
            )
    if len(new.starts) < min(len(old.starts), _ENOUGH_STARTS):
        yield None, Rule.THINNED, f"{len(new.starts)} starts, were {len(old.starts)}"


def _values(repeats: Sequence[Sample]) -> dict[tuple[int, str], float]:
    return {
        (index, metric): value
        for index, sample in enumerate(repeats)
        for metric, value in sample.values.items()
        if value is not None
    }


def _of_expiry(old: Baseline, new: Baseline) -> Iterator[_Found]:
    latest = max(old.expires, expiry(max(start.recorded_at for start in new.starts)))
    if new.expires > latest:
        yield (
            None,
            Rule.EXTENDED,
            f"expires on {new.expires}, at the latest {latest} by its newest start",
        )


def _of_known(old: Baseline, new: Baseline, today: str) -> Iterator[_Found]:
    accepted = {known.metric: known for known in old.known}
    latest = latest_expiry(today)
    for known in new.known:
        before = accepted.get(known.metric)
        if known == before:
            continue
        limit = before.expires if before else latest
        if known.expires > limit:
            yield (
                known.metric,
                Rule.EXTENDED,
                f"the known regression expires on {known.expires}, at the latest {limit}",
            )
        if before is not None and known.extent > before.extent:
            sizes = f"{percent(known.extent)}, was {percent(before.extent)}"
            yield known.metric, Rule.EXTENDED, f"the known regression may be {sizes}"


def _of_anchor(old: Baseline, new: Baseline) -> Iterator[_Found]:
    if old.anchor is None:
        return
    if new.anchor is None:
        yield None, Rule.ANCHOR, "the anchor is gone"
        return
    for metric, gate in sorted(old.gates.items()):
        for name, rule, message in _worse(
            old.anchor.starts, new.anchor.starts, metric, gate, Rule.ANCHOR
        ):
            yield name, rule, f"the anchor's {message}"


def _of_routing(old: Baseline, new: Baseline) -> Iterator[_Found]:
    if old.routing is None:
        return
    if new.routing is None:
        yield None, Rule.UNGATED, "the experts of its prompts are judged no more"
        return
    if old.routing == new.routing:
        return
    from pytest_moeperf.judge.routing import shift  # noqa: PLC0415 - numpy, only for counts

    verdict = shift(new.routing, old.routing)
    if verdict.outcome is not Outcome.PASS:
        yield None, Rule.REROUTED, verdict.reason


def unexcused(
    found: Iterable[Lowering],
    *,
    waivers: Iterable[Waiver],
    earlier: Iterable[Waiver],
    today: str,
) -> tuple[Lowering, ...]:
    """What no waiver of this very change excuses.

    `earlier` are those that were there before: one waiver must not lower a bar step by step.
    """
    counting = {
        (waiver.baseline, waiver.metric, waiver.rule)
        for waiver in set(waivers) - set(earlier)
        if today <= waiver.expires <= latest_expiry(today)
    }
    return tuple(
        each for each in found if (each.baseline, each.metric, each.rule.value) not in counting
    )


def due(baselines: Iterable[Baseline], waivers: Iterable[Waiver], *, today: str) -> Iterator[str]:
    """What has run out and waits for somebody; one line each."""
    for baseline in baselines:
        if baseline.expired(today):
            yield (
                f"{baseline.place}: expired on {baseline.expires} and is compared with nothing: "
                "`moeperf baseline refresh`"
            )
        for known in baseline.known:
            if known.expires < today:
                what = f"{baseline.place}: {known.metric}: the known regression"
                yield _run_out(what, known.expires, known.issue)
    for waiver in waivers:
        what = f"{waiver.baseline}: {waiver.metric or waiver.rule}: the waiver of {waiver.owner}"
        if waiver.expires < today:
            yield _run_out(what, waiver.expires, waiver.issue)
        elif waiver.expires > latest_expiry(today):
            yield (
                f"{what} expires on {waiver.expires}, later than {latest_expiry(today)}, and does "
                "not count"
            )


def _run_out(what: str, expires: str, issue: str) -> str:
    return f"{what} expired on {expires}: see {issue}, then `moeperf baseline prune`"
