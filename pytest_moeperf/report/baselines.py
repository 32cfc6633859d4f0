"""What a change of baselines changes, for a terminal and for a pull request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_moeperf.baseline import NEVER
from pytest_moeperf.metrics import quantity
from pytest_moeperf.report.markup import code, escaped, table_line
from pytest_moeperf.report.verdict import signed_percent
from pytest_moeperf.wording import counted, percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_moeperf.baseline import Baseline
    from pytest_moeperf.records import RoutingRecord
    from pytest_moeperf.review import CellChange, Move

__all__ = ["markdown", "text"]

_COLUMNS = ("metric", "before", "after", "change", "tolerance")
_VISIBLE = 0.0005
"""A smaller relative change rounds to 0.0 %."""


def text(changes: Sequence[CellChange], *, unchanged: int) -> str:
    """A paragraph for each changed baseline, then the line that counts them."""
    blocks = ["\n".join(_lines(change)) for change in changes]
    return "\n\n".join([*blocks, _counts(changes, unchanged)]) + "\n"


def _lines(change: CellChange) -> Iterator[str]:
    yield change.baseline
    yield from (f"  {fact}" for fact in _facts(change))
    rows = [_COLUMNS, *map(_row, change.moves)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for metric, *figures in rows:
        columns = [f"{figure:>{width}}" for figure, width in zip(figures, widths[1:], strict=True)]
        yield f"    {metric:<{widths[0]}}  {'  '.join(columns)}".rstrip()
    for lowering in change.lowerings:
        subject = f"{lowering.metric}: " if lowering.metric else ""
        yield f"  ! lowered ({lowering.rule}): {subject}{lowering.message}"


def markdown(changes: Sequence[CellChange], *, unchanged: int) -> str:
    """One table of all gated metrics that changed, then the lowered bars, then who and why."""
    blocks = [f"### Baselines: {_counts(changes, unchanged)}"]
    rows = [
        (code(change.baseline), code(move.metric), *_row(move)[1:])
        for change in changes
        for move in change.moves
    ]
    if rows:
        heading = ("baseline", *_COLUMNS)
        ruler = ("---", "---", "--:", "--:", "--:", "--:")
        blocks.append("\n".join(table_line(row) for row in (heading, ruler, *rows)))
    lowered = [lowering for change in changes for lowering in change.lowerings]
    if lowered:
        blocks.append("**Lowered bars**")
        blocks.append(
            "\n".join(
                f"- {code(each.baseline)}{f' {code(each.metric)}' if each.metric else ''} "
                f"**{each.rule}**: {escaped(each.message)}"
                for each in lowered
            )
        )
    if changes:
        blocks.append(
            "\n".join(
                f"- {code(change.baseline)}: {escaped('; '.join(_facts(change)))}"
                for change in changes
            )
        )
    return "\n\n".join(blocks) + "\n"


def _counts(changes: Sequence[CellChange], unchanged: int) -> str:
    new = sum(change.old is None for change in changes)
    gone = sum(change.new is None for change in changes)
    lowered = sum(len(change.lowerings) for change in changes)
    counts = {
        "changed": len(changes) - new - gone,
        "new": new,
        "gone": gone,
        "unchanged": unchanged,
    }
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    bars = f"; {counted(lowered, 'lowered bar')}" if lowered else ""
    return f"{told or 'none'}{bars}"


def _facts(change: CellChange) -> Iterator[str]:
    old, new = change.old, change.new
    sides = [each for each in (old, new) if each is not None]
    prefix = "new: " if old is None else "gone: " if new is None else ""
    yield prefix + ", ".join(
        (
            _arrow([each.engine.label for each in sides]),
            _arrow([_starts(each) for each in sides]),
            f"expires {_arrow([each.expires.replace(NEVER, 'never') for each in sides])}",
        )
    )
    if new is not None and new.reason:
        yield f"reason: {new.reason}"
    if len({each.routing for each in sides}) > 1 or None in (old, new):
        yield from _routing([each.routing for each in sides if each.routing is not None])
    if len({_anchor(each) for each in sides}) > 1:
        yield f"anchor: {_arrow([_anchor(each) for each in sides])}"
    before = {known.metric for known in old.known} if old else set()
    for known in new.known if new else ():
        verb = "still accepts" if known.metric in before else "accepts"
        yield (
            f"{verb} {known.metric} worse by up to {percent(known.extent)} "
            f"until {known.expires}: {known.reason} ({known.issue})"
        )


def _routing(sides: Sequence[RoutingRecord]) -> Iterator[str]:
    """What became of the experts that the prompts take."""
    if not sides:
        return
    from pytest_moeperf.judge.routing import shift  # noqa: PLC0415 - numpy, only for counts
    from pytest_moeperf.report import heatmap  # noqa: PLC0415 - numpy, only for counts

    first, last = sides[0], sides[-1]
    story = heatmap.summary(last) if last is first else shift(last, first).reason
    yield f"experts of its prompts: {story}"


def _arrow(texts: Sequence[str]) -> str:
    return " → ".join(dict.fromkeys(texts))


def _starts(baseline: Baseline) -> str:
    sessions = len({start.session_id for start in baseline.starts})
    return f"{counted(len(baseline.starts), 'start')} of {counted(sessions, 'session')}"


def _anchor(baseline: Baseline) -> str:
    return "none" if baseline.anchor is None else baseline.anchor.engine.label


def _row(move: Move) -> tuple[str, str, str, str, str]:
    tolerances = [
        "none" if each is None else percent(each)
        for each in (move.old_tolerance, move.new_tolerance)
    ]
    if move.old is None:
        tolerances = tolerances[1:]
    if move.new is None:
        tolerances = tolerances[:1]
    return (
        move.metric,
        quantity(move.old, move.unit),
        quantity(move.new, move.unit),
        _change(move),
        _arrow(tolerances),
    )


def _change(move: Move) -> str:
    if move.ratio is None or move.effect is None:
        return "–"
    word = "" if abs(move.effect) < _VISIBLE else " better" if move.effect > 0 else " worse"
    return f"{signed_percent(move.ratio - 1)}{word}"
