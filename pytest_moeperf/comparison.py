"""Two runs, read from their `run.json`, and what changed between them: pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_moeperf import gate
from pytest_moeperf.baseline import Baseline, EngineProvenance, expiry
from pytest_moeperf.document import parse, printable, validate
from pytest_moeperf.errors import UsageError
from pytest_moeperf.judge import Night
from pytest_moeperf.metrics import KEYS
from pytest_moeperf.record_form import read_fingerprint, read_start
from pytest_moeperf.records import CellResult, Fingerprint, Outcome, StartRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Comparison", "StoredCell", "StoredRun", "compare", "read_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCell:
    """A cell of a run, reduced to what another run is compared with."""

    name: str
    server: str
    engine: str
    workload: str
    test: str
    fingerprint: Fingerprint
    starts: tuple[StartRecord, ...]
    """Of the engine that the run tested, those of an A/B included."""
    metrics: tuple[str, ...]
    """What the run judged or recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """One run, by the names of its cells."""

    source: str
    hardware: str
    started_at: str
    tool: str
    cells: Mapping[str, StoredCell]

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines that were tested."""
        return tuple(dict.fromkeys(cell.engine for cell in self.cells.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What the second run is, held against the first one."""

    cells: tuple[CellResult, ...]
    """In the order of the second run, with their verdicts."""
    only_in_first: tuple[str, ...]
    only_in_second: tuple[str, ...]


def read_run(text: str, *, source: str, schema: Mapping[str, Any]) -> StoredRun:
    """Read a `run.json`, whoever wrote it; BaselineError begins with `source`.

    Cells without a figure that can be compared, such as ratios, are left out.
    """
    document = parse(text, source=source)
    validate(document, schema, source=source)
    cells: dict[str, StoredCell] = {}
    for each in document["cells"]:
        if (cell := _cell(each)) is not None:
            cells[cell.name] = _joined(cells.get(cell.name), cell, source=source)
    return StoredRun(
        source=source,
        hardware=document["hardware"],
        started_at=document["started_at"],
        tool=document["tool"],
        cells=cells,
    )


def _cell(document: Mapping[str, Any]) -> StoredCell | None:
    starts = [document["start"], *document["further"], *document["new"]]
    metrics = tuple(each["metric"] for each in document["verdicts"] if _is_gate(each))
    if document["fingerprint"] is None or document["start"] is None or not metrics:
        return None
    return StoredCell(
        name=printable(document["cell"]),
        server=printable(document["server"]),
        engine=printable(document["engine"]),
        workload=printable(document["workload"]),
        test=printable(document["test"]),
        fingerprint=read_fingerprint(document["fingerprint"]),
        starts=tuple(read_start(start) for start in starts),
        metrics=metrics,
    )


def _is_gate(verdict: Mapping[str, Any]) -> bool:
    return verdict["direction"] is not None and verdict["metric"] in KEYS


def _joined(before: StoredCell | None, cell: StoredCell, *, source: str) -> StoredCell:
    """Two tests may judge one cell; its starts count once."""
    if before is None:
        return cell
    if before.engine != cell.engine:
        raise UsageError(
            f"{source}: has {cell.name} of {before.engine} and of {cell.engine}; "
            "compare runs of one --engine each"
        )
    known = {start.start_id for start in before.starts}
    return replace(
        before,
        starts=before.starts + tuple(each for each in cell.starts if each.start_id not in known),
        metrics=tuple(dict.fromkeys(before.metrics + cell.metrics)),
    )


def compare(first: StoredRun, second: StoredRun) -> Comparison:
    """Judge the second run with the first one in the place of the baselines.

    UsageError where they have no cell in common.
    """
    common = [name for name in second.cells if name in first.cells]
    if not common:
        raise UsageError(
            f"{first.source} and {second.source} have no judged cell in common; "
            "compare runs of the same suites"
        )
    stored = {name: _as_baseline(first.cells[name], first.tool) for name in common}
    metrics = {name: _metrics(first.cells[name], second.cells[name]) for name in common}
    night = Night(sum(map(len, metrics.values())))
    return Comparison(
        cells=tuple(_judged(second.cells[name], metrics[name], stored, night) for name in common),
        only_in_first=tuple(name for name in first.cells if name not in second.cells),
        only_in_second=tuple(name for name in second.cells if name not in first.cells),
    )


def _metrics(first: StoredCell, second: StoredCell) -> tuple[str, ...]:
    return tuple(dict.fromkeys(second.metrics + first.metrics))


def _judged(
    cell: StoredCell, metrics: Sequence[str], stored: Mapping[str, Baseline], night: Night
) -> CellResult:
    start, *others = cell.starts
    result = CellResult(
        cell=cell.name,
        test=cell.test,
        server=cell.server,
        engine=cell.engine,
        workload=cell.workload,
        fingerprint=cell.fingerprint,
        start=start,
        further=tuple(others),
    )
    hardware = cell.fingerprint.hardware
    reference = gate.Reference(
        stored=stored[cell.name],
        priors={key: gate.prior_for(stored.values(), key, hardware=hardware) for key in metrics},
    )
    verdicts = []
    p_limits = [night.limit(share) for share in night.take(len(metrics))]
    for key, p_limit in zip(metrics, p_limits, strict=True):
        assessment = gate.judge_metric(
            result, key, reference, hardware=hardware, p_limit=p_limit, last=True
        )
        night.note(assessment.verdict.outcome is Outcome.REGRESSED)
        verdicts.append(assessment.verdict)
    return replace(result, verdicts=tuple(verdicts))


def _as_baseline(cell: StoredCell, tool: str) -> Baseline:
    first = cell.starts[0]
    return Baseline(
        cell=cell.name,
        fingerprint=cell.fingerprint,
        starts=cell.starts,
        created=first.recorded_at,
        tool=tool,
        engine=EngineProvenance(distribution=cell.fingerprint.engine, version=first.engine_version),
        expires=expiry(first.recorded_at),
    )
