"""Our side: cells that were measured, from baselines or, earlier, by another client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pytest_moeperf.gate import COLD, ENGINE_CACHES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_moeperf.baseline import Baseline
    from pytest_moeperf.records import Sample, StartRecord

__all__ = ["Start", "State", "Stored", "from_baseline", "read_measured"]

State = Literal["cold", "warm"]


@dataclass(frozen=True, slots=True)
class Start:
    """What one server start gave, by metric."""

    cold: Mapping[str, Sequence[float]]
    """The first play of the workload, before the warm-up, as a column of one; empty where the
    server was not cold."""
    warm: Mapping[str, Sequence[float]]
    """The valid repeats."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A cell that was measured, with all its starts."""

    cell: str
    """`h200 vllm mixtral-8x7b (tp2, bfloat16, context 4096) burst-n100-isl79-osl128`."""
    version: str | None
    """Of the engine; None where it is not known."""
    source: str
    """The place of a baseline, or another client and its date."""
    starts: tuple[Start, ...]

    def plays(self, metric: str, state: State) -> list[Sequence[float]]:
        """The metric in the plays of every start that has it."""
        columns = (getattr(start, state).get(metric) for start in self.starts)
        return [column for column in columns if column]


def from_baseline(baseline: Baseline) -> Stored:
    """The starts of a stored baseline."""
    key = baseline.fingerprint
    model, workload = (text.partition("@")[0] for text in (key.model, key.workload))
    return Stored(
        cell=f"{key.hardware} {key.engine} {model} ({key.server}) {workload}",
        version=baseline.engine_version,
        source=f"baselines/{baseline.place}.json",
        starts=tuple(
            Start(cold=_columns(_cold(start)), warm=_columns(start.repeats))
            for start in baseline.starts
        ),
    )


def _cold(start: StartRecord) -> Sequence[Sample]:
    """The first play on a fresh server, if it had one of this workload.

    A fresh server plays more than once before the repeats; one that other workloads have warmed
    plays a new one once, or not at all. One that found compiled kernels was not cold: of Mixtral
    on two H200s the first plays of three starts on one host gave 3428, 4926 and 5884 tok/s.
    """
    found_kernels = start.environment.get(ENGINE_CACHES, COLD) != COLD
    return start.warmup[:1] if len(start.warmup) > 1 and not found_kernels else ()


def _columns(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """The values of every metric that was measured, one a play."""
    columns: dict[str, list[float]] = {}
    for sample in samples:
        for metric, value in sample.values.items():
            if value is not None:
                columns.setdefault(metric, []).append(value)
    return columns


def read_measured(document: Mapping[str, Any]) -> tuple[Stored, ...]:
    """What `measured.json` holds."""
    return tuple(
        Stored(
            cell=cell["cell"],
            version=cell["version"],
            source=cell["source"],
            starts=tuple(
                Start(cold=start["cold"], warm=start["values"]) for start in cell["starts"]
            ),
        )
        for cell in document["cells"]
    )
