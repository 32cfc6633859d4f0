"""The summary in the terminal; the only module that uses rich."""

from __future__ import annotations

import io
import itertools
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pytest_moeperf.metrics import quantity
from pytest_moeperf.records import Outcome
from pytest_moeperf.report.model import time_line
from pytest_moeperf.report.verdict import bounds, evidence, measured, signed_percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pytest_moeperf.records import CellResult, RoutingRecord, Verdict
    from pytest_moeperf.report.heatmap import Line
    from pytest_moeperf.report.model import SessionReport

__all__ = ["render", "render_lines"]

STYLES: Mapping[Outcome, str] = {
    Outcome.PASS: "green",
    Outcome.IMPROVED: "bold green",
    Outcome.RECORDED: "cyan",
    Outcome.REGRESSED: "bold red",
    Outcome.INVALID: "red",
    Outcome.UNSTABLE: "red",
    Outcome.UNEXPECTED_PASS: "red",
    Outcome.NO_BASELINE: "red",
}
"""All other outcomes are yellow: somebody should look."""

HEADINGS = ("metric", "measured", "expected", "change", "allowed", "verdict")
NARROWEST_METRIC = 20
GAP = 2
INDENT = 2

Row = tuple[str, ...]


def render(report: SessionReport, *, width: int, color: bool, maps: bool = False) -> str:
    """One table a suite, the line that sums up and one on the time; ANSI codes only if `color`.

    With `maps`, cells whose experts were counted have their heat maps.
    """
    text = io.StringIO()
    console = _console(text, width=width, color=color)
    for suite, cells in report.suites.items():
        _print_suite(console, suite, cells, width=width, maps=maps)
    counts = [
        Text(f"{count} {outcome}", style=_style(outcome))
        for outcome, count in report.outcomes.items()
    ]
    console.print(Text(", ").join(counts))
    if report.duration_s:
        # Two stored runs are compared in no time.
        console.print(Text(time_line(report), style="dim"), soft_wrap=True)
    return _unpadded(text)


def render_lines(lines: Iterable[Line], *, width: int, color: bool) -> str:
    """Lines that another module laid out, such as a heat map; ANSI codes only if `color`."""
    text = io.StringIO()
    console = _console(text, width=width, color=color)
    for line in lines:
        console.print(Text.assemble(*line), soft_wrap=True)
    return _unpadded(text)


def _console(file: io.StringIO, *, width: int, color: bool) -> Console:
    return Console(
        file=file,
        width=width,
        # Whether there are colours is decided already; rich would look at the environment again.
        color_system="standard" if color else None,
        no_color=not color,
        force_terminal=color,
        highlight=False,
    )


def _unpadded(text: io.StringIO) -> str:
    """Without the blanks that rich fills lines with: no terminal needs them, a diff shows them."""
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def _print_suite(
    console: Console, suite: str, cells: Sequence[CellResult], *, width: int, maps: bool
) -> None:
    """The columns are as wide as the suite needs; a cell's name has a line of its own."""
    cells = [cell for cell in cells if cell.verdicts or cell.routing is not None]
    rows = [_row(verdict) for cell in cells for verdict in cell.verdicts]
    widths = [max(len(row[column]) for row in (HEADINGS, *rows)) for column in range(len(HEADINGS))]
    others = INDENT + sum(widths[1:]) + GAP * (len(widths) - 1)
    widths[0] = min(widths[0], max(NARROWEST_METRIC, width - others))
    # In a terminal that is too narrow, lines that run on are read more easily than cut columns.
    console.width = max(width, widths[0] + others)
    console.print(Text(suite, style="bold"))
    console.print(_table([(HEADINGS, "dim")], widths))
    shown: set[str] = set()
    for heading, group in itertools.groupby(cells, key=_heading):
        together = list(group)
        if heading in shown and not any(cell.verdicts for cell in together):
            continue
        console.print(Text(heading, style="italic"))
        for cell in together:
            for verdict in cell.verdicts:
                console.print(_table([(_row(verdict), _style(verdict.outcome))], widths))
                for line in _below(verdict, cell.against):
                    # Not wrapped: it stands below its row as one line, however narrow the window.
                    console.print(Text(f"{' ' * 2 * INDENT}{line}", style="dim"), soft_wrap=True)
        if (routing := together[0].routing) is not None and heading not in shown:
            shown.add(heading)
            _print_routing(console, routing, width=width, maps=maps)
    console.print()


def _heading(cell: CellResult) -> str:
    return f"{cell.label} on {cell.engine}"


def _print_routing(console: Console, routing: RoutingRecord, *, width: int, maps: bool) -> None:
    """One line, or with `maps` the whole picture."""
    from pytest_moeperf.report import heatmap  # noqa: PLC0415 - numpy, only for counts

    indent = " " * 2 * INDENT
    if not maps:
        console.print(Text(f"{indent}{heatmap.summary(routing)}", style="dim"), soft_wrap=True)
        return
    for line in heatmap.of_record(routing, width=width - len(indent)):
        console.print(Text.assemble(indent, *line), soft_wrap=True)


def _table(rows: Sequence[tuple[Row, str]], widths: Sequence[int]) -> Table:
    table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    for index, width in enumerate(widths):
        outer = index in {0, len(widths) - 1}
        table.add_column(
            width=width + (INDENT if index == 0 else 0),
            justify="left" if outer else "right",
            overflow="fold",
        )
    for row, style in rows:
        first, *middle, verdict = row
        table.add_row(Padding(first, (0, 0, 0, INDENT)), *middle, Text(verdict, style=style))
    return table


def _row(verdict: Verdict) -> Row:
    return (
        verdict.metric,
        measured(verdict),
        quantity(verdict.expected),
        signed_percent(verdict.change),
        bounds(verdict),
        str(verdict.outcome),
    )


def _below(verdict: Verdict, against: str | None) -> Iterator[str]:
    """What a verdict rests on, and why nothing could be said where the test does not tell."""
    if verdict.outcome is Outcome.INCONCLUSIVE:
        yield verdict.reason
    # A clean night's one start a cell is not worth a line.
    plain = verdict.outcome is Outcome.PASS and verdict.starts == 1 and not verdict.paired
    if not plain and (shown := evidence(verdict, against)):
        yield shown


def _style(outcome: Outcome) -> str:
    return STYLES.get(outcome, "yellow")
