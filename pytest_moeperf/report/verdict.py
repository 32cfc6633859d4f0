"""What a failing or skipped test says of a cell: pure text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_moeperf.metrics import quantity
from pytest_moeperf.outcomes import GOOD
from pytest_moeperf.records import CellResult, Outcome, Sample, Verdict
from pytest_moeperf.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_moeperf.records import Direction, NextStep

__all__ = [
    "bounds",
    "chance",
    "evidence",
    "failure",
    "interval",
    "measured",
    "one_line",
    "signed_percent",
    "starts",
]


def signed_percent(change: float | None) -> str:
    """A relative change with its sign, `–` when there is nothing to compare with."""
    return "–" if change is None else f"{change * 100:+.1f} %"


def bounds(verdict: Verdict) -> str:
    """What was allowed: `≤ 23.5`, `≥ 120` or `0.9 … 1.1`."""
    if verdict.lower is not None and verdict.upper is not None:
        return f"{quantity(verdict.lower)} … {quantity(verdict.upper)}"
    if verdict.upper is not None:
        return f"≤ {quantity(verdict.upper)}"
    if verdict.lower is not None:
        return f"≥ {quantity(verdict.lower)}"
    return "–"


def measured(verdict: Verdict) -> str:
    """The figure with its unit, and half the range of its repeats relative to it."""
    text = quantity(verdict.measured, verdict.unit)
    if not verdict.measured or verdict.spread is None:
        return text
    percentage = 100 * verdict.spread / verdict.measured
    return f"{text} ± {percentage:.{0 if percentage >= 10 else 1}f} %"  # noqa: PLR2004 - two digits


def interval(verdict: Verdict) -> str:
    """The change, with its 95 % interval where it has one: `+4.3 % (+3.3 … +5.3)`."""
    if verdict.interval is None:
        return signed_percent(verdict.change)
    # The effect counts for the better, the change as the metric is read.
    low, high = sorted(_as_change(end, verdict.direction) for end in verdict.interval)
    return f"{signed_percent(verdict.change)} ({100 * low:+.1f} … {100 * high:+.1f})"


def starts(verdict: Verdict) -> str:
    """How many fresh starts decided: `1`, or `3 + 3 A/B`."""
    if verdict.starts is None:
        return "–"
    return f"{verdict.starts} + {verdict.starts} A/B" if verdict.paired else str(verdict.starts)


def _as_change(effect: float, direction: Direction | None) -> float:
    if direction != "lower":
        return effect
    # Against an expected figure of 0 no multiple tells how much longer it is.
    return 1 / (1 + effect) - 1 if effect > -1 else math.inf


def evidence(verdict: Verdict, against: str | None) -> str:
    """What a verdict by statistics rests on; empty for any other.

    `against` names the old engine of an A/B.
    """
    if verdict.interval is None or verdict.starts is None:
        return ""
    of = counted(verdict.starts, "start")
    sampled = f"A/B with {against}, {of} each" if verdict.paired else f"unpaired, {of}"
    shown = f", p = {chance(verdict)}" if verdict.p is not None else ""
    return f"change {interval(verdict)}{shown}; {sampled}"


def chance(verdict: Verdict) -> str:
    """How likely noise alone is, and what was allowed: `2e-07 (limit 0.015)`; empty without."""
    if verdict.p is None:
        return ""
    if verdict.p_limit is None:
        return f"{verdict.p:.1g}"
    # Near the limit as many digits, so that a p within it never reads as one beyond.
    digits = 2 if verdict.p > verdict.p_limit / 10 else 1
    return f"{verdict.p:.{digits}g} (limit {verdict.p_limit:.2g})"


def one_line(result: CellResult) -> str:
    """The first verdict that is not good, as the reason of a skip."""
    for verdict in result.verdicts:
        if verdict.outcome not in GOOD:
            return f"{verdict.outcome}: {verdict.reason}"
    return f"{result.label}: {', '.join(verdict.outcome for verdict in result.verdicts)}"


def failure(result: CellResult, *, shown: Sequence[str] = ()) -> str:
    """The whole story of a failed cell: a paragraph a verdict, what is shown, what to type next."""
    lines = [f"{result.label} on {result.engine}"]
    notes: set[str] = set()
    for verdict in result.verdicts:
        lines.extend(_paragraph(verdict, result.against, noted=notes))
    lines.extend(_discarded(result.discarded))
    lines.extend(f"  {line}".rstrip() for line in shown)
    lines.extend(f"  next: {_typed(step)}" for step in result.next_steps)
    return "\n".join(lines)


def _typed(step: NextStep) -> str:
    """The command, then what for, apart enough to copy the command alone."""
    return f"{step.command}   ({step.purpose})" if step.purpose else step.command


def _paragraph(verdict: Verdict, against: str | None, *, noted: set[str]) -> list[str]:
    """A verdict with its reason; what differs is told once a cell, and added to `noted`."""
    lines = [f"  {verdict.outcome} {verdict.metric}"]
    if verdict.measured is not None:
        unit = f" {verdict.unit}" if verdict.unit else ""
        expected = (
            "" if verdict.expected is None else f", expected {quantity(verdict.expected)}{unit}"
        )
        bounded = verdict.lower is not None or verdict.upper is not None
        allowed = f", allowed {bounds(verdict)}{unit}" if bounded else ""
        lines[0] += f": {measured(verdict)}{expected}{allowed}"
    if verdict.reason and verdict.outcome not in GOOD:
        lines.append(f"    {verdict.reason}")
        if shown := evidence(verdict, against):
            lines.append(f"    {shown}")
    if verdict.outcome not in GOOD and verdict.outcome is not Outcome.INVALID:
        # The notes of an invalid cell are advice, and stand below with each discarded repeat.
        lines.extend(f"    differs: {note}" for note in verdict.notes if note not in noted)
        noted.update(verdict.notes)
    return lines


def _discarded(samples: Sequence[Sample]) -> list[str]:
    lines: list[str] = []
    for sample in samples:
        for finding in sample.findings:
            lines.append(f"  repeat with seed {sample.seed} discarded: {finding.message}")
            if finding.advice:
                lines.append(f"    {finding.advice}")
    return lines
