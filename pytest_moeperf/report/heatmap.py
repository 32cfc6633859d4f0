"""Experts × layers as lines of a terminal: a block for each expert, as high as its load.

Without colours the blocks say all; colours repeat what they say. Where a line is too narrow for all
experts, a block stands for the busiest of several neighbours, for the mean would hide it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pytest_moeperf.balance import (
    ALERT,
    HEALTHY,
    collapses,
    dead_experts,
    deviations,
    largest_deviation,
    max_over_mean,
    shares,
)
from pytest_moeperf.balance.record import total_of
from pytest_moeperf.wording import counted, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_moeperf.balance import ExpertCounts
    from pytest_moeperf.records import RoutingRecord

__all__ = ["Line", "Span", "findings", "heat_map", "of_record", "plain", "summary"]

BLOCKS = "▁▂▃▄▅▆▇█"
UNUSED = "·"
UNIFORM = 4
"""Height of the block of an expert with exactly its share; twice that share fills the line."""

NUMBER, WIDE, NARROW = 7, 2, 1
"""Columns of an expert: with its share in %, a block that is easily seen, or just a block."""
LABEL, PEAK, MARK = 5, 7, 2
"""Columns of the layer, of max ÷ mean, and of the sign that somebody should look."""
TICK = 8
"""Columns from one number in the heading to the next, at the least."""
MOST_TOLD = 8
"""Findings, and experts of one finding, that are told one by one; more are counted."""


class Span(NamedTuple):
    """A piece of a line in one style, in the words that rich has for it; empty for none."""

    text: str
    style: str = ""


Line = tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class _Grid:
    """How the experts of a layer are laid out in a line."""

    experts: int
    together: int
    """Neighbours that share a cell."""
    cell: int
    """Columns of a cell."""

    @property
    def firsts(self) -> range:
        """The first expert of each cell."""
        return range(0, self.experts, self.together)


def heat_map(counts: ExpertCounts, *, width: int, legend: bool = True) -> tuple[Line, ...]:
    """A line a layer below a heading, then what the signs mean, then what is wrong in words."""
    grid = _grid(counts.experts, width - LABEL - 1 - PEAK - MARK)
    explained = ((), *_legend(grid)) if legend else ()
    told = ((Span(text, "bold red"),) for text in findings(counts))
    return (*_heading(counts, grid), *_layers(counts, grid), *explained, *told)


def of_record(routing: RoutingRecord, *, width: int) -> tuple[Line, ...]:
    """The heat map of prefill and decode together."""
    return heat_map(total_of(routing), width=width)


def summary(routing: RoutingRecord) -> str:
    """`4 layers of 8 experts, top 2, 1,024 + 96 tokens: peak 1.42× in layer 3`."""
    counts = total_of(routing)
    peaks = max_over_mean(counts.counts)
    row = int(peaks.argmax())
    return (
        f"{counted(len(counts.layers), 'layer')} of {routing.experts} experts, "
        f"top {routing.top_k}, {routing.prefill_tokens:,} + {routing.decode_tokens:,} tokens: "
        f"peak {_times(float(peaks[row]))} in layer {counts.layers[row]}"
    )


def plain(lines: Iterable[Line]) -> list[str]:
    """Their text alone."""
    return ["".join(span.text for span in line).rstrip() for line in lines]


def _grid(experts: int, columns: int) -> _Grid:
    for cell in (NUMBER, WIDE, NARROW):
        if experts * cell <= columns:
            return _Grid(experts, 1, cell)
    least = math.ceil(experts / max(columns, 1))
    # Cells of equal size, where that does not cost half of them.
    even = (size for size in range(least, 2 * least) if experts % size == 0)
    return _Grid(experts, next(even, least), NARROW)


def _heading(counts: ExpertCounts, grid: _Grid) -> Iterator[Line]:
    yield (
        Span("experts × layers", "bold"),
        Span(
            f"  {counted(counts.tokens, 'token')}, top {counts.top_k} of {counts.experts}, "
            f"uniform is {percent(1 / counts.experts)}"
        ),
    )
    every = math.ceil(TICK / grid.cell)
    ticks = "".join(f"{expert:<{every * grid.cell}}" for expert in grid.firsts[::every])
    columns = len(grid.firsts) * grid.cell
    yield (Span(f"{'layer':>{LABEL}} {ticks[:columns]:<{columns}}{'peak':>{PEAK}}", "dim"),)


def _layers(counts: ExpertCounts, grid: _Grid) -> Iterator[Line]:
    rows = zip(
        counts.layers,
        shares(counts.counts).tolist(),
        deviations(counts.counts).tolist(),
        max_over_mean(counts.counts).tolist(),
        (largest_deviation(counts.counts) > ALERT).tolist(),
        strict=True,
    )
    for layer, share, deviation, peak, alert in rows:
        yield (
            Span(f"{layer:>{LABEL}} "),
            *_merged(_cells(share, deviation, grid)),
            Span(f"{_times(peak):>{PEAK}}"),
            *([Span(" !", "bold red")] if alert else ()),
        )


def _times(peak: float) -> str:
    return f"{peak:.2f}×" if peak < 10 else f"{peak:.0f}×"  # noqa: PLR2004 - three digits


def _cells(share: Sequence[float], deviation: Sequence[float], grid: _Grid) -> Iterator[Span]:
    for first in grid.firsts:
        last = min(first + grid.together, grid.experts)
        busiest = max(range(first, last), key=lambda expert: share[expert])
        block, style = _block(deviation[busiest]), _style(deviation[busiest])
        if grid.cell == NUMBER:
            yield Span(f"{block}{100 * share[busiest]:>5.1f} ", style)
        else:
            yield Span(block * grid.cell, style)


def _merged(spans: Iterator[Span]) -> Iterator[Span]:
    """Neighbours of one style as one span."""
    text, style = next(spans)
    for span in spans:
        if span.style != style:
            yield Span(text, style)
            text, style = span
        else:
            text += span.text
    yield Span(text, style)


def _block(deviation: float) -> str:
    if deviation <= -1:
        return UNUSED
    height = round(UNIFORM * (1 + deviation))
    return BLOCKS[min(max(height, 1), len(BLOCKS)) - 1]


def _style(deviation: float) -> str:
    """Cold below, warm above; plain green is healthy."""
    if abs(deviation) <= HEALTHY:
        return "green"
    if abs(deviation) <= ALERT:
        return "yellow" if deviation > 0 else "cyan"
    return "bold red" if deviation > 0 else "blue"


def _legend(grid: _Grid) -> Iterator[Line]:
    steps = ((-1.0, "none"), (-0.75, "1/4"), (0.0, "uniform"), (0.5, "1.5×"), (1.0, "2× or more"))
    yield tuple(
        span
        for deviation, name in steps
        for span in (Span(_block(deviation), _style(deviation)), Span(f" {name}  "))
    )
    yield (
        Span(f"peak: busiest expert ÷ mean   !: an expert is over {100 * ALERT:.0f} % off", "dim"),
    )
    if grid.together > 1:
        yield (Span(f"a block is the busiest of {grid.together} experts", "dim"),)


def findings(counts: ExpertCounts) -> tuple[str, ...]:
    """Collapsed layers, then experts that no token took, in words; of many the rest is counted."""
    told = [found.message for found in collapses(counts)]
    dead: dict[int, list[int]] = {}
    for layer, expert in dead_experts(counts) or ():
        dead.setdefault(layer, []).append(expert)
    told += [
        f"layer {layer}: no token took {_names(experts, of=counts.experts)}"
        for layer, experts in dead.items()
    ]
    more = len(told) - MOST_TOLD
    return (*told[:MOST_TOLD], *([f"… and {more} findings more"] if more > 0 else ()))


def _names(experts: Sequence[int], *, of: int) -> str:
    if len(experts) > MOST_TOLD:
        return f"{len(experts)} of {of} experts"
    return f"expert{'s' if len(experts) > 1 else ''} {', '.join(map(str, experts))}"
