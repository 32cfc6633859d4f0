"""A session in one sentence: what failed and why, or that nothing did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pytest_moeperf.outcomes import GOOD, failing
from pytest_moeperf.report.model import BY_URGENCY
from pytest_moeperf.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_moeperf.records import CellResult, Outcome, Verdict
    from pytest_moeperf.report.model import SessionReport

__all__ = ["Headline", "Tone", "headline", "tone", "urgent"]

Tone = Literal["failed", "open", "good"]
"""`open`: nothing failed, and somebody should look."""


@dataclass(frozen=True, slots=True)
class Headline:
    """What a reader who reads one line reads."""

    tone: Tone
    text: str


def tone(outcome: Outcome, *, release: bool) -> Tone:
    """What an outcome meant to its test."""
    if outcome in failing(release=release):
        return "failed"
    return "good" if outcome in GOOD else "open"


def urgent(report: SessionReport, wanted: Tone) -> tuple[tuple[CellResult, Verdict], ...]:
    """The verdicts of that tone, the most urgent first, with their cells."""
    found = [
        (cell, verdict)
        for cell in report.cells
        for verdict in cell.verdicts
        if tone(verdict.outcome, release=report.release) == wanted
    ]
    return tuple(sorted(found, key=lambda pair: BY_URGENCY.index(pair[1].outcome)))


def headline(report: SessionReport) -> Headline:
    """The sentence; of several failures it tells the most urgent one."""
    told = _headline(report)
    if report.finished:
        return told
    tone: Tone = "open" if told.tone == "good" else told.tone
    return Headline(tone, f"Not finished, tests were still to run. {told.text}")


def _headline(report: SessionReport) -> Headline:
    failed, still_open = urgent(report, "failed"), urgent(report, "open")
    unmeasured = len(report.unmeasured)
    lost = f"{counted(unmeasured, 'test')} failed without a verdict" if unmeasured else ""
    total = sum(report.outcomes.values())
    if failed:
        text = _failures(failed, total)
        return Headline("failed", f"{lost}; {text}" if lost else text)
    if not total:
        return Headline("failed" if lost else "open", lost or "Nothing was judged")
    counts = _counts(verdict for _, verdict in still_open)
    if lost:
        others = f"of {total} verdicts none failed" if total > 1 else "the only verdict did not"
        return Headline("failed", f"{lost}; {others}")
    if still_open:
        of = "the only verdict" if total == 1 else f"{len(still_open)} of {total} verdicts"
        verb = "is" if len(still_open) == 1 else "are"
        return Headline("open", f"Nothing failed, but {of} {verb} open: {counts}")
    named = ", ".join(f"{count} {outcome}" for outcome, count in report.outcomes.items())
    return Headline("good", f"Nothing failed: {named}")


def _failures(failed: Sequence[tuple[CellResult, Verdict]], total: int) -> str:
    cell, verdict = failed[0]
    how_many = "The only verdict" if total == 1 else f"{len(failed)} of {total} verdicts"
    first = "" if len(failed) == 1 else " First of all"
    reason = verdict.reason or f"{verdict.metric} is {verdict.outcome}"
    joined = f".{first}, " if first else ": "
    return f"{how_many} failed{joined}{cell.label} on {cell.engine}: {reason}"


def _counts(verdicts: Iterable[Verdict]) -> str:
    counts = Counter(verdict.outcome for verdict in verdicts)
    return ", ".join(f"{counts[each]} {each}" for each in BY_URGENCY if counts[each])
