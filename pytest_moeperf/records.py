"""The vocabulary: what flows from the load client to the report, as frozen values.

Clock readings are integers in nanoseconds of one monotonic clock (`_ns`); quantities carry their
unit in the name; what was not measured is None, never 0.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pytest_moeperf.request import RequestRecord, RequestSpec
from pytest_moeperf.serverspec import EngineInstall, LoadFormat, ServerSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CellResult",
    "ClientRecord",
    "Direction",
    "EngineInstall",
    "Finding",
    "Fingerprint",
    "GpuReading",
    "LoadFormat",
    "NextStep",
    "Outcome",
    "RepeatRecord",
    "RequestRecord",
    "RequestSpec",
    "RoutingRecord",
    "Sample",
    "ServerSpec",
    "StartRecord",
    "Verdict",
    "Weights",
]

Direction = Literal["higher", "lower"]
"""Which way a metric gets better."""

Weights = Literal["auto", "dummy", "real"]
"""What a published model is loaded with: a local copy of its checkpoint, weights that the engine
makes up, or `auto`: the former if it is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRecord:
    """How far the load client may be trusted in one play, by its own measurement."""

    workers: int
    """Processes that sent the load."""
    timestamps: Literal["kernel", "mixed", "read"]
    """What arrival times are: when the kernel received the data, or when the client read it."""
    cpu_s: float
    """CPU seconds of all workers."""
    cpu_share: float
    """CPU seconds ÷ seconds of the play, of the busiest worker."""
    read_lag_ms_p50: float | None
    """From the kernel's receipt of data to the client's handling of it; None without stamps."""
    read_lag_ms_p99: float | None
    reads: int
    merged_reads: int
    """Reads that brought two or more chunks with tokens, which share one arrival time."""
    lost_arrivals: int
    """Chunks that were read with a later one and may have arrived over 3 ms before it."""
    clock_step_ms: float
    """Change between the wall clock, which the kernel stamps by, and the monotonic clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatRecord:
    """One play of a workload on one server start."""

    requests: tuple[RequestRecord, ...]
    started_ns: int
    ended_ns: int
    client: ClientRecord | None = None
    """What the load client knows of its own error."""
    counters: Mapping[str, float] = field(default_factory=dict)
    """Growth of the server's own counters during the play, by the names of the engine layer
    (`prefix_cache_hits`, `preemptions`, `prompt_tokens`, `generation_tokens`)."""
    log: tuple[str, ...] = ()
    """What the server logged meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A reason not to trust a repeat, and what a reader can do about it."""

    code: str
    """Stable name: `failed_requests`, `token_totals`, `compilation`, …"""
    message: str
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """What one GPU did during a play: medians of its samples, None where the driver tells none."""

    uuid: str
    samples: int
    """How often it was looked at; 0 where the driver told nothing at all."""
    sm_clock_mhz: float | None = None
    sm_clock_mhz_min: float | None = None
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    utilisation: float | None = None
    """Share of the time in which a kernel ran, 0 to 1."""
    memory_used_gib: float | None = None
    throttled: Mapping[str, float] = field(default_factory=dict)
    """Why its clocks were held down, such as `sw_power_cap`, by the share of samples, 0 to 1; to be
    idle is no reason."""
    foreign: tuple[str, ...] = ()
    """Compute processes on it that are not the server's: `4711 python3`."""
    idle_before: bool = True
    """Whether nothing ran on it when the play began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One repeat, reduced to its metrics."""

    seed: int
    values: Mapping[str, float | None]
    """By metric key with statistic, e.g. `tpot_ms.p50`; None where it was not measurable."""
    findings: tuple[Finding, ...] = ()
    gpus: tuple[GpuReading, ...] = ()
    """What the server's GPUs did meanwhile; none on a CPU."""

    @property
    def valid(self) -> bool:
        """Whether the repeat may be judged."""
        return not self.findings


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What must be equal for two samples to be comparable.

    The engine's version is not part of it: that is what a check compares.
    """

    hardware: str
    cpu_model: str | None
    """None on a GPU: its figures are comparable whatever CPU is beside it."""
    cpu_cores: int | None
    """Cores that this process may use, not what the machine has; None on a GPU."""
    gpus: tuple[str, ...] = ()
    engine: str
    model: str
    """Catalogue name or directory name, and a digest of architecture and weights' origin."""
    server: str
    """Digest of parallelism, precision, context and flags."""
    workload: str
    """The workload's identity with its version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRecord:
    """The samples of one server start: the sampling unit of every verdict."""

    start_id: str
    session_id: str
    recorded_at: str
    """UTC, ISO 8601."""
    startup_s: float | None
    """None for an attached server."""
    engine_version: str | None
    environment: Mapping[str, str] = field(default_factory=dict)
    """What does not decide comparability but may explain a difference: server cores, threads,
    engine environment variables, torch version, kernel."""
    repeats: tuple[Sample, ...] = ()
    warmup: tuple[Sample, ...] = ()
    """The workload's plays before the repeats, the first, cold one first. Never judged; of the
    figures only those that show how slow a cold server is."""


class Outcome(enum.StrEnum):
    """What a verdict can say."""

    PASS = "PASS"  # noqa: S105 - a verdict
    REGRESSED = "REGRESSED"
    IMPROVED = "IMPROVED"
    INCONCLUSIVE = "INCONCLUSIVE"
    UNSTABLE = "UNSTABLE"
    ENV_DRIFT = "ENV_DRIFT"
    NO_BASELINE = "NO_BASELINE"
    INCOMPARABLE = "INCOMPARABLE"
    INVALID = "INVALID"
    RECORDED = "RECORDED"
    """`--baseline record`: stored, not judged."""
    EXPECTED = "EXPECTED"
    """REGRESSED by no more than a known regression that is on file, or in a test that is marked as
    expected to fail."""
    UNEXPECTED_PASS = "UNEXPECTED_PASS"  # noqa: S105 - a verdict
    """Good, although a known regression is on file: the entry must go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was decided about one metric of one cell, with the figures that decided it."""

    metric: str
    outcome: Outcome
    unit: str = ""
    direction: Direction | None = None
    """None for a metric that has only bounds."""
    measured: float | None = None
    spread: float | None = None
    """Half the range of the repeats, in the metric's unit; None with one repeat."""
    certain: tuple[float, float] | None = None
    """95 % confidence interval of `measured`, in its unit; None where no requests were resampled
    for it."""
    values: tuple[float, ...] = ()
    """What was held against fixed bounds, a value a repeat, such as ratios of two cells; of a
    verdict by baseline or A/B the starts have them."""
    stored: tuple[tuple[float, ...], ...] = ()
    """The metric in the baseline that it was held against: the repeats of each stored start."""
    expected: float | None = None
    lower: float | None = None
    upper: float | None = None
    """Bounds in the metric's unit; None: open on that side."""
    change: float | None = None
    """measured ÷ expected − 1."""
    effect: float | None = None
    """The same change, positive where it is for the better: −0.05 is a loss of 5 %."""
    interval: tuple[float, float] | None = None
    """Low and high end of the 95 % confidence interval of `effect`."""
    p: float | None = None
    """Chance of so bad a figure if the engine were no worse, looks taken into account."""
    p_limit: float | None = None
    """What `p` had to stay within to blame the engine."""
    tolerance: float | None = None
    """0.05: up to 1.05 times as bad was accepted."""
    starts: int | None = None
    """Fresh server starts of the engine under test that decided."""
    paired: bool = False
    """Held against starts of the old engine, taken in turns in the same session."""
    visible: float | None = None
    """INCONCLUSIVE: what the smallest loss is that could have been seen, as `tolerance` is given:
    0.05 is 1.05 times as bad."""
    reason: str = ""
    """One sentence in plain words."""
    notes: tuple[str, ...] = ()
    """What differs between the two sides and may explain the change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingRecord:
    """How often each expert was chosen in one play of a workload.

    Each token takes `top_k` experts in every layer, so a layer's counts add up to tokens × top_k.
    """

    route: str
    """How the engine told it, in plain words."""
    layers: tuple[int, ...]
    """Which layer of the model each row is; only layers with experts."""
    experts: int
    """Experts of a layer."""
    top_k: int
    prefill_tokens: int
    """Prompt tokens that went through every layer."""
    decode_tokens: int
    """The same of generated tokens; the last one of a request goes through none."""
    prefill: tuple[tuple[int, ...], ...]
    """[layers][experts]"""
    decode: tuple[tuple[int, ...], ...] | None
    """[layers][experts]; None where no request generated more than one token."""


@dataclass(frozen=True, slots=True)
class NextStep:
    """What a reader of a verdict that is not good would type next."""

    command: str
    purpose: str = ""
    """What for, in a few words; empty where the verdict has said it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """One measured cell with everything a report shows of it."""

    cell: str
    """`<suite>/<model>.<workload>`: also the path of its baseline below hardware and engine."""
    test: str
    """Node id of the test that measured it."""
    server: str
    engine: str
    workload: str
    fingerprint: Fingerprint | None
    start: StartRecord | None
    """The first one of the session."""
    further: tuple[StartRecord, ...] = ()
    """Fresh starts of the engine under test after the first one, made to settle a verdict."""
    against: str | None = None
    """The old engine, where the cell was measured on both in turns."""
    old: tuple[StartRecord, ...] = ()
    """Starts of the old engine, in order; `new` are those of the engine under test."""
    new: tuple[StartRecord, ...] = ()
    discarded: tuple[Sample, ...] = ()
    """Repeats that were found invalid and measured again."""
    warmup_plays: int | None = None
    warmup_reason: str = ""
    """Why warm-up ended; empty where no load was played."""
    invalid: bool = False
    """Too many repeats were invalid: nothing can be said about the cell."""
    verdicts: tuple[Verdict, ...] = ()
    routing: RoutingRecord | None = None
    """Which experts the tokens took, on a server of its own; None where nobody asked."""
    next_steps: tuple[NextStep, ...] = ()

    @property
    def label(self) -> str:
        """How messages name the cell: server and workload."""
        return f"{self.server}, {self.workload}"

    @property
    def starts(self) -> tuple[StartRecord, ...]:
        """The fresh starts of the engine under test, those of an A/B apart."""
        return () if self.start is None else (self.start, *self.further)

    def values(self, metric: str) -> tuple[float | None, ...]:
        """The metric in every valid repeat of the first start, in their order."""
        repeats = self.start.repeats if self.start is not None else ()
        return tuple(repeat.values.get(metric) for repeat in repeats)
