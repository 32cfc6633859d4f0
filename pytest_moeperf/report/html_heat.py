"""Experts × layers for a page: few experts as a table of numbers, many as a drawing; geometry.

A drawing has one path a level of load, not one shape an expert, and tells the numbers of several
neighbours at once: so a page with many layers of hundreds of experts stays small.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pytest_moeperf.balance import (
    ALERT,
    HEALTHY,
    ExpertCounts,
    deviations,
    largest_deviation,
    shares,
)
from pytest_moeperf.errors import RoutingError
from pytest_moeperf.report.heatmap import findings
from pytest_moeperf.wording import percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    import numpy.typing as npt

    from pytest_moeperf.records import RoutingRecord

    Levels: TypeAlias = npt.NDArray[np.int64]

__all__ = ["LEVELS", "Cell", "Drawing", "Heat", "Layer", "Zone", "heats"]

LEVELS = (
    "none",
    f"under {1 - ALERT:g}",
    f"{1 - ALERT:g} to {1 - HEALTHY:g}",
    f"{1 - HEALTHY:g} to {1 + HEALTHY:g} (healthy)",
    f"up to {1 + ALERT:g}",
    "up to 2",
    "up to 4",
    "over 4",
)
"""The steps of the scale, in multiples of the uniform share."""

MOST_NUMBERS = 16
"""Experts whose shares fit into a line as numbers."""
DRAWN, NARROWEST, WIDEST = 880, 2.0, 14.0
"""Width of a drawing, and of an expert in it where `DRAWN` is too little or too much."""
ROW = 14
LEFT, TOP, RIGHT, BOTTOM = 48, 20, 84, 4
"""Room for the numbers of layers, of experts, and for peaks."""
TICK = 36
"""From one number of an expert to the next, at the least."""
FEWEST_ZONES = 64
"""Groups of neighbours in a drawing, so that a mouse finds them."""
MOST_LISTED = 8
"""Loads of a zone that are told one by one."""
WORST = 3
"""Layers that are told in words."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One expert of one layer, where there is room for its number."""

    level: int
    """Index into `LEVELS`."""
    share: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A row, in words."""

    layer: int
    busiest: int
    busiest_share: str
    peak: str
    """Busiest ÷ mean."""
    least: int
    least_share: str
    alert: bool
    """Whether an expert is further from uniform than is published as healthy, by far."""
    y: float
    """Of the middle, in a drawing."""


@dataclass(frozen=True, slots=True)
class Zone:
    """Neighbours whose numbers show together, in experts and layers."""

    x: int
    y: int
    width: int
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What a template draws, in pixels unless it says otherwise."""

    width: float
    height: float
    left: float
    top: float
    row: float
    expert: float
    """Width of one."""
    paths: tuple[tuple[str, str], ...]
    """What to draw in this order: `h` and a level, or `none` to take away what is there; and
    strokes with an expert as the unit in x and a layer in y."""
    zones: tuple[Zone, ...]
    ticks: tuple[tuple[float, int], ...]
    """x and number of an expert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """One phase of one play."""

    phase: str
    tokens: int
    top_k: int
    experts: int
    error: str = ""
    """Why the counts cannot be true; then there is nothing else."""
    findings: tuple[str, ...] = ()
    worst: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    numbers: tuple[tuple[Cell, ...], ...] = ()
    """[layers][experts]; empty where the experts are drawn."""
    drawing: Drawing | None = None

    @property
    def levels(self) -> tuple[str, ...]:
        """What the steps of the scale are called."""
        return LEVELS


def heats(routing: RoutingRecord, *, zones: int) -> tuple[Heat, ...]:
    """The maps of prompt tokens and of generated ones; a drawing has up to about `zones` zones."""
    phases = [("prompt tokens (prefill)", routing.prefill_tokens, routing.prefill)]
    if routing.decode is not None:
        phases.append(("generated tokens (decode)", routing.decode_tokens, routing.decode))
    return tuple(_heat(routing, phase, tokens, rows, zones) for phase, tokens, rows in phases)


def _heat(
    routing: RoutingRecord, phase: str, tokens: int, rows: Sequence[Sequence[int]], zones: int
) -> Heat:
    heat = Heat(phase=phase, tokens=tokens, top_k=routing.top_k, experts=routing.experts)
    try:
        counts = ExpertCounts(
            counts=np.array(rows), tokens=tokens, top_k=routing.top_k, layers=routing.layers
        )
    except (RoutingError, ValueError) as error:
        return replace(heat, error=str(error))
    layers = tuple(_layers(counts))
    drawn = counts.experts > MOST_NUMBERS
    return replace(
        heat,
        experts=counts.experts,
        layers=layers,
        findings=findings(counts),
        worst=tuple(_worst(counts, layers)),
        numbers=() if drawn else tuple(_numbers(counts)),
        drawing=_drawing(counts, max(zones, FEWEST_ZONES)) if drawn else None,
    )


def _layers(counts: ExpertCounts) -> Iterator[Layer]:
    share = shares(counts.counts)
    alerts = largest_deviation(counts.counts) > ALERT
    for row, layer in enumerate(counts.layers):
        busiest, least = int(share[row].argmax()), int(share[row].argmin())
        yield Layer(
            layer=layer,
            busiest=busiest,
            busiest_share=percent(share[row, busiest]),
            peak=_times(share[row, busiest] * counts.experts),
            least=least,
            least_share=percent(share[row, least]),
            alert=bool(alerts[row]),
            y=TOP + ROW * (row + 0.5),
        )


def _worst(counts: ExpertCounts, layers: Sequence[Layer]) -> Iterator[str]:
    """The layers that are furthest from uniform, if any is further than is healthy."""
    off = largest_deviation(counts.counts)
    for row in np.argsort(-off, kind="stable")[:WORST]:
        if off[row] > HEALTHY:
            found = layers[row]
            yield (
                f"layer {found.layer}: expert {found.busiest} takes {found.busiest_share} of the "
                f"load, {found.peak} the uniform share; expert {found.least} takes "
                f"{found.least_share}"
            )


def _numbers(counts: ExpertCounts) -> Iterator[tuple[Cell, ...]]:
    share, off = shares(counts.counts), deviations(counts.counts)
    levels = _levels(counts)
    for row, layer in enumerate(counts.layers):
        yield tuple(
            Cell(
                level=int(levels[row, expert]),
                share=f"{100 * share[row, expert]:.1f}",
                title=(
                    f"layer {layer}, expert {expert}: {counts.counts[row, expert]:,} times, "
                    f"{percent(share[row, expert])}, {_times(1 + off[row, expert])} uniform"
                ),
            )
            for expert in range(counts.experts)
        )


def _levels(counts: ExpertCounts) -> Levels:
    """`[layers, experts]`: indices into `LEVELS`; both ends of what is healthy are healthy."""
    # A load at a bound must not pass it by the last digit of a division.
    off = deviations(counts.counts).round(9)
    above = (-1.0, -ALERT, -HEALTHY, HEALTHY, ALERT, 1.0, 3.0)
    steps = [off > each if each >= HEALTHY or each == -1 else off >= each for each in above]
    return np.asarray(np.sum(steps, axis=0, dtype=np.int64))


def _drawing(counts: ExpertCounts, zones: int) -> Drawing:
    expert = max(NARROWEST, min(WIDEST, DRAWN / counts.experts))
    every = 2 ** math.ceil(math.log2(TICK / expert))
    return Drawing(
        width=math.ceil(LEFT + expert * counts.experts + RIGHT),
        height=TOP + ROW * len(counts.layers) + BOTTOM,
        left=LEFT,
        top=TOP,
        row=ROW,
        expert=round(expert, 4),
        paths=_paths(counts),
        zones=tuple(_zones(counts, zones)),
        ticks=tuple(
            (round(LEFT + expert * number, 1), number) for number in range(0, counts.experts, every)
        ),
    )


def _paths(counts: ExpertCounts) -> tuple[tuple[str, str], ...]:
    """The usual level as whole rows; of the others, neighbours of one level as one stroke."""
    levels = _levels(counts)
    usual = int(np.bincount(levels.ravel()).argmax())
    rows = "".join(f"M0 {row}.5h{counts.experts}" for row in range(len(levels)))
    strokes = {level: _strokes(levels, level) for level in sorted(set(levels.ravel().tolist()))}
    # Where no token went is empty, but for a thin line: there the usual level is taken away.
    erased = [("none", strokes[0])] if 0 in strokes and usual else []
    others = [(f"h{level}", path) for level, path in strokes.items() if level != usual]
    return ((f"h{usual}", rows), *erased, *others)


def _strokes(levels: Levels, wanted: int) -> str:
    parts = []
    for row, found in enumerate(levels.tolist()):
        at: int | None = None
        first = 0
        for level, run in itertools.groupby(found):
            length = len(list(run))
            if level == wanted:
                # From the end of the stroke before: shorter than a place in the drawing.
                parts.append(f"M{first} {row}.5" if at is None else f"m{first - at} 0")
                parts.append(f"h{length}")
                at = first + length
            first += length
    return "".join(parts)


def _zones(counts: ExpertCounts, most: int) -> Iterator[Zone]:
    together = next(
        size
        for size in itertools.accumulate(itertools.repeat(2), lambda one, two: one * two, initial=1)
        if size >= counts.experts or len(counts.layers) * math.ceil(counts.experts / size) <= most
    )
    for row, layer in enumerate(counts.layers):
        for first in range(0, counts.experts, together):
            width = min(together, counts.experts - first)
            loads = 1 + deviations(counts.counts)[row, first : first + width]
            yield Zone(first, row, width, f"layer {layer}, {_loads(first, loads)}")


def _loads(first: int, loads: npt.NDArray[np.float64]) -> str:
    """Few one by one; of many those at both ends, for nobody counts to the eleventh."""
    if len(loads) == 1:
        return f"expert {first}: {_times(loads[0])} uniform"
    names = f"experts {first} to {first + len(loads) - 1}"
    if len(loads) <= MOST_LISTED:
        return f"{names}, × uniform: {', '.join(f'{each:.2g}' for each in loads)}"
    most, least = int(loads.argmax()), int(loads.argmin())
    return (
        f"{names}: most {_times(loads[most])} ({first + most}), "
        f"least {_times(loads[least])} ({first + least})"
    )


def _times(ratio: float) -> str:
    return f"{ratio:.2f} ×" if ratio < 10 else f"{ratio:.0f} ×"  # noqa: PLR2004 - three digits
