"""Measures a cell: warms a server up, plays the workload, keeps the repeats that are valid."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_moeperf import driver, metrics, probe, validity, warmup
from pytest_moeperf.client import Target
from pytest_moeperf.datasets import Data
from pytest_moeperf.errors import ServerHungError
from pytest_moeperf.figures import compute, silence_ms
from pytest_moeperf.gpuhealth import gpu_findings
from pytest_moeperf.records import Finding, GpuReading, RepeatRecord, Sample
from pytest_moeperf.telemetry import GpuWatch
from pytest_moeperf.timeline import Timeline
from pytest_moeperf.units import NS_PER_S
from pytest_moeperf.workload import plan

if TYPE_CHECKING:
    from pytest_moeperf.models import ModelDirectory
    from pytest_moeperf.patience import Patience
    from pytest_moeperf.server import RunningServer
    from pytest_moeperf.workload import Plan, Workload

__all__ = ["Announce", "CellMeasurement", "Rules", "interleave"]

Announce = Callable[[str, str], None]
"""Is told what is being waited for and, often, how far it is."""

BUSY = "busy_machine"
STALL = "stall"
LOOK_AROUND_S = 4.0
"""Between two looks at what others do."""
LOOK_S = 1.0
"""So long others are watched, at full load."""
WARM_UP_SEED = 1_000_000
"""Warm-up plays use prompts that no repeat uses, so that they cannot fill a cache for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a cell is measured."""

    repeats: int = 3
    max_invalid: int = 2
    """So many invalid repeats are measured again; one more makes the cell INVALID."""
    stall_timeout_s: float = 60.0
    slo: metrics.SLO | None = None
    ignored_findings: frozenset[str] = frozenset()
    """Codes of findings that do not make a repeat invalid."""
    client_workers: int | None = None
    """Processes that send the load; None: as many as the workload may need."""


@dataclass(frozen=True, slots=True)
class _Play:
    """One play as it looked by itself, with what it takes to compare it with the others."""

    turn: int
    sample: Sample
    pace: validity.Pace


@dataclass(frozen=True, slots=True)
class _Watched:
    """A play with what was seen of the machine meanwhile."""

    played: RepeatRecord
    gpus: tuple[GpuReading, ...] = ()
    disturbances: tuple[Finding, ...] = ()


@dataclass(slots=True)
class CellMeasurement:
    """One workload on one server start, played until enough repeats are valid."""

    server: RunningServer
    model: ModelDirectory
    workload: Workload
    rules: Rules
    announce: Announce
    patience: Patience
    data: Data = field(default_factory=Data)
    neighbours: Callable[[], Sequence[RunningServer]] = tuple
    """Gives the other servers on the same cores."""
    samples: list[Sample] = field(default_factory=list)
    discarded: list[Sample] = field(default_factory=list)
    warm_up_samples: list[Sample] = field(default_factory=list)
    """The workload's plays before the repeats, the first one first; they count for nothing."""
    warmup_reason: str = ""
    """Why warm-up ended; empty before."""
    timeline: Timeline = field(default_factory=lambda: Timeline(time.monotonic))
    by_turn: dict[int, Sample] = field(default_factory=dict)
    """The valid repeats by the round of `interleave` that they were played in."""
    _plays: list[_Play] = field(default_factory=list)
    _warm_paces: list[validity.Pace] = field(default_factory=list)

    def warm_up(self) -> None:
        """Play without judging until the server is warm for this workload.

        First comes the workload itself, which shows what a cold server does; then the server meets
        the shapes that it lacks; then the workload is played until the rule is met. A warm server
        needs the shapes that are new to it on a GPU, and nothing on a CPU. An attached one may have
        either, and plays the workload once.
        """
        server = self.server
        drills = self._drills() if server.gpu_ids else ()
        if server.warm and not drills and not server.attached:
            known = "met all shapes of the workload" if server.gpu_ids else "been steady before"
            self.warmup_reason = f"the server has {known}"
            return
        rule = self._rule()
        with self.timeline.during("warm-up"):
            rule.observe(self._warm_up_play())
            for number, drill in enumerate(drills, start=1):
                self._drill(drill, f"warm-up, shape {number}/{len(drills)}")
            while not rule.over:
                rule.observe(self._warm_up_play())
        server.warm = bool(rule.evidence)
        self.warmup_reason = rule.reason

    def _rule(self) -> warmup.Rule:
        if self.server.warm:
            return warmup.Once()
        return warmup.Proof() if self.server.gpu_ids else warmup.Steady()

    def _drills(self) -> tuple[warmup.Drill, ...]:
        return warmup.drills(
            self._plan(WARM_UP_SEED), self.server.met, context_tokens=self.server.context_tokens
        )

    def _drill(self, drill: warmup.Drill, what: str) -> None:
        ids = range(self.model.first_id, self.model.vocab_size)
        generator = random.Random(repr(drill))  # noqa: S311 - load, not secrets
        played = self._play(warmup.drill_plan(drill, ids, generator), what)
        if not any(request.error for request in played.requests):
            self.server.met.add(drill)

    def _warm_up_play(self) -> validity.Pace:
        number = len(self.warm_up_samples) + 1
        seed = WARM_UP_SEED + number
        played = self._play(self._plan(seed), f"warm-up {number}")
        values = self._values(played)
        kept = {key: values[key] for key in warmup.KEPT}
        self.warm_up_samples.append(Sample(seed=seed, values=kept))
        pace = self._pace(played, values)
        self._warm_paces.append(pace)
        return pace

    def anew(self) -> CellMeasurement:
        """The same cell on the same start without a repeat; its warm-up stays known."""
        return replace(
            self,
            samples=[],
            discarded=[],
            warm_up_samples=[*self.warm_up_samples],
            warmup_reason="",
            by_turn={},
            _plays=[],
            _warm_paces=[*self._warm_paces],
        )

    def extended(self, repeats: int) -> CellMeasurement:
        """The same cell with so many repeats more to play: a doubtful verdict deserves them.

        What was measured so far is copied, so that this one stays as it is where the server fails.
        """
        return replace(
            self,
            rules=replace(self.rules, repeats=self.rules.repeats + repeats),
            samples=[*self.samples],
            discarded=[*self.discarded],
            by_turn={**self.by_turn},
            _plays=[*self._plays],
        )

    @property
    def finished(self) -> bool:
        """Whether there are enough valid repeats, or too many invalid ones."""
        return len(self.samples) >= self.rules.repeats or self.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether the cell is INVALID."""
        return len(self.discarded) > self.rules.max_invalid

    @property
    def cost_s(self) -> float:
        """About how long it takes on another server of the same spec: a play more, to warm up."""
        took_s = [play.pace.duration_s for play in self._plays]
        return sum(took_s) + max(took_s, default=0.0)

    def repeat(self, turn: int) -> None:
        """Play until there is a valid repeat for this turn, or the cell is INVALID.

        One that is measured again thus has its turn beside the others' all the same.
        """
        while turn not in self.by_turn and not self.finished:
            self._repeat(turn)

    def _repeat(self, turn: int) -> None:
        """Play once and keep the sample where it belongs."""
        seed = len(self._plays)
        with self.timeline.during("measuring"):
            watched = self._watched(self._plan(seed), self._next)
        values = self._values(watched.played, watched.gpus)
        findings = validity.find(
            watched.played,
            compile_patterns=self.server.compile_patterns,
            expect_prefix_hit_rate=self.workload.prefix_hit_rate(self.server.kv_block_tokens),
        )
        sample = Sample(
            seed=seed,
            values=values,
            findings=tuple(
                finding
                for finding in findings + watched.disturbances
                if finding.code not in self.rules.ignored_findings
            ),
            gpus=watched.gpus,
        )
        self._plays.append(_Play(turn, sample, self._pace(watched.played, values)))
        self._sort()
        if any(finding.code == BUSY for finding in sample.findings) and not self.exhausted:
            self._await_calm()

    @property
    def _next(self) -> str:
        return f"repeat {len(self.samples) + 1}/{self.rules.repeats}"

    def _watched(self, requests: Plan, what: str) -> _Watched:
        """Play while the machine is watched: its GPUs where the server has some, else its cores."""
        if not self.server.gpu_ids:
            watch = probe.BusyWatch([each.pid for each in self.neighbours() if each.pid])
            played = self._play(requests, what)
            return _Watched(played, disturbances=self._disturbances(watch.bystanders()))
        with GpuWatch(self.server.gpu_ids, own_pids=self.server.gpu_pids) as gpus:
            played = self._play(requests, what)
        return _Watched(played, gpus.readings, gpu_findings(gpus.readings))

    def _values(
        self, played: RepeatRecord, gpus: Sequence[GpuReading] = ()
    ) -> Mapping[str, float | None]:
        # numpy, for measuring alone
        return compute(played.requests, slo=self.rules.slo, gpu_memory_gib=_memory_gib(gpus))

    def _pace(self, played: RepeatRecord, values: Mapping[str, float | None]) -> validity.Pace:
        return validity.Pace(
            duration_s=(played.ended_ns - played.started_ns) / NS_PER_S,
            latency_ms=values["e2el_ms.mean"],
            ttft_ms=values["ttft_ms.p50"],
            silence_ms=silence_ms(played.requests) if self.server.gpu_ids else None,
            compiled=bool(validity.compilations(played, self.server.compile_patterns)),
        )

    def _sort(self) -> None:
        """Tell valid plays from others; a play may show only now that an earlier one stalled."""
        # What failed at once waited for nothing, and is no measure for the others.
        sound = [play.pace for play in self._plays if play.sample.valid]
        stalls: Sequence[Finding | None] = [None] * len(sound)
        # On a shared CPU a neighbour makes a server stall, and patience looks after that.
        if self.server.gpu_ids and STALL not in self.rules.ignored_findings:
            stalls = validity.stalls(sound, others=self._warm_paces)
        found = iter(stalls)
        samples = [
            _with(play.sample, next(found)) if play.sample.valid else play.sample
            for play in self._plays
        ]
        self.samples = [sample for sample in samples if sample.valid]
        self.by_turn = {}
        for play, sample in zip(self._plays, samples, strict=True):
            if sample.valid:
                self.by_turn.setdefault(play.turn, sample)
        self.discarded = [sample for sample in samples if not sample.valid]

    def _await_calm(self) -> None:
        """Wait until others leave the machine alone, as long as patience lasts.

        Most of the time it idles, for others who wait like this must not see it as busy.
        """
        while self.patience.spend(LOOK_AROUND_S):
            watch = probe.BusyWatch()
            with self.timeline.during("waiting"), probe.full_load():
                time.sleep(LOOK_S)
            others = watch.bystanders()
            if not self._disturbances(others):
                return
            self.announce(f"waiting while others keep {others.cores:.1f} cores busy", "")

    def _disturbances(self, others: probe.Bystanders) -> tuple[Finding, ...]:
        if self.server.attached:
            return ()  # It is not these cores that do the work.
        found = validity.busy_machine(
            foreign_cores=others.cores,
            stolen_cores=others.stolen_cores,
            usable_cores=probe.usable_cores(),
            names=others.names[:3],
        )
        return () if found is None else (found,)

    def _plan(self, seed: int) -> Plan:
        return plan(
            self.workload,
            seed=seed,
            vocab_size=self.model.vocab_size,
            first_id=self.model.first_id,
            context_tokens=self.server.context_tokens,
            conversations=self.data.conversations,
            trace=self.data.trace,
        )

    def _play(self, requests: Plan, what: str) -> RepeatRecord:
        for neighbour in self.neighbours():
            neighbour.await_rest()
        try:
            self.server.reset_prefix_cache()
            with self.server.observe() as observed:
                played = self._drive(requests, what)
        except ServerHungError:
            # For the next test a new one is started.
            self.server.stop()
            raise
        return observed.complete(played)

    def _drive(self, requests: Plan, what: str) -> RepeatRecord:
        phase = f"{self.model.name}: {self.workload.label}"

        def on_progress(done: int, total: int, tokens: int) -> None:
            self.announce(phase, f"{what}, {done}/{total} requests, {tokens} tokens")

        try:
            return driver.play(
                Target(
                    url=self.server.url,
                    model=self.server.model,
                    api_key=self.server.api_key,
                    continuous_usage=self.server.engine.continuous_usage,
                ),
                requests,
                stall_timeout_s=self.rules.stall_timeout_s,
                on_progress=on_progress,
                alive=self.server.check_alive,
                workers=self.rules.client_workers,
            )
        except ServerHungError as error:
            raise self.server.hung(error) from error


def _with(sample: Sample, finding: Finding | None) -> Sample:
    return sample if finding is None else replace(sample, findings=(*sample.findings, finding))


def _memory_gib(gpus: Sequence[GpuReading]) -> float | None:
    """Memory in use on all of them; None where a driver does not tell."""
    used = [gpu.memory_used_gib for gpu in gpus if gpu.memory_used_gib is not None]
    return sum(used) if used and len(used) == len(gpus) else None


def interleave(cells: Iterable[CellMeasurement], *, turn: int = 0) -> int:
    """Warm up the cells that are cold, then play all in turns until each is finished.

    Turns keep a slow change of the machine out of the ratio of two cells. Each round goes back the
    way that the one before it came, so that a steady change adds as much to one cell as to another,
    and a server follows itself as often as it can.

    Args:
        cells: In any order; those of a server are played one after the other.
        turn: Number of the first round.

    Returns:
        The number that a next round would have.
    """
    cells = list(cells)
    servers = list(dict.fromkeys(cell.server.start_id for cell in cells))
    waiting = sorted(cells, key=lambda cell: servers.index(cell.server.start_id))
    for cell in waiting:
        if not cell.warmup_reason:
            cell.warm_up()
    while waiting := [cell for cell in reversed(waiting) if not cell.finished]:
        for cell in waiting:
            cell.repeat(turn)
        turn += 1
    return turn
