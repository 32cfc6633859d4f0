"""The session as Markdown, for the step summary of a GitHub workflow."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from pytest_moeperf.metrics import quantity
from pytest_moeperf.report.model import BY_URGENCY
from pytest_moeperf.report.verdict import GOOD, bounds, measured, percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_moeperf.records import CellResult, Verdict
    from pytest_moeperf.report.model import SessionReport

__all__ = ["markdown"]

_COLUMNS = ("Cell", "Engine", "Metric", "Verdict", "Measured", "Expected", "Allowed", "Change")
_MINUTE_S = 60
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|~#@&!])")


def markdown(report: SessionReport) -> str:
    """What needs attention first, then one table a suite, then notes and the machine."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in report.outcomes.items())
    engines = ", ".join(engine.label for engine in report.engines)
    blocks = [
        f"## moeperf: {counts or 'nothing judged'}",
        f"{_code(report.hardware)} · {_text(engines)} · {_duration(report.duration_s)}",
        *_attention(report),
        *(block for suite, cells in report.suites.items() for block in _suite(suite, cells)),
        *_notes(report),
        *_machine(report),
    ]
    return "\n\n".join(blocks) + "\n"


def _attention(report: SessionReport) -> Iterator[str]:
    urgent = [
        (cell, verdict)
        for cell in report.cells
        for verdict in cell.verdicts
        if verdict.outcome not in GOOD
    ]
    urgent.sort(key=lambda pair: BY_URGENCY.index(pair[1].outcome))
    if urgent:
        yield "### Needs attention"
        yield "\n".join(line for cell, verdict in urgent for line in _finding(cell, verdict))


def _finding(cell: CellResult, verdict: Verdict) -> Iterator[str]:
    yield (
        f"- **{verdict.outcome}** {_code(cell.cell)} {_code(verdict.metric)} "
        f"on {_text(cell.engine)}: {_text(verdict.reason)}"
    )
    yield from (f"  - {_text(note)}" for note in verdict.notes)
    yield f"  - again: {_code('pytest ' + shlex.quote(cell.test))}"


def _suite(suite: str, cells: Sequence[CellResult]) -> Iterator[str]:
    rows = [row for cell in cells for row in _rows(cell)]
    yield f"### {_text(suite)}"
    yield "\n".join(_line(row) for row in (_COLUMNS, ("---",) * len(_COLUMNS), *rows))


def _rows(cell: CellResult) -> Iterator[tuple[str, ...]]:
    name = (_code(cell.cell.partition("/")[2]), _text(cell.engine))
    if not cell.verdicts:
        yield (*name, "", "observed", "", "", "", "")
    for verdict in cell.verdicts:
        strong = "" if verdict.outcome in GOOD else "**"
        yield (
            *name,
            _code(verdict.metric),
            f"{strong}{verdict.outcome}{strong}",
            _text(measured(verdict)),
            quantity(verdict.expected),
            bounds(verdict),
            percent(verdict.change),
        )


def _notes(report: SessionReport) -> Iterator[str]:
    if report.notes:
        yield "### Notes"
        yield "\n".join(f"- {_text(note)}" for note in report.notes)


def _machine(report: SessionReport) -> Iterator[str]:
    if report.machine:
        facts = "\n".join(f"- {_text(name)}: {_text(v)}" for name, v in report.machine.items())
        yield f"<details><summary>Machine</summary>\n\n{facts}\n\n</details>"


def _line(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"


def _text(text: str) -> str:
    """Escaped: reasons and notes may quote a baseline, and a pull request can bring one."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """A code span; a backtick would end it, and a bar would end a table's cell."""
    shown = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{shown}`"


def _duration(seconds: float) -> str:
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), _MINUTE_S)
    return f"{minutes} min {rest} s"
