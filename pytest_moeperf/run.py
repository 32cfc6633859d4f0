"""One run of the suites on one machine: its servers and measured cells."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_moeperf.cellresult import CellResults
from pytest_moeperf.datasets import load_data
from pytest_moeperf.errors import MoeperfError, ServerError
from pytest_moeperf.measured import MeasuredCell, confirmable
from pytest_moeperf.measurement import Announce, CellMeasurement, Rules, interleave
from pytest_moeperf.patience import Patience
from pytest_moeperf.placement import in_turns
from pytest_moeperf.pool import ServerPool
from pytest_moeperf.records import CellResult, ServerSpec
from pytest_moeperf.resolver import Resolver
from pytest_moeperf.timeline import Timeline, TimeSpent
from pytest_moeperf.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_moeperf.metrics import SLO
    from pytest_moeperf.records import Weights
    from pytest_moeperf.server import RunningServer, Shutdown

__all__ = ["Run", "Settings"]

_Cell = tuple[ServerSpec, Workload]
_Key = tuple[_Cell, "SLO | None", tuple[_Cell, ...]]
"""What was measured, and on a CPU in turns with what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a run measures, and where it writes."""

    gpu: str
    rules: Rules
    server_timeout_s: float
    port: int | None
    out_dir: Path
    weights: Weights = "auto"


class Run:
    """Starts every server once and measures every cell once, unless it is asked to do so anew."""

    def __init__(self, settings: Settings, announce: Announce) -> None:
        self.settings = settings
        self.timeline = Timeline(time.monotonic)
        self.patience = Patience(sleep=self._pause)
        self.resolver = Resolver(settings.gpu, settings.weights, self.announce)
        self._results = CellResults(
            self.resolver, self.timeline, ignored_findings=settings.rules.ignored_findings
        )
        self._announce = announce
        self._stage = ""
        self._turn = 0
        """Of the next round of cells that take turns."""
        self._measured: dict[_Key, MeasuredCell] = {}
        self._failed: dict[ServerSpec, MoeperfError] = {}
        self._lives: dict[str, RunningServer] = {}
        """Every server that was started, by start, those that ended as well."""

    def announce(self, phase: str, detail: str) -> None:
        """Tell what is waited for, and what for."""
        self._announce(f"{self._stage}: {phase}" if self._stage else phase, detail)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Say meanwhile that all that is waited for is a part of `name`."""
        self._stage = name
        try:
            yield
        finally:
            self._stage = ""

    @cached_property
    def pool(self) -> ServerPool:
        """The running servers; the first use waits until no other session measures here."""
        return ServerPool(
            self.resolver.hardware,
            log_dir=self.settings.out_dir / "logs",
            timeout_s=self.settings.server_timeout_s,
            port=self.settings.port,
            on_progress=self.announce,
            timeline=self.timeline,
        )

    def _pause(self, pause_s: float) -> None:
        with self.timeline.during("waiting"):
            time.sleep(pause_s)

    def serve(self, spec: ServerSpec) -> RunningServer:
        """Start the server, or take the one that runs; one that failed fails again at once."""
        if spec in self._failed:
            raise self._failed[spec]
        try:
            server = self.pool.acquire(spec, self.resolver.model(spec))
        except MoeperfError as error:
            self._failed[spec] = error
            if isinstance(error, ServerError):
                self.timeline.seconds["starting"] += error.elapsed_s or 0.0
            raise
        if server.process is not None:
            self._lives[server.start_id] = server
        return server

    def stop(self, spec: ServerSpec) -> Shutdown:
        """End the server, starting it first if need be, and tell how it went.

        Where it had to make room for another one, that was its end.
        """
        before = [each for each in self._lives.values() if each.spec == spec]
        if before and (ended := before[-1].shutdown) and not self.pool.died(before[-1]):
            return ended
        server = self.serve(spec)
        self.announce(f"stopping {spec.label}", "")
        return self.pool.stop(server)

    def restartable(self, cell: MeasuredCell) -> bool:
        """Whether the cell can be measured on a fresh server: not on an attached one."""
        return cell.spec.engine is None or cell.spec.engine.url is None

    def end(self, *specs: ServerSpec) -> None:
        """End the servers of these specs that run; their next use starts new ones."""
        for server in self.pool.running:
            if server.spec in specs:
                self.pool.stop(server)

    def measure_anew(self, cell: MeasuredCell, spec: ServerSpec) -> CellResult:
        """Measure the cell on a fresh server of `spec`: the cell's own one, or with another engine.

        The server stays, for the tests to come.
        """
        self.end(spec)
        if cell.measurement is None:
            return self.measure_startup(spec).result
        measurement = self._begun_anew(cell.measurement, spec)
        interleave([measurement])
        return self._results.of_load(spec, measurement)

    def measure_also(self, cell: MeasuredCell, spec: ServerSpec) -> CellResult | None:
        """Measure a further cell on the server of `spec` that runs; None where that fails."""
        if spec not in self.pool.alive:
            return None
        if cell.measurement is None:
            return self.measure_startup(spec).result
        try:
            measurement = self._begun_anew(cell.measurement, spec)
            interleave([measurement])
        except MoeperfError as error:
            cell.failed_under(error, spec)
            self.end(spec)
            return None
        return self._results.of_load(spec, measurement)

    def _begun_anew(self, measurement: CellMeasurement, spec: ServerSpec) -> CellMeasurement:
        return self._begin(spec, measurement.workload, measurement.rules.slo)

    def look_again(self, cell: MeasuredCell) -> bool:
        """Measure the cell once more on the same server.

        False where it has gone, was never loaded, or holds a start of an A/B.
        """
        if cell.measurement is None or not cell.measurement.server.alive or cell.on_pair:
            return False
        measurement = cell.measurement.anew()
        interleave([measurement])
        # Its own repeats stay: they were played in turns with those that ratios divide them by.
        cell.replace_repeats(self._results.of_load(cell.spec, measurement))
        return True

    def measure(self, spec: ServerSpec, workload: Workload, *, slo: SLO | None) -> MeasuredCell:
        """Measure a cell, or return what was measured before."""
        return self.measure_in_turns([(spec, workload)], slo=slo)[0]

    def measure_in_turns(
        self, pairs: Sequence[tuple[ServerSpec, Workload]], *, slo: SLO | None = None
    ) -> list[MeasuredCell]:
        """Measure several cells in turns, or return what these measured before, together.

        On GPUs only the cells of one server take turns, see `placement.in_turns`.
        """
        company = () if self.resolver.hardware.gpus else tuple(pairs)
        keys = {pair: (pair, slo, company) for pair in pairs}
        missing = [pair for pair, key in keys.items() if key not in self._measured]
        turn = self._turn
        for turns in self._in_turns([spec for spec, _ in missing]):
            together = [missing[index] for index in turns]
            begun = [self._begin(spec, workload, slo) for spec, workload in together]
            self.pool.check_together([each.server for each in begun])
            self._turn = max(self._turn, interleave(begun, turn=turn))
            for pair, played in zip(together, begun, strict=True):
                spec, _ = pair
                result = self._results.of_load(spec, played)
                self._measured[keys[pair]] = MeasuredCell(result, spec, played)
        return [self._measured[keys[pair]] for pair in pairs]

    def _in_turns(self, specs: Sequence[ServerSpec]) -> list[list[int]]:
        return in_turns(specs, self.resolver.hardware, running=self.pool.alive)

    def confirm(self, cells: Sequence[MeasuredCell]) -> bool:
        """Play as many repeats again of cells with a doubtful verdict, in turns.

        Where a server was replaced meanwhile, all are measured anew on those that run now. False
        where nothing can be added: they were looked at twice already, or nothing was played.
        """
        if not confirmable(cells):
            return False
        turn, again = self._turn, dict[MeasuredCell, CellMeasurement]()
        for group in self._in_turns([cell.spec for cell in cells]):
            members = [cells[at] for at in group]
            again |= zip(members, self._play_again(members, turn), strict=True)
        # Only now: where a server fails, all of them stay as they were judged.
        for cell, played in again.items():
            cell.take_second_look(played, self._results.of_load(cell.spec, played))
        return True

    def _play_again(self, cells: Sequence[MeasuredCell], turn: int) -> list[CellMeasurement]:
        playing = [cell.measurement for cell in cells if cell.measurement is not None]
        if not all(each.server.alive for each in playing):
            specs = [cell.spec for cell in cells]
            playing = [self._begun_anew(*pair) for pair in zip(playing, specs, strict=True)]
            self.pool.check_together([each.server for each in playing])
        playing = [each.extended(self.settings.rules.repeats) for each in playing]
        self._turn = max(self._turn, interleave(playing, turn=turn))
        return playing

    def measure_startup(self, spec: ServerSpec) -> MeasuredCell:
        """The start of the server as a cell of one repeat."""
        return MeasuredCell(self._results.of_start(spec, self.serve(spec)), spec)

    def as_started(self, spec: ServerSpec) -> CellResult:
        """A cell without samples, for figures that the server itself tells."""
        return self._results.as_started(spec, self.serve(spec))

    def _begin(self, spec: ServerSpec, workload: Workload, slo: SLO | None) -> CellMeasurement:
        rules = replace(self.settings.rules, slo=slo)
        server, model = self.serve(spec), self.resolver.model(spec)
        data = load_data(workload, tokenizer=model.path / "tokenizer.json")
        return CellMeasurement(
            *(server, model, workload, rules, self.announce, self.patience, data),
            neighbours=lambda: () if self.resolver.hardware.gpus else self.pool.beside(server),
            timeline=self.timeline,
        )

    @property
    def time_spent(self) -> TimeSpent:
        """Where the time went so far; what ends a server counts once it has ended."""
        return self.timeline.spent(server.life for server in self._lives.values())

    def close(self) -> None:
        """End every server and let go of the machine."""
        if "pool" in vars(self):
            self.pool.close()
