"""One run of the suites on one machine: its engines, servers, measured cells and baselines."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_moeperf import gate, judge
from pytest_moeperf.baseline import Gate, Recording
from pytest_moeperf.datasets import load_data
from pytest_moeperf.engines import engine_driver
from pytest_moeperf.enginespec import parse_engine
from pytest_moeperf.errors import MoeperfError
from pytest_moeperf.identity import cell_name, remote_host, server_identity, workload_identity
from pytest_moeperf.measurement import Announce, CellMeasurement, Rules, interleave
from pytest_moeperf.metrics import describe
from pytest_moeperf.patience import Patience
from pytest_moeperf.policy import directed, policy_for
from pytest_moeperf.probe import memory_copy_gib_per_s
from pytest_moeperf.records import (
    CellResult,
    EngineInstall,
    Fingerprint,
    Outcome,
    Sample,
    ServerSpec,
    StartRecord,
    Verdict,
)
from pytest_moeperf.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_moeperf.baseline import Baseline
    from pytest_moeperf.hardware import Hardware
    from pytest_moeperf.metrics import SLO
    from pytest_moeperf.models import ModelDirectory
    from pytest_moeperf.pool import ServerPool
    from pytest_moeperf.server import RunningServer, Shutdown
    from pytest_moeperf.store import BaselineWriter, Change

__all__ = ["MeasuredCell", "Run", "Settings"]

AS_STARTED = "as-started"
"""The workload of figures that a server tells of itself."""

STARTUP = "startup"
"""The workload of a cell without load: only the start itself is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a run measures, where it writes, and whether it records."""

    gpu: str
    rules: Rules
    server_timeout_s: float
    port: int | None
    baseline_dir: Path
    out_dir: Path
    record: bool
    tool_version: str


@dataclass(slots=True)
class MeasuredCell:
    """A cell that was measured, and can be measured on."""

    result: CellResult
    spec: ServerSpec
    measurement: CellMeasurement | None = None
    """None where no load was played."""
    confirmed: bool = False
    """It was looked at a second time."""


_Cell = tuple[ServerSpec, Workload]
_Key = tuple[_Cell, "SLO | None", tuple[_Cell, ...]]
"""What was measured, and in turns with what."""


class Run:
    """Starts every server once, measures every cell once, judges it as often as it is asked."""

    def __init__(self, settings: Settings, announce: Announce) -> None:
        self.settings = settings
        self.announce = announce
        self.session_id = uuid.uuid4().hex[:12]
        self._engines: dict[str, EngineInstall] = {}
        self._models: dict[str, ModelDirectory] = {}
        self._measured: dict[_Key, MeasuredCell] = {}
        self._failed: dict[ServerSpec, MoeperfError] = {}
        self._patience = Patience()

    @cached_property
    def hardware(self) -> Hardware:
        """What is measured on; UsageError where the machine lacks it."""
        from pytest_moeperf.gpu import resolve_hardware  # noqa: PLC0415 - NVML, once it is needed

        return resolve_hardware(self.settings.gpu)

    @cached_property
    def pool(self) -> ServerPool:
        """The running servers; the first use waits until no other session measures here."""
        from pytest_moeperf.pool import ServerPool  # noqa: PLC0415 - only where a server is needed

        return ServerPool(
            self.hardware,
            log_dir=self.settings.out_dir / "logs",
            timeout_s=self.settings.server_timeout_s,
            port=self.settings.port,
            on_progress=self.announce,
        )

    @cached_property
    def baselines(self) -> BaselineWriter:
        """What `--baseline record` has queued."""
        from pytest_moeperf.store import BaselineWriter  # noqa: PLC0415 - jsonschema

        return BaselineWriter(self.settings.baseline_dir)

    @property
    def engines(self) -> tuple[EngineInstall, ...]:
        """The engines that were resolved, in the order of asking."""
        return tuple(self._engines.values())

    def engine(self, text: str) -> EngineInstall:
        """Resolve one `--engine`, building its environment where it is missing."""
        if text not in self._engines:
            from pytest_moeperf.installs import resolve  # noqa: PLC0415 - only where one is needed

            self._engines[text] = resolve(
                parse_engine(text),
                allow_build=True,
                gpu=bool(self.hardware.gpus),
                on_progress=lambda phase, _elapsed_s: self.announce(f"engine {text}", phase),
            )
        return self._engines[text]

    def model(self, name: str) -> ModelDirectory:
        """The model's directory, written first where it is a small one of the catalogue."""
        if name not in self._models:
            from pytest_moeperf.models import materialize  # noqa: PLC0415 - only where needed

            self.announce(f"model {name}", "")
            self._models[name] = materialize(name)
        return self._models[name]

    def serve(self, spec: ServerSpec) -> RunningServer:
        """Start the server, or take the one that runs; one that failed fails again at once."""
        if spec in self._failed:
            raise self._failed[spec]
        try:
            return self.pool.acquire(spec, self.model(spec.model))
        except MoeperfError as error:
            self._failed[spec] = error
            raise

    def stop(self, spec: ServerSpec) -> Shutdown:
        """End the server, starting it first if need be, and tell how it went."""
        server = self.serve(spec)
        self.announce(f"stopping {spec.label}", "")
        return self.pool.stop(server)

    def measure(self, spec: ServerSpec, workload: Workload, *, slo: SLO | None) -> MeasuredCell:
        """Measure a cell, or return what was measured before."""
        return self.measure_in_turns([(spec, workload)], slo=slo)[0]

    def measure_in_turns(
        self, pairs: Sequence[tuple[ServerSpec, Workload]], *, slo: SLO | None = None
    ) -> list[MeasuredCell]:
        """Measure several cells in turns, or return what these measured before, together."""
        keys = [(pair, slo, tuple(pairs)) for pair in pairs]
        if not all(key in self._measured for key in keys):
            cells = [self._begin(spec, workload, slo) for spec, workload in pairs]
            if gone := [cell for cell in cells if not cell.server.alive]:
                raise MoeperfError(
                    f"{gone[0].model.name} had to make room for {cells[-1].model.name}: this "
                    "machine cannot run both at once, which a comparison in turns needs"
                )
            interleave(cells)
            for key, cell in zip(keys, cells, strict=True):
                spec = key[0][0]
                self._measured[key] = MeasuredCell(self._result(spec, cell), spec, cell)
        return [self._measured[key] for key in keys]

    def confirm(self, cells: Sequence[MeasuredCell]) -> bool:
        """Play as many repeats again of cells with a doubtful verdict, in turns.

        False where that is not possible: they were looked at twice already, the server has gone,
        or nothing was played.
        """
        doubtful = [cell for cell in cells if cell.measurement is not None and not cell.confirmed]
        playing = [cell.measurement for cell in doubtful if cell.measurement is not None]
        if not playing or not all(each.server.alive and not each.exhausted for each in playing):
            return False
        for each in playing:
            each.extend()
        interleave(playing)
        for cell, each in zip(doubtful, playing, strict=True):
            cell.result = self._result(cell.spec, each)
            cell.confirmed = True
        return True

    def measure_startup(self, spec: ServerSpec) -> MeasuredCell:
        """The start of the server as a cell of one repeat."""
        server = self.serve(spec)
        sample = Sample(seed=0, values={"startup_s": server.startup_s})
        identity = workload_identity(STARTUP, None)
        cell = self._cell(spec, server, STARTUP, identity=identity, samples=[sample])
        return MeasuredCell(cell, spec)

    def told(self, spec: ServerSpec) -> CellResult:
        """A cell without samples, for figures that the server itself tells."""
        server = self.serve(spec)
        return self._cell(spec, server, AS_STARTED, identity=AS_STARTED)

    def _begin(self, spec: ServerSpec, workload: Workload, slo: SLO | None) -> CellMeasurement:
        rules = replace(self.settings.rules, slo=slo)
        server, model = self.serve(spec), self.model(spec.model)
        data = load_data(workload, tokenizer=model.path / "tokenizer.json")
        return CellMeasurement(server, model, workload, rules, self.announce, self._patience, data)

    def _result(self, spec: ServerSpec, cell: CellMeasurement) -> CellResult:
        drawn_from = cell.data.conversations or cell.data.trace
        identity = workload_identity(cell.workload.slug, cell.rules.slo, drawn_from)
        return replace(
            self._cell(
                spec, cell.server, cell.workload.slug, identity=identity, samples=cell.samples
            ),
            workload=cell.workload.label,
            discarded=tuple(cell.discarded),
            warmup_plays=cell.warmup_plays,
            invalid=cell.exhausted,
        )

    def _cell(
        self,
        spec: ServerSpec,
        server: RunningServer,
        slug: str,
        *,
        identity: str,
        samples: Sequence[Sample] = (),
    ) -> CellResult:
        install = server.install
        start = StartRecord(
            start_id=server.start_id,
            session_id=self.session_id,
            recorded_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            startup_s=server.startup_s,
            engine_version=install.version,
            environment=self._environment(server),
            repeats=tuple(samples),
        )
        return CellResult(
            cell=cell_name(self.model(spec.model).name, spec, slug),
            test="",
            server=spec.label,
            engine=install.label,
            workload=slug,
            fingerprint=self._fingerprint(spec, install, identity),
            start=start,
        )

    def _environment(self, server: RunningServer) -> dict[str, str]:
        environment = dict(server.environment)
        if remote_host(server.install) is None:
            environment[gate.SPEED] = f"{memory_copy_gib_per_s():.2f}"
        if ignored := self.settings.rules.ignored_findings:
            environment["ignored_findings"] = ", ".join(sorted(ignored))
        return environment

    def _fingerprint(self, spec: ServerSpec, install: EngineInstall, workload: str) -> Fingerprint:
        model = self.model(spec.model)
        host = remote_host(install)
        gpus = engine_driver(install.engine).gpus_needed(spec)
        return Fingerprint(
            hardware=self.hardware.name,
            # So that figures of another machine are held against nothing that was recorded here.
            cpu_model=self.hardware.cpu_model if host is None else f"not known, at {host}",
            cpu_cores=self.hardware.cpu_cores,
            gpus=tuple(gpu.name for gpu in self.hardware.gpus[:gpus]),
            engine=install.engine,
            model=f"{model.name}@{model.digest}",
            server=server_identity(spec),
            workload=workload,
        )

    def judge(self, cell: MeasuredCell, suite: str, metrics: Sequence[str]) -> CellResult:
        """Judge a cell against its baseline, or queue it where this run records.

        What looks worse, or cannot be told, is measured anew, as often as patience allows.
        """
        result = self._judged(cell, suite, metrics)
        if not gate.doubtful(result):
            return result
        for look in self._patience.looks(self.announce):
            if not self._look_again(cell):
                break
            result = gate.best_look(result, self._judged(cell, suite, metrics), look=look)
            if not gate.doubtful(result):
                break
        return result

    def _look_again(self, cell: MeasuredCell) -> bool:
        if cell.measurement is None or not cell.measurement.server.alive:
            return False
        cell.measurement = cell.measurement.anew()
        interleave([cell.measurement])
        cell.result = self._result(cell.spec, cell.measurement)
        return True

    def _judged(self, cell: MeasuredCell, suite: str, metrics: Sequence[str]) -> CellResult:
        result = replace(cell.result, cell=f"{suite}/{cell.result.cell}")
        if result.invalid:
            return replace(result, verdicts=(judge.invalid(result.discarded),))
        if self.settings.record:
            return replace(result, verdicts=self._record(result, metrics))
        stored = self._baseline(result)
        verdicts = gate.judge_cell(result, metrics, stored=stored, hardware=self.hardware.name)
        return replace(result, verdicts=verdicts)

    def baseline_path(self, cell: CellResult) -> Path:
        """Where the cell's baseline is, or would be."""
        from pytest_moeperf.store import baseline_path  # noqa: PLC0415 - jsonschema

        if cell.fingerprint is None:
            raise MoeperfError(f"{cell.label}: nothing was measured, so nothing can be stored")
        return baseline_path(
            self.settings.baseline_dir,
            hardware=cell.fingerprint.hardware,
            engine=cell.fingerprint.engine,
            cell=cell.cell,
        )

    def _baseline(self, cell: CellResult) -> Baseline | None:
        from pytest_moeperf.store import load  # noqa: PLC0415 - jsonschema

        return load(self.baseline_path(cell), cell=cell.cell)

    def _record(self, cell: CellResult, metrics: Sequence[str]) -> tuple[Verdict, ...]:
        if cell.fingerprint is None or cell.start is None:
            raise MoeperfError(f"{cell.label}: nothing was measured, so nothing can be recorded")
        gates = {key: self._gate(key) for key in metrics}
        verdicts = tuple(judge.recorded(key, cell.values(key)) for key in metrics)
        if any(verdict.outcome is not Outcome.RECORDED for verdict in verdicts):
            return verdicts
        self.baselines.add(
            Recording(
                cell=cell.cell,
                fingerprint=cell.fingerprint,
                start=cell.start,
                gates=gates,
                tool=self.settings.tool_version,
            )
        )
        return verdicts

    def _gate(self, key: str) -> Gate:
        policy = policy_for(self.hardware.name, key)
        metric, _ = describe(key)
        return Gate(
            direction=directed(key, metric.direction), tolerance=policy.tolerance, unit=metric.unit
        )

    def close_and_write(self) -> tuple[Change, ...]:
        """End every server, then write what was recorded: all files or none."""
        self.close()
        return self.baselines.flush() if "baselines" in vars(self) else ()

    def close(self) -> None:
        """End every server and let go of the machine."""
        if "pool" in vars(self):
            self.pool.close()
