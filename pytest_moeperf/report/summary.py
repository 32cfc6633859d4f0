"""The session as Markdown, for the step summary of a GitHub workflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_moeperf.metrics import quantity
from pytest_moeperf.outcomes import GOOD
from pytest_moeperf.report.headline import headline, urgent
from pytest_moeperf.report.markup import code, escaped, table_line
from pytest_moeperf.report.model import time_line
from pytest_moeperf.report.verdict import bounds, evidence, interval, measured, starts
from pytest_moeperf.wording import duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_moeperf.records import CellResult, NextStep, Verdict
    from pytest_moeperf.report.model import SessionReport

__all__ = ["markdown"]

_COLUMNS = (
    *("Cell", "Engine", "Metric", "Verdict", "Measured", "Expected", "Allowed"),
    *("Change (95 % interval)", "Starts"),
)


def markdown(report: SessionReport) -> str:
    """The headline, what needs attention, then one table a suite, then notes and the machine."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in report.outcomes.items())
    engines = ", ".join(engine.label for engine in report.engines)
    facts = (escaped(counts), code(report.hardware), escaped(engines), duration(report.duration_s))
    blocks = [
        f"## moeperf: {escaped(headline(report).text)}",
        " · ".join(filter(None, facts)),
        *_attention(report),
        *(block for suite, cells in report.suites.items() for block in _suite(suite, cells)),
        time_line(report),
        *_notes(report),
        *_machine(report),
    ]
    return "\n\n".join(blocks) + "\n"


def _attention(report: SessionReport) -> Iterator[str]:
    """Each cell once, with all its verdicts that are not good and what to type next."""
    found = [*urgent(report, "failed"), *urgent(report, "open")]
    if found:
        yield "### Needs attention"
        lines: list[str] = []
        for cell in {id(cell): cell for cell, _ in found}.values():
            for of, verdict in found:
                lines.extend(_finding(cell, verdict) if of is cell else ())
            lines.extend(map(_step, cell.next_steps))
        yield "\n".join(lines)


def _finding(cell: CellResult, verdict: Verdict) -> Iterator[str]:
    yield (
        f"- **{verdict.outcome}** {code(cell.cell)} {code(verdict.metric)} "
        f"on {escaped(cell.engine)}: {escaped(verdict.reason)}"
    )
    if shown := evidence(verdict, cell.against):
        yield f"  - {escaped(shown)}"
    yield from (f"  - {escaped(note)}" for note in verdict.notes)


def _step(step: NextStep) -> str:
    return f"  - next: {code(step.command)}{f' ({escaped(step.purpose)})' if step.purpose else ''}"


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
            interval(verdict),
            starts(verdict),
        )


def _notes(report: SessionReport) -> Iterator[str]:
    if report.remarks:
        yield "### Notes"
        yield "\n".join(f"- {escaped(remark)}" for remark in report.remarks)


def _machine(report: SessionReport) -> Iterator[str]:
    if report.machine:
        facts = "\n".join(f"- {escaped(name)}: {escaped(v)}" for name, v in report.machine.items())
        yield f"<details><summary>Machine</summary>\n\n{facts}\n\n</details>"
