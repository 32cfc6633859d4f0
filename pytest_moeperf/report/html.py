"""`report.html`: a session as one page that needs nothing beside it; the only user of jinja2.

The templates are part of the program. Whatever comes from a run is text to them: every value is
escaped, and what a browser would obey without showing it is written as an escape.
"""

from __future__ import annotations

import datetime as dt
import shlex
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pytest_moeperf.metrics import quantity
from pytest_moeperf.report import html_tables as tables
from pytest_moeperf.report.headline import Tone, headline, tone, urgent
from pytest_moeperf.report.html_strip import strip
from pytest_moeperf.report.json import public_url
from pytest_moeperf.report.model import time_line
from pytest_moeperf.report.verdict import bounds, chance, interval, measured, starts
from pytest_moeperf.wording import duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_moeperf.records import CellResult, EngineInstall, Sample, Verdict
    from pytest_moeperf.report.html_heat import Heat
    from pytest_moeperf.report.html_strip import Strip
    from pytest_moeperf.report.model import SessionReport

__all__ = ["to_html"]

ZONES = 1500
"""Groups of experts that answer to the mouse, of all drawings together."""
BAR = 680
"""Width of the bar of the session's time."""
SIGNS: Mapping[Tone, str] = {"failed": "✕", "open": "?", "good": "✓"}
"""Beside the words, for who looks for the red ones without seeing red."""


@dataclass(frozen=True, slots=True)
class _Phase:
    name: str
    seconds: str
    share: str
    x: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """A verdict in words, and as a picture."""

    metric: str
    outcome: str
    tone: Tone
    sign: str
    reason: str
    measured: str
    expected: str
    allowed: str
    change: str
    starts: str
    chance: str
    """Of so bad a figure by noise alone, with its limit."""
    notes: tuple[str, ...]
    strip: Strip | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """A cell with everything that the page says of it."""

    id: str
    suite: str
    label: str
    result: CellResult
    verdicts: tuple[_Verdict, ...]
    figures: tuple[tables.Figure, ...]
    warm_up: tuple[tables.WarmUp, ...]
    gpus: tuple[tables.GpuRow, ...]
    heats: tuple[Heat, ...]

    def told(self, *tones: Tone) -> tuple[_Verdict, ...]:
        """The verdicts of these tones."""
        return tuple(verdict for verdict in self.verdicts if verdict.tone in tones)


def to_html(report: SessionReport) -> str:
    """The page, without secrets; nothing in it refers to another file or host."""
    cells = _cells(report)
    return _template().render(
        report=report,
        headline=headline(report),
        signs=SIGNS,
        counts=[
            (outcome, count, tone(outcome, release=report.release))
            for outcome, count in report.outcomes.items()
        ],
        engines=[(engine.label, _place(engine)) for engine in report.engines],
        started=_date(report.started_at),
        duration=duration(report.duration_s),
        time_line=time_line(report),
        phases=tuple(_phases(report)),
        failed=_first(cells, report, "failed"),
        still_open=_first(cells, report, "open"),
        cells=cells,
        suites=_by_suite(cells),
        discarded=[(cell, sample) for cell in cells for sample in _discarded(cell)],
        options=shlex.join(report.options or ()),
        many_engines=len({cell.engine for cell in report.cells}) > 1,
        settings=tuple(tables.settings(report.cells)),
        bar_width=BAR,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("pytest_moeperf.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html")


def _visible(value: object) -> object:
    """Text with control, format and unpaired characters written as escapes.

    They would hide or turn around what stands beside them, or have no place in a document.
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(
        char if char.isprintable() or char.isspace() else ascii(char)[1:-1] for char in value
    )


def _cells(report: SessionReport) -> tuple[_Cell, ...]:
    routed = [each for each in reversed(report.cells) if each.routing is not None]
    counted = {_identity(each): each for each in routed}
    zones = ZONES // (2 * len(counted)) if counted else 0
    return tuple(
        _Cell(
            id=f"cell-{number}",
            suite=result.cell.partition("/")[0],
            label=result.label,
            result=result,
            verdicts=tuple(
                _verdict(result, each, release=report.release) for each in result.verdicts
            ),
            figures=tuple(tables.figures(result)),
            warm_up=tuple(tables.warm_up(result)),
            gpus=tuple(tables.gpu_rows(result)),
            # Several tests may judge one cell.
            heats=_heats(result, zones) if counted.get(_identity(result)) is result else (),
        )
        for number, result in enumerate(report.cells, 1)
    )


def _verdict(cell: CellResult, verdict: Verdict, *, release: bool) -> _Verdict:
    mood = tone(verdict.outcome, release=release)
    return _Verdict(
        metric=verdict.metric,
        outcome=str(verdict.outcome),
        tone=mood,
        sign=SIGNS[mood],
        reason=verdict.reason,
        measured=measured(verdict),
        expected=quantity(verdict.expected, verdict.unit),
        allowed=bounds(verdict),
        change=interval(verdict),
        starts=starts(verdict),
        chance=chance(verdict),
        notes=verdict.notes,
        strip=strip(cell, verdict),
    )


def _heats(cell: CellResult, zones: int) -> tuple[Heat, ...]:
    if cell.routing is None:
        return ()
    from pytest_moeperf.report.html_heat import heats  # noqa: PLC0415 - numpy

    return heats(cell.routing, zones=zones)


def _first(cells: Sequence[_Cell], report: SessionReport, wanted: Tone) -> tuple[_Cell, ...]:
    """The cells with a verdict of that tone, the most urgent first."""
    by_result = {id(cell.result): cell for cell in cells}
    found = (by_result[id(result)] for result, _ in urgent(report, wanted))
    return tuple({cell.id: cell for cell in found}.values())


def _by_suite(cells: Sequence[_Cell]) -> dict[str, list[tuple[_Cell, ...]]]:
    """The cells of every suite, those that several tests judged together."""
    suites: dict[str, dict[object, tuple[_Cell, ...]]] = {}
    for cell in cells:
        groups, key = suites.setdefault(cell.suite, {}), _identity(cell.result)
        groups[key] = (*groups.get(key, ()), cell)
    return {suite: list(groups.values()) for suite, groups in suites.items()}


def _identity(cell: CellResult) -> tuple[str, str, str | None]:
    """What is equal in the results of tests that judged the same measurement."""
    return cell.cell, cell.engine, cell.start.start_id if cell.start is not None else None


def _discarded(cell: _Cell) -> Sequence[Sample]:
    return [sample for sample in cell.result.discarded if sample.findings]


def _place(engine: EngineInstall) -> str:
    return public_url(engine.url) if engine.url else str(engine.python or "")


def _phases(report: SessionReport) -> Iterator[_Phase]:
    total_s, x = sum(report.phases.values()), 0.0
    for name, seconds in report.phases.items():
        share = seconds / total_s if total_s else 0.0
        yield _Phase(
            name=name,
            seconds=duration(seconds),
            share=f"{100 * share:.0f} %",
            x=round(x, 1),
            width=round(BAR * share, 1),
        )
        x += BAR * share


def _date(text: str) -> str:
    """`2026-01-02 03:04 UTC`; as it stands where it is no date."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return text
    if moment.tzinfo is None:
        return text
    return f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"
