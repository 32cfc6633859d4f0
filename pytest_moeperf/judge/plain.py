"""Verdicts that need no statistics: fixed bounds, and all the reasons not to judge."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from pytest_moeperf import stats
from pytest_moeperf.errors import UsageError
from pytest_moeperf.judge.values import median, usable
from pytest_moeperf.metrics import describe, quantity
from pytest_moeperf.records import Outcome, Sample, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_moeperf.compat import Difference

__all__ = [
    "incomparable",
    "invalid",
    "judge_bounds",
    "no_baseline",
    "recorded",
    "same_words",
    "unmeasured",
]


def judge_bounds(
    label: str,
    measured: Sequence[float],
    *,
    lower: float | None = None,
    upper: float | None = None,
    why: str = "",
) -> Verdict:
    """Judge the median of `measured` against fixed bounds: a ratio, or a calculated figure.

    `why` is a clause that says where the bounds come from. The bounds themselves pass.
    """
    if lower is None and upper is None:
        raise UsageError(f"{label} needs a lower or an upper bound")
    for bound in (lower, upper):
        if bound is not None and math.isnan(bound):
            raise UsageError(f"{label}: the bound nan is no number")
    if lower is not None and upper is not None and lower > upper:
        raise UsageError(f"{label}: the lower bound {lower} is above the upper bound {upper}")
    values = usable(measured, least=-math.inf)
    source = f": {why}" if why else ""
    if not values:
        return Verdict(
            metric=label,
            outcome=Outcome.INVALID,
            lower=lower,
            upper=upper,
            reason=f"{label} could not be measured",
        )
    middle = statistics.median(values)
    bounds = f"({_interval(lower, upper)}){source}"
    if lower is not None and middle < lower:
        outcome, position = Outcome.REGRESSED, f"below what is allowed {bounds}"
    elif upper is not None and middle > upper:
        outcome, position = Outcome.REGRESSED, f"above what is allowed {bounds}"
    else:
        outcome, position = Outcome.PASS, f"within what is allowed {bounds}"
    return Verdict(
        metric=label,
        outcome=outcome,
        measured=middle,
        spread=stats.half_range(values),
        values=tuple(values),
        lower=lower,
        upper=upper,
        reason=f"{label} is {quantity(middle)}, {position}",
    )


def incomparable(
    metric_key: str, repeats: Sequence[float | None], differing: Sequence[Difference]
) -> Verdict:
    """Refuse a comparison, naming every field that differs."""
    clauses = "; ".join(map(str, differing))
    reason = f"{metric_key} cannot be compared with its baseline: {clauses}"
    return _measured(metric_key, usable(repeats), Outcome.INCOMPARABLE, reason)


def cold_start(metric_key: str, repeats: Sequence[float | None]) -> Verdict:
    """Refuse to compare a start that compiled what later starts on the machine find in a cache."""
    values = usable(repeats)
    metric, _ = describe(metric_key)
    figure = quantity(median(values), metric.unit)
    reason = (
        f"{metric_key} is {figure} with empty caches: the engine compiled what its next start on "
        "this machine finds; run again to have it judged"
    )
    return _measured(metric_key, values, Outcome.INCOMPARABLE, reason)


def no_baseline(metric_key: str, repeats: Sequence[float | None], *, why: str = "") -> Verdict:
    """Say that nothing is stored; `why` is a clause for a baseline that does not count."""
    values = usable(repeats)
    if not values:
        return unmeasured(metric_key, repeats)
    metric, _ = describe(metric_key)
    figure = quantity(median(values), metric.unit)
    reason = (
        f"{metric_key} is {figure} and has no baseline"
        f"{' to be compared with' if not why else f': {why}'}"
    )
    return _measured(metric_key, values, Outcome.NO_BASELINE, reason)


def recorded(metric_key: str, repeats: Sequence[float | None]) -> Verdict:
    """Report a metric that is stored instead of judged; INVALID where there is nothing to store."""
    values = usable(repeats)
    if not values:
        return unmeasured(metric_key, repeats)
    metric, _ = describe(metric_key)
    figure = quantity(median(values), metric.unit)
    reason = f"{metric_key} is {figure}, recorded as a baseline and not judged"
    return _measured(metric_key, values, Outcome.RECORDED, reason)


def unmeasured(metric_key: str, repeats: Sequence[float | None]) -> Verdict:
    """Refuse to judge a metric without a value."""
    count = f"any of {len(repeats)} repeats" if repeats else "any repeat"
    reason = f"{metric_key} could not be measured in {count}"
    return _measured(metric_key, (), Outcome.INVALID, reason)


def same_words(name: str, now: str | None, stored: Sequence[str], *, recording: bool) -> Verdict:
    """Judge what a server tells of itself, in words, by what stored starts of it told."""
    before = " or ".join(map(repr, stored))
    if now is None and not stored:
        outcome, reason = Outcome.INCOMPARABLE, f"this server does not tell its {name}"
    elif now is None:
        outcome, reason = Outcome.REGRESSED, f"{name} is not told; it was {before}"
    elif recording:
        outcome, reason = Outcome.RECORDED, f"{name} is {now!r}"
    elif not stored:
        outcome, reason = Outcome.NO_BASELINE, f"{name} is {now!r}, and no stored start tells it"
    elif now not in stored:
        outcome, reason = Outcome.REGRESSED, f"{name} is {now!r}; it was {before}"
    else:
        outcome, reason = Outcome.PASS, f"{name} is {now!r}, as before"
    return Verdict(metric=name, outcome=outcome, reason=reason)


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


def _measured(key: str, values: Sequence[float], outcome: Outcome, reason: str) -> Verdict:
    metric, _ = describe(key)
    return Verdict(
        metric=key,
        outcome=outcome,
        unit=metric.unit,
        direction=metric.direction,
        measured=median(values) if values else None,
        spread=stats.half_range(values),
        reason=reason,
    )


def _interval(lower: float | None, upper: float | None) -> str:
    if lower is None:
        return f"at most {quantity(upper)}"
    if upper is None:
        return f"at least {quantity(lower)}"
    return f"{quantity(lower)} to {quantity(upper)}"
