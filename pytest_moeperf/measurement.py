"""Measures a cell: warms a server up, plays the workload, keeps the repeats that are valid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_moeperf import driver, metrics, probe, validity
from pytest_moeperf.client import Target
from pytest_moeperf.datasets import Data
from pytest_moeperf.errors import ServerHungError
from pytest_moeperf.records import Finding, RepeatRecord, Sample
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
LOOK_AROUND_S = 5.0
"""So long others are watched before they are taken to be quiet."""
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

    sample: Sample
    silence_ms: float | None
    duration_s: float


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
    samples: list[Sample] = field(default_factory=list)
    discarded: list[Sample] = field(default_factory=list)
    warmup_plays: int = 0
    _plays: list[_Play] = field(default_factory=list)

    def warm_up(self) -> None:
        """Play without keeping the samples until the server is steady.

        On a server that nothing was played on yet, until a play is no faster than those before,
        as `validity.SteadyRule` says; on a warm one, once, so that it has met this workload.
        """
        rule = validity.SteadyRule()
        warming = True
        while warming:
            self.warmup_plays += 1
            repeat = self._play(WARM_UP_SEED + self.warmup_plays, f"warm-up {self.warmup_plays}")
            steady = rule.observe((repeat.ended_ns - repeat.started_ns) / 1e9)
            warming = not (steady or self.server.warm)
        self.server.warm = True

    def anew(self) -> CellMeasurement:
        """The same cell with nothing measured yet."""
        return replace(self, samples=[], discarded=[], warmup_plays=0, _plays=[])

    def extend(self) -> None:
        """Ask for as many repeats again: a doubtful verdict deserves a second look."""
        self.rules = replace(self.rules, repeats=2 * self.rules.repeats)

    @property
    def finished(self) -> bool:
        """Whether there are enough valid repeats, or too many invalid ones."""
        return len(self.samples) >= self.rules.repeats or self.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether the cell is INVALID."""
        return len(self.discarded) > self.rules.max_invalid

    def repeat(self) -> None:
        """Play once more and keep the sample where it belongs."""
        # numpy, for measuring alone
        from pytest_moeperf.figures import compute, silence_ms  # noqa: PLC0415

        seed = len(self._plays)
        watch = probe.BusyWatch()
        repeat = self._play(seed, f"repeat {len(self.samples) + 1}/{self.rules.repeats}")
        others = watch.bystanders()
        findings = validity.find(
            repeat,
            compile_patterns=self.server.compile_patterns,
            expect_prefix_hit_rate=self.workload.prefix_hit_rate(self.server.kv_block_tokens),
        )
        sample = Sample(
            seed=seed,
            values=compute(repeat.requests, slo=self.rules.slo),
            findings=tuple(
                finding
                for finding in findings + self._disturbances(others)
                if finding.code not in self.rules.ignored_findings
            ),
        )
        duration_s = (repeat.ended_ns - repeat.started_ns) / 1e9
        silence = silence_ms(repeat.requests) if self.server.gpu_ids else None
        self._plays.append(_Play(sample, silence, duration_s))
        self._sort()
        if any(finding.code == BUSY for finding in sample.findings) and not self.exhausted:
            self._await_calm()

    def _sort(self) -> None:
        """Tell valid plays from others; a play may show only now that an earlier one stalled."""
        stalls: Sequence[Finding | None] = [None] * len(self._plays)
        # On a shared CPU a neighbour makes a server stall, and patience looks after that.
        if self.server.gpu_ids and STALL not in self.rules.ignored_findings:
            stalls = validity.stalls(
                [play.silence_ms for play in self._plays], [play.duration_s for play in self._plays]
            )
        found = [
            play.sample if stall is None else _with(play.sample, stall)
            for play, stall in zip(self._plays, stalls, strict=True)
        ]
        self.samples = [sample for sample in found if sample.valid]
        self.discarded = [sample for sample in found if not sample.valid]

    def _await_calm(self) -> None:
        """Wait until others leave the machine alone, as long as patience lasts."""
        watch = probe.BusyWatch()
        while self.patience.spend(LOOK_AROUND_S):
            others = watch.bystanders()
            if not self._disturbances(others):
                return
            self.announce(f"waiting while others keep {others.cores:.1f} cores busy", "")
            watch = probe.BusyWatch()

    def _disturbances(self, others: probe.Bystanders) -> tuple[Finding, ...]:
        if self.server.process is None or self.server.gpu_ids:
            return ()  # It is not these cores that do the work.
        found = validity.busy_machine(
            foreign_cores=others.cores,
            usable_cores=len(probe.core_ids()),
            names=others.names[:3],
        )
        return () if found is None else (found,)

    def _play(self, seed: int, what: str) -> RepeatRecord:
        requests = plan(
            self.workload,
            seed=seed,
            vocab_size=self.model.vocab_size,
            first_id=self.model.first_id,
            context_tokens=self.server.context_tokens,
            conversations=self.data.conversations,
            trace=self.data.trace,
        )
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
                Target(url=self.server.url, model=self.server.model, api_key=self.server.api_key),
                requests,
                stall_timeout_s=self.rules.stall_timeout_s,
                on_progress=on_progress,
                alive=self.server.check_alive,
                workers=self.rules.client_workers,
            )
        except ServerHungError as error:
            raise self.server.hung(error) from error


def _with(sample: Sample, finding: Finding) -> Sample:
    return replace(sample, findings=(*sample.findings, finding))


def interleave(cells: Iterable[CellMeasurement]) -> None:
    """Warm up the cells that are cold, then play all in turns until each is finished.

    Turns keep a slow change of the machine out of the ratio of two cells.
    """
    waiting = list(cells)
    for cell in waiting:
        if not cell.warmup_plays:
            cell.warm_up()
    while waiting := [cell for cell in waiting if not cell.finished]:
        for cell in waiting:
            cell.repeat()
