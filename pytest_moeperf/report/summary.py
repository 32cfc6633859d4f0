"""The session as Markdown, for the step summary of a GitHub workflow."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pytest_moeperf.metrics import quantity
from pytest_moeperf.report.markup import code, escaped, table_line
from pytest_moeperf.report.model import BY_URGENCY, time_line
from pytest_moeperf.report.verdict import (
    GOOD,
    bounds,
    evidence,
    interval,
    measured,
    percent,
    starts,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_moeperf.records import CellResult, Verdict
    from pytest_moeperf.report.model import SessionReport

__all__ = ["markdown"]

_COLUMNS = (
    *("Cell", "Engine", "Metric", "Verdict", "Measured", "Expected", "Allowed"),
    *("Change (95 % interval)", "Starts"),
)
_MINUTE_S = 60


def markdown(report: SessionReport) -> str:
    """What needs attention first, then one table a suite, then notes and the machine."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in report.outcomes.items())
    engines = ", ".join(engine.label for engine in report.engines)
    blocks = [
        f"## moeperf: {counts or 'nothing judged'}",
        f"{code(report.hardware)} · {escaped(engines)} · {_duration(report.duration_s)}",
        *_attention(report),
        *(block for suite, cells in report.suites.items() for block in _suite(suite, cells)),
        time_line(report),
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
        f"- **{verdict.outcome}** {code(cell.cell)} {code(verdict.metric)} "
        f"on {escaped(cell.engine)}: {escaped(verdict.reason)}"
    )
    if shown := evidence(verdict, cell.against):
        yield f"  - {escaped(shown)}"
    yield from (f"  - {escaped(note)}" for note in verdict.notes)
    yield f"  - again: {code('pytest ' + shlex.quote(cell.test))}"


def _suite(suite: str, cells: Sequence[CellResult]) -> Iterator[str]:
    rows = [row for cell in cells for row in _rows(cell)]
    yield f"### {escaped(suite)}"
    yield "\n".join(table_line(row) for row in (_COLUMNS, ("---",) * len(_COLUMNS), *rows))


def _rows(cell: CellResult) -> Iterator[tuple[str, ...]]:
    name = (code(cell.cell.partition("/")[2]), escaped(cell.engine))
    if not cell.verdicts:
        yield (*name, "", "observed", *[""] * (len(_COLUMNS) - len(name) - 2))
    for verdict in cell.verdicts:
        strong = "" if verdict.outcome in GOOD else "**"
        yield (
            *name,
            code(verdict.metric),
            f"{strong}{verdict.outcome}{strong}",
            escaped(measured(verdict)),
            quantity(verdict.expected),
            bounds(verdict),
            interval(verdict) if verdict.interval else percent(verdict.change),
            starts(verdict),
        )


def _notes(report: SessionReport) -> Iterator[str]:
    if report.notes:
        yield "### Notes"
        yield "\n".join(f"- {escaped(note)}" for note in report.notes)


def _machine(report: SessionReport) -> Iterator[str]:
    if report.machine:
        facts = "\n".join(f"- {escaped(name)}: {escaped(v)}" for name, v in report.machine.items())
        yield f"<details><summary>Machine</summary>\n\n{facts}\n\n</details>"


def _duration(seconds: float) -> str:
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), _MINUTE_S)
    return f"{minutes} min {rest} s"
