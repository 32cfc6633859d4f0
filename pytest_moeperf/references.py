"""What a session holds its cells against, and what it records for later ones."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_moeperf import gate, judge
from pytest_moeperf.baseline import Gate, Recording
from pytest_moeperf.cellresult import AS_STARTED
from pytest_moeperf.compat import differences
from pytest_moeperf.errors import MoeperfError, StorageError
from pytest_moeperf.gate import Reference
from pytest_moeperf.metrics import describe
from pytest_moeperf.policy import directed, policy_for
from pytest_moeperf.provenance import engine_provenance
from pytest_moeperf.records import CellResult, Fingerprint, Outcome, ServerSpec, Verdict
from pytest_moeperf.store import BaselineWriter, baseline_path, find, load, read

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_moeperf.baseline import Baseline
    from pytest_moeperf.judge import Prior
    from pytest_moeperf.records import RoutingRecord
    from pytest_moeperf.store import Change

__all__ = ["References"]


class References:
    """The baselines of one folder, as a session uses them."""

    def __init__(self, folder: Path, *, tool_version: str) -> None:
        self.folder = folder
        self._tool_version = tool_version
        self._date = dt.datetime.now(dt.UTC).date().isoformat()
        self._neighbours: dict[tuple[str, str], tuple[Baseline, ...]] = {}
        self._priors: dict[tuple[str, str, str], Prior] = {}

    def of(self, cell: CellResult, metrics: Sequence[str]) -> Reference:
        """What `metrics` of the cell are held against; BaselineError where that is damaged."""
        measured = _fingerprint(cell)
        return Reference(
            stored=load(self.path(cell), cell=cell.cell),
            priors={key: self._prior(measured, key) for key in metrics},
            date=self._date,
        )

    def old_engine(self, cell: CellResult) -> str | None:
        """What `--against` takes to hold the cell against the engine of its baseline.

        None where that is the engine under test, cannot be installed, or is not known; and where
        the server is attached, which cannot take turns.
        """
        stored = load(self.path(cell), cell=cell.cell)
        if stored is None or cell.start is None or cell.start.startup_s is None:
            return None
        if stored.engine.version == cell.start.engine_version:
            return None
        return stored.engine.spec

    def is_of_another(self, cell: CellResult) -> bool:
        """Whether the cell's baseline was measured on something else than the cell was."""
        stored = load(self.path(cell), cell=cell.cell)
        return stored is not None and bool(differences(_fingerprint(cell), stored.fingerprint))

    def path(self, cell: CellResult) -> Path:
        """Where the cell's baseline is, or would be."""
        measured = _fingerprint(cell)
        return baseline_path(
            self.folder, hardware=measured.hardware, engine=measured.engine, cell=cell.cell
        )

    def expect_readable(self, cell: str, *, hardware: str, engine: str) -> None:
        """Raise what `of` would, before the cell is measured."""
        load(baseline_path(self.folder, hardware=hardware, engine=engine, cell=cell), cell=cell)

    def looked_for(self, cell: CellResult) -> Path:
        """What NO_BASELINE is about: the cell's file or, of a server's own words, the folder."""
        path, own_words = self.path(cell), cell.workload == AS_STARTED
        return path.parents[cell.cell.count("/")] if own_words else path

    def recorded_words(self, cell: CellResult, name: str) -> tuple[str, ...]:
        """What stored starts of the cell's server tell of `name` in their environment."""
        measured = _fingerprint(cell)
        values = (
            start.environment.get(name)
            for stored in self._all(measured)
            if (stored.fingerprint.model, stored.fingerprint.server)
            == (measured.model, measured.server)
            for start in stored.starts
        )
        return tuple(sorted({value for value in values if value is not None}))

    def record(
        self, cell: CellResult, spec: ServerSpec, metrics: Sequence[str]
    ) -> tuple[Verdict, ...]:
        """Queue the cell's start for its baseline; nothing is written before `flush`."""
        measured = _fingerprint(cell)
        if cell.start is None:
            raise MoeperfError(f"{cell.label}: nothing was measured, so nothing can be recorded")
        gates = {key: _gate(measured.hardware, key) for key in metrics}
        verdicts = tuple(
            judge.cold_start(key, cell.values(key))
            if gate.started_cold(cell, key)
            else judge.recorded(key, cell.values(key))
            for key in metrics
        )
        if any(verdict.outcome is not Outcome.RECORDED for verdict in verdicts):
            return verdicts
        self._writer.add(
            Recording(
                cell=cell.cell,
                fingerprint=measured,
                start=cell.start,
                gates=gates,
                tool=self._tool_version,
                engine=engine_provenance(spec),
                routing=_prompts_alone(cell.routing),
            )
        )
        return verdicts

    def judge_routing(
        self, cell: CellResult, spec: ServerSpec, *, recording: bool
    ) -> tuple[Verdict, RoutingRecord | None]:
        """Hold a cell's counts against the stored ones, which are returned too; or record them.

        What contradicts a stored baseline is never added to it.
        """
        from pytest_moeperf.judge.routing import as_stored  # noqa: PLC0415 - numpy, only for counts

        stored = load(self.path(cell), cell=cell.cell)
        verdict = as_stored(cell, stored, recording=recording)
        if verdict.outcome in {Outcome.RECORDED, Outcome.INCOMPARABLE} and recording:
            # The writer refuses what is not comparable, and says what to do.
            self.record(cell, spec, ())
        return verdict, None if stored is None else stored.routing

    def flush(self) -> tuple[Change, ...]:
        """Write what was recorded: all files or none."""
        return self._writer.flush() if "_writer" in vars(self) else ()

    @cached_property
    def _writer(self) -> BaselineWriter:
        return BaselineWriter(self.folder)

    def _prior(self, measured: Fingerprint, key: str) -> Prior:
        known = (measured.hardware, measured.engine, key)
        if known not in self._priors:
            self._priors[known] = gate.prior_for(
                self._all(measured), key, hardware=measured.hardware
            )
        return self._priors[known]

    def _all(self, measured: Fingerprint) -> tuple[Baseline, ...]:
        """Every readable baseline of the same hardware and engine.

        A damaged one is the matter of the test that it belongs to, and of `moeperf baseline check`.
        """
        place = (measured.hardware, measured.engine)
        if place not in self._neighbours:
            self._neighbours[place] = tuple(_readable(self.folder.joinpath(*place)))
        return self._neighbours[place]


def _readable(folder: Path) -> list[Baseline]:
    found = []
    for path in find(folder) if folder.is_dir() else ():
        try:
            baseline = read(path)
        except StorageError:
            continue
        if baseline is not None:
            found.append(baseline)
    return found


def _prompts_alone(routing: RoutingRecord | None) -> RoutingRecord | None:
    """Without decode, which a single near-tie may lead elsewhere."""
    return None if routing is None else replace(routing, decode_tokens=0, decode=None)


def _fingerprint(cell: CellResult) -> Fingerprint:
    if cell.fingerprint is None:
        raise MoeperfError(f"{cell.label}: nothing was measured, so nothing can be compared")
    return cell.fingerprint


def _gate(hardware: str, key: str) -> Gate:
    policy = policy_for(hardware, key)
    metric, _ = describe(key)
    return Gate(
        direction=directed(key, metric.direction), tolerance=policy.tolerance, unit=metric.unit
    )
