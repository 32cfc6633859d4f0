"""What a page shows in tables: rows of words from the cells of a session."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_moeperf.gate import repeats_of
from pytest_moeperf.metrics import KEYS, describe, quantity
from pytest_moeperf.record_form import public_environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pytest_moeperf.records import CellResult, GpuReading, Sample, StartRecord

__all__ = ["Figure", "GpuRow", "Setting", "WarmUp", "figures", "gpu_rows", "settings", "warm_up"]


WARMING = ("ttft_ms.p50", "itl_token_ms.p50", "output_throughput")
"""What shows how slow a cold server is; the other throughputs say the same as the last."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric in all valid repeats of this run."""

    metric: str
    unit: str
    median: str
    lowest: str
    highest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRow:
    """One GPU in all plays of one cell on one side: medians, but the lowest clock is the lowest."""

    side: str
    uuid: str
    sm_clock: str
    sm_clock_min: str
    memory_clock: str
    power: str
    temperature: str
    utilisation: str
    memory: str
    remarks: tuple[str, ...]
    """What held its clocks down, and what else was on it."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """A figure of the plays before the repeats, the cold one first, and of the repeats."""

    metric: str
    unit: str
    plays: tuple[str, ...]
    warm: str
    first_over_warm: str


@dataclass(frozen=True, slots=True)
class Setting:
    """An entry of the environment of servers, with all values that it had."""

    name: str
    values: tuple[tuple[str, int], ...]
    """Each with the number of starts that had it, the usual one first."""


def figures(cell: CellResult) -> Iterator[Figure]:
    """Every metric that was measured, in the order of the documents; those of an A/B apart."""
    for key in KEYS:
        values = _values(cell.starts, key)
        if values:
            yield Figure(
                metric=key,
                unit=describe(key)[0].unit,
                median=quantity(statistics.median(values)),
                lowest=quantity(min(values)),
                highest=quantity(max(values)),
            )


def _values(starts: Iterable[StartRecord], key: str) -> list[float]:
    return [value for start in starts for value in repeats_of(start, key)]


def warm_up(cell: CellResult) -> Iterator[WarmUp]:
    """The figures that are kept of the first start's plays before the repeats."""
    start = cell.start
    if start is None or not start.warmup:
        return
    for key in WARMING:
        plays = [play.values.get(key) for play in start.warmup]
        warm = repeats_of(start, key)
        if plays[0] is None:
            continue
        middle = statistics.median(warm) if warm else None
        yield WarmUp(
            metric=key,
            unit=describe(key)[0].unit,
            plays=tuple(quantity(value) for value in plays),
            warm=quantity(middle),
            first_over_warm=f"{plays[0] / middle:.2f} ×" if middle else "–",
        )


def gpu_rows(cell: CellResult) -> Iterator[GpuRow]:
    """The GPUs of each side, if they told anything."""
    sides = (
        ("this run", cell.starts),
        ("A/B: old engine", cell.old),
        ("A/B: new engine", cell.new),
    )
    for side, starts in sides:
        readings: dict[str, list[GpuReading]] = {}
        for sample in _samples(starts):
            for reading in sample.gpus:
                readings.setdefault(reading.uuid, []).append(reading)
        yield from (_gpu_row(side, uuid, readings[uuid]) for uuid in sorted(readings))


def _samples(starts: Iterable[StartRecord]) -> Iterator[Sample]:
    return (sample for start in starts for sample in start.repeats)


def _gpu_row(side: str, uuid: str, readings: Sequence[GpuReading]) -> GpuRow:
    def middle(name: str, unit: str, *, times: float = 1) -> str:
        known = [value for each in readings if (value := getattr(each, name)) is not None]
        return quantity(times * statistics.median(known), unit) if known else "–"

    lowest = [each.sm_clock_mhz_min for each in readings if each.sm_clock_mhz_min is not None]
    return GpuRow(
        side=side,
        uuid=uuid,
        sm_clock=middle("sm_clock_mhz", "MHz"),
        sm_clock_min=quantity(min(lowest), "MHz") if lowest else "–",
        memory_clock=middle("memory_clock_mhz", "MHz"),
        power=middle("power_w", "W"),
        temperature=middle("temperature_c", "°C"),
        utilisation=middle("utilisation", "%", times=100),
        memory=middle("memory_used_gib", "GiB"),
        remarks=tuple(_remarks(readings)),
    )


def _remarks(readings: Sequence[GpuReading]) -> Iterator[str]:
    reasons = sorted({reason for each in readings for reason in each.throttled})
    for reason in reasons:
        most = max(each.throttled.get(reason, 0.0) for each in readings)
        yield f"clocks held down by {reason} in up to {100 * most:.0f} % of a play"
    foreign = dict.fromkeys(process for each in readings for process in each.foreign)
    if foreign:
        yield f"also on it: {', '.join(foreign)}"
    if not all(each.idle_before for each in readings):
        yield "busy before a play"
    if not any(each.samples for each in readings):
        yield "its driver told nothing"


def settings(cells: Iterable[CellResult]) -> Iterator[Setting]:
    """The environment of all starts of the engines under test, without secrets."""
    seen: dict[str, Counter[str]] = {}
    for start in _distinct(cells):
        shown: Mapping[str, str] = public_environment(start.environment)
        for name, value in shown.items():
            seen.setdefault(name, Counter())[value] += 1
    for name in sorted(seen):
        yield Setting(name, tuple(seen[name].most_common()))


def _distinct(cells: Iterable[CellResult]) -> Iterator[StartRecord]:
    """Starts once, although a server plays for several cells."""
    known: dict[str, StartRecord] = {}
    for cell in cells:
        for start in (*cell.starts, *cell.new):
            known.setdefault(start.start_id, start)
    return iter(known.values())
