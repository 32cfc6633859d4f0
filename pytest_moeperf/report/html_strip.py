"""The repeats of a figure as dots on a line, beside its baseline and what is allowed: geometry.

Lengths are in the user units of an SVG that is `WIDTH` wide; a template draws it.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pytest_moeperf.gate import repeats_of
from pytest_moeperf.metrics import quantity
from pytest_moeperf.report.verdict import bounds
from pytest_moeperf.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_moeperf.records import CellResult, StartRecord, Verdict

__all__ = ["Dot", "Lane", "Mark", "Strip", "Tick", "strip"]

WIDTH = 720
LEFT, RIGHT = 192, 704
"""Ends of the axis; left of it are the names of the lanes."""
TOP, AXIS = 36, 24
"""Room for the words above the lanes, where there are any, and for the numbers below them."""
BARE = 4
"""Room above the lanes without words."""
ROW, GAP = 10, 8
"""Height of one start, and from one lane to the next."""
TALLEST = 90
"""Height of a lane of many starts, whose rows move together."""
MARGIN = 0.06
"""Of the range of values, on both sides."""
TICKS = 4
LETTER = 6.2
"""Width of a letter, about."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One repeat."""

    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True)
class Lane:
    """All starts of one side."""

    name: str
    kind: Literal["now", "before"]
    y: float
    """Of the middle, for the name."""
    dots: tuple[Dot, ...]
    medians: tuple[tuple[float, float, float], ...]
    """x, and both ends in y, of each start's median."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line with a word above it."""

    x: float
    label: str
    label_x: float
    anchor: Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Tick:
    """A number of the axis."""

    x: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Everything to draw."""

    summary: str
    """The picture in words."""
    width: float
    height: float
    left: float
    right: float
    """Ends of the axis."""
    bottom: float
    """Of the lanes; there the axis is."""
    unit: str
    lanes: tuple[Lane, ...]
    ticks: tuple[Tick, ...]
    allowed: tuple[float, float] | None
    """x of both ends; None where there are no bounds."""
    limits: tuple[float, ...]
    """x of the bounds themselves; an open side has none."""
    limit_label: Mark | None
    expected: Mark | None


@dataclass(frozen=True, slots=True)
class _Side:
    name: str
    kind: Literal["now", "before"]
    starts: Sequence[Sequence[float]]
    of: str = "start"

    def named(self, number: int) -> str:
        """How the titles of a start's dots begin."""
        return f"{self.name}, start {number}: " if self.of == "start" else f"{self.name}: "


def strip(cell: CellResult, verdict: Verdict) -> Strip | None:
    """The picture of a verdict; None where no value of its metric is known."""
    sides = [side for side in _sides(cell, verdict) if side.starts]
    values = [value for side in sides for start in side.starts for value in start]
    if not values:
        return None
    known = [each for each in (verdict.expected, verdict.lower, verdict.upper) if each is not None]
    low, high = _range([*values, *known])

    def place(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (value - low) / (high - low), 1)

    lanes, bottom = _lanes(sides, place, verdict.unit, top=TOP if known else BARE)
    limits = tuple(place(each) for each in (verdict.lower, verdict.upper) if each is not None)
    return Strip(
        summary=_summary(sides, verdict),
        width=WIDTH,
        height=bottom + AXIS,
        left=LEFT,
        right=RIGHT,
        bottom=bottom,
        unit=verdict.unit,
        lanes=lanes,
        ticks=tuple(_ticks(low, high, place)),
        allowed=_allowed(verdict, place),
        limits=limits,
        limit_label=_label(statistics.mean(limits), f"allowed {bounds(verdict)}")
        if limits
        else None,
        expected=None
        if verdict.expected is None
        else _label(place(verdict.expected), f"expected {quantity(verdict.expected)}"),
    )


def _sides(cell: CellResult, verdict: Verdict) -> Iterator[_Side]:
    def of(starts: Sequence[StartRecord]) -> list[tuple[float, ...]]:
        found = (repeats_of(start, verdict.metric) for start in starts)
        return [repeats for repeats in found if repeats]

    if verdict.values:
        yield _Side("this run", "now", [verdict.values], of="repeat")
        return
    yield _Side("baseline", "before", verdict.stored)
    yield _Side("this run", "now", of(cell.starts))
    if verdict.paired:
        yield _Side("A/B: old engine", "before", of(cell.old))
        yield _Side("A/B: new engine", "now", of(cell.new))


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = MARGIN * (high - low) or 0.01 * abs(high) or 1.0
    return low - margin, high + margin


def _lanes(
    sides: Sequence[_Side], place: Callable[[float], float], unit: str, *, top: float
) -> tuple[tuple[Lane, ...], float]:
    lanes = []
    for side in sides:
        row = min(ROW, TALLEST / len(side.starts))
        height = max(2 * ROW, row * len(side.starts))
        first = top + (height - row * len(side.starts)) / 2
        rows = [round(first + (number + 0.5) * row, 1) for number in range(len(side.starts))]
        count = len(side.starts) if side.of == "start" else len(side.starts[0])
        lanes.append(
            Lane(
                name=f"{side.name} ({counted(count, side.of)})",
                kind=side.kind,
                y=round(top + height / 2, 1),
                dots=tuple(
                    Dot(
                        place(value),
                        y,
                        f"{side.named(number)}{quantity(value, unit)}",
                    )
                    for number, (start, y) in enumerate(zip(side.starts, rows, strict=True), 1)
                    for value in start
                ),
                medians=tuple(
                    (place(statistics.median(start)), y - row * 0.6, y + row * 0.6)
                    for start, y in zip(side.starts, rows, strict=True)
                ),
            )
        )
        top += height + GAP
    return tuple(lanes), round(top - GAP / 2, 1)


def _ticks(low: float, high: float, place: Callable[[float], float]) -> Iterator[Tick]:
    """Round numbers: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough)
    decimals = max(0, -math.floor(math.log10(step)))
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield Tick(place(number * step), f"{number * step:.{decimals}f}")


def _allowed(verdict: Verdict, place: Callable[[float], float]) -> tuple[float, float] | None:
    if verdict.lower is None and verdict.upper is None:
        return None
    return (
        LEFT if verdict.lower is None else place(verdict.lower),
        RIGHT if verdict.upper is None else place(verdict.upper),
    )


def _label(x: float, text: str) -> Mark:
    """Words centred on their line, or beside it where they would leave the picture."""
    half = len(text) * LETTER / 2
    if x + half > WIDTH:
        return Mark(x, text, min(x + 4, WIDTH), "end")
    if x - half < LEFT:
        return Mark(x, text, max(x - 4, LEFT), "start")
    return Mark(x, text, x, "middle")


def _summary(sides: Sequence[_Side], verdict: Verdict) -> str:
    parts = [
        f"{side.name} {quantity(min(values))} to {quantity(max(values), verdict.unit)}"
        for side in sides
        if (values := [value for start in side.starts for value in start])
    ]
    if verdict.expected is not None:
        parts.append(f"expected {quantity(verdict.expected, verdict.unit)}")
    if verdict.lower is not None or verdict.upper is not None:
        parts.append(f"allowed {bounds(verdict)}")
    return f"{verdict.metric}: {', '.join(parts)}"
