"""Turns repeats and a reference into a verdict with a sentence that says why.

First version: one start is weighed against stored starts, unpaired. What varies between two
starts of one engine is what a verdict must stand out from, so a start is the sampling unit and
counts with the median of its repeats. REGRESSED needs all of: the median beyond the tolerance, a
distance that noise does not explain, and no repeat that was still fine.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_moeperf import stats
from pytest_moeperf.errors import UsageError
from pytest_moeperf.metrics import describe, quantity
from pytest_moeperf.policy import Policy, directed, policy_for
from pytest_moeperf.records import Direction, Outcome, Sample, StartRecord, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_moeperf.compat import Difference

__all__ = [
    "Policy",
    "Reference",
    "incomparable",
    "invalid",
    "judge_bounds",
    "judge_change",
    "policy_for",
    "recorded",
]


@dataclass(frozen=True, slots=True)
class Reference:
    """What a metric is compared with: its repeats, start by start, oldest first."""

    starts: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, starts: Sequence[StartRecord], metric_key: str) -> Reference:
        """Collect the metric from the valid repeats of stored starts."""
        return cls(
            tuple(
                tuple(
                    value
                    for repeat in start.repeats
                    if repeat.valid and (value := repeat.values.get(metric_key)) is not None
                )
                for start in starts
            )
        )


def judge_change(
    metric_key: str,
    repeats: Sequence[float | None],
    reference: Reference | None,
    policy: Policy,
) -> Verdict:
    """Judge the repeats of one start against stored starts.

    Repeats without the metric are left out. Values that are no finite numbers from 0 up raise
    ValueError: an error in measuring is never a verdict.
    """
    metric, _ = describe(metric_key)
    direction = directed(metric_key, metric.direction)
    values = _usable(repeats)
    starts = [_usable(start) for start in reference.starts] if reference else []
    starts = [start for start in starts if start]
    if not values:
        return _measured(metric_key, values, Outcome.INVALID, _unmeasured(metric_key, repeats))
    if not starts:
        reason = (
            f"{metric_key} is {quantity(_median(values), metric.unit)} "
            "and has no baseline to be compared with"
        )
        return _measured(metric_key, values, Outcome.NO_BASELINE, reason)
    change = _Change(
        key=metric_key,
        unit=metric.unit,
        direction=direction,
        values=values,
        starts=len(starts),
        tolerance_log=math.log1p(policy.tolerance),
        comparison=stats.compare(values, starts, noise=policy.noise, alpha=policy.alpha),
    )
    return change.verdict()


def judge_bounds(
    label: str,
    measured: Sequence[float],
    *,
    lower: float | None = None,
    upper: float | None = None,
    unit: str = "",
    why: str = "",
) -> Verdict:
    """Judge the median of `measured` against fixed bounds: a ratio, or a calculated figure.

    `why` is a clause that says where the bounds come from. The bounds themselves pass.
    """
    if lower is None and upper is None:
        raise UsageError(f"{label} needs a lower or an upper bound")
    if lower is not None and upper is not None and lower > upper:
        raise UsageError(f"{label}: the lower bound {lower} is above the upper bound {upper}")
    values = _usable(measured, least=-math.inf)
    source = f": {why}" if why else ""
    if not values:
        return Verdict(
            metric=label,
            outcome=Outcome.INVALID,
            unit=unit,
            lower=lower,
            upper=upper,
            reason=f"{label} could not be measured",
        )
    median = statistics.median(values)
    bounds = f"({_interval(lower, upper, unit)}){source}"
    if lower is not None and median < lower:
        outcome, position = Outcome.REGRESSED, f"below what is allowed {bounds}"
    elif upper is not None and median > upper:
        outcome, position = Outcome.REGRESSED, f"above what is allowed {bounds}"
    else:
        outcome, position = Outcome.PASS, f"within what is allowed {bounds}"
    return Verdict(
        metric=label,
        outcome=outcome,
        unit=unit,
        measured=median,
        spread=stats.half_range(values),
        lower=lower,
        upper=upper,
        reason=f"{label} is {quantity(median, unit)}, {position}",
    )


def incomparable(
    metric_key: str, repeats: Sequence[float | None], differing: Sequence[Difference]
) -> Verdict:
    """Refuse a comparison, naming every field that differs."""
    clauses = "; ".join(map(str, differing))
    reason = f"{metric_key} cannot be compared with its baseline: {clauses}"
    return _measured(metric_key, _usable(repeats), Outcome.INCOMPARABLE, reason)


def recorded(metric_key: str, repeats: Sequence[float | None]) -> Verdict:
    """Report a metric that is stored instead of judged; INVALID where there is nothing to store."""
    values = _usable(repeats)
    if not values:
        return _measured(metric_key, values, Outcome.INVALID, _unmeasured(metric_key, repeats))
    metric, _ = describe(metric_key)
    figure = quantity(_median(values), metric.unit)
    reason = f"{metric_key} is {figure}, recorded as a baseline and not judged"
    return _measured(metric_key, values, Outcome.RECORDED, reason)


def invalid(discarded: Sequence[Sample]) -> Verdict:
    """Refuse to judge a cell whose repeats were discarded, with what was found in them."""
    messages = dict.fromkeys(finding.message for sample in discarded for finding in sample.findings)
    count = f"{len(discarded)} repeat{'s were' if len(discarded) > 1 else ' was'} invalid"
    advice = dict.fromkeys(
        finding.advice for sample in discarded for finding in sample.findings if finding.advice
    )
    return Verdict(
        metric="all metrics",
        outcome=Outcome.INVALID,
        reason=f"{count}: {'; '.join(messages)}" if messages else "nothing was measured",
        notes=tuple(advice),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """One metric between its baseline and today."""

    key: str
    unit: str
    direction: Direction
    values: Sequence[float]
    starts: int
    tolerance_log: float
    comparison: stats.Comparison

    def verdict(self) -> Verdict:
        outcome, remark = self._decide()
        return Verdict(
            metric=self.key,
            outcome=outcome,
            unit=self.unit,
            direction=self.direction,
            measured=self.measured,
            spread=stats.half_range(self.values),
            expected=self.expected,
            lower=self.limit if self.direction == "higher" else None,
            upper=self.limit if self.direction == "lower" else None,
            change=self.measured / self.expected - 1 if self.expected else None,
            reason=f"{self.key} is {self._position()} ({self._figures()}){remark}",
        )

    @property
    def measured(self) -> float:
        return stats.from_log(self.comparison.measured_log)

    @property
    def expected(self) -> float:
        return stats.from_log(self.comparison.expected_log)

    @property
    def limit(self) -> float:
        """The worst value within the tolerance."""
        away = self.tolerance_log if self.direction == "lower" else -self.tolerance_log
        return stats.from_log(self.comparison.expected_log + away)

    def _worse_log(self, distance_log: float) -> float:
        """The distance on the log scale, positive where it is a loss."""
        return distance_log if self.direction == "lower" else -distance_log

    def _decide(self) -> tuple[Outcome, str]:
        worse = self._worse_log(self.comparison.distance_log)
        resolution = self.comparison.resolution_log
        count = f"{self.starts} stored start{'s' if self.starts > 1 else ''}"
        unpaired = f", unpaired: one start today against {count}"
        if worse < -max(self.tolerance_log, resolution) and self._all_beyond(sign=-1):
            return Outcome.IMPROVED, unpaired
        if worse <= self.tolerance_log:
            return Outcome.PASS, unpaired
        if worse <= resolution:
            visible = f"{100 * math.expm1(resolution):.0f} %"
            return Outcome.INCONCLUSIVE, (
                f", but against {count} only a loss of more than {visible} stands out from noise; "
                "record more starts"
            )
        if not self._all_beyond(sign=1):
            low, high = min(self.values), max(self.values)
            return Outcome.INCONCLUSIVE, (
                f", but the repeats disagree, from {quantity(low)} to {quantity(high, self.unit)}; "
                "run it again on a quiet machine"
            )
        return Outcome.REGRESSED, unpaired

    def _all_beyond(self, *, sign: int) -> bool:
        """Whether every repeat lies on the same side by most of the tolerance.

        A short disturbance hits one or two repeats of a start, a slower engine hits all. Most
        means three quarters: repeats of an engine just beyond the tolerance scatter around it.
        """
        least = 0.75 * self.tolerance_log
        expected = self.comparison.expected_log
        distances = (stats.log_median([value]) - expected for value in self.values)
        return all(sign * self._worse_log(item) >= least for item in distances)

    def _position(self) -> str:
        if self.measured == self.expected:
            return "as in the baseline"
        if not self.expected:
            return "above a baseline of 0"
        change = self.measured / self.expected - 1
        if change >= 1:
            return f"{quantity(change + 1)} times the baseline"
        side = "above" if change > 0 else "below"
        return f"{_percent(abs(change))} {side} the baseline"

    def _figures(self) -> str:
        bound = "up to" if self.direction == "lower" else "down to"
        return (
            f"{quantity(self.measured, self.unit)} against {quantity(self.expected, self.unit)}; "
            f"allowed {bound} {quantity(self.limit, self.unit)}"
        )


def _usable(values: Sequence[float | None], *, least: float = 0.0) -> list[float]:
    usable = [value for value in values if value is not None]
    for value in usable:
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"{value!r} is no measurement: expected a number from {least} up")
    return usable


def _median(values: Sequence[float]) -> float:
    return stats.from_log(stats.log_median(values))


def _measured(key: str, values: Sequence[float], outcome: Outcome, reason: str) -> Verdict:
    metric, _ = describe(key)
    return Verdict(
        metric=key,
        outcome=outcome,
        unit=metric.unit,
        direction=metric.direction,
        measured=_median(values) if values else None,
        spread=stats.half_range(values),
        reason=reason,
    )


def _unmeasured(key: str, repeats: Sequence[float | None]) -> str:
    return f"{key} could not be measured in any of {len(repeats)} repeats"


def _percent(ratio: float) -> str:
    """41 %, but 0.4 % where a whole number would hide it."""
    return f"{100 * ratio:.0f} %" if ratio >= 0.095 else f"{100 * ratio:.2g} %"  # noqa: PLR2004


def _interval(lower: float | None, upper: float | None, unit: str) -> str:
    if lower is None:
        return f"at most {quantity(upper, unit)}"
    if upper is None:
        return f"at least {quantity(lower, unit)}"
    return f"{quantity(lower)} to {quantity(upper, unit)}"
