"""What the rest of the plugin knows about an engine: one protocol, and values without its words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from pytest_moeperf.memory import Architecture
    from pytest_moeperf.records import RequestSpec, ServerSpec

__all__ = [
    "CountingRoute",
    "Engine",
    "EngineFacts",
    "Generated",
    "Launch",
    "Question",
    "growth",
]

CUMULATIVE = frozenset(
    {
        "generation_tokens",
        "preemptions",
        "prefix_cache_hits",
        "prefix_cache_queries",
        "prompt_tokens",
        "requests_finished",
    }
)
"""Counters that only grow, so that a play is described by their growth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Something that a server is asked by POST."""

    path: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountingRoute:
    """How one version of an engine is made to tell which experts its tokens took."""

    name: str
    """In plain words, for reports."""
    flags: tuple[str, ...] = ()
    """What a server that counts is started with, besides its spec's own flags."""
    env: Mapping[str, str] = field(default_factory=dict)
    probe: bool = False
    """Whether the server needs our probe on its import path."""
    one_at_a_time: bool = False
    """Whether requests must not overlap."""
    collect: Question | None = None
    """What is asked before the first request, and after each: its answer has the routes since the
    last time. None: the answer to the request itself has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What a server says it did for one request; None where it does not tell."""

    prompt_tokens: int | None
    output_tokens: int | None
    output_ids: tuple[int, ...] | None
    """The tokens that came out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What one start of a server adds to its spec."""

    model_path: Path
    served_name: str
    host: str = "127.0.0.1"
    port: int
    context_tokens: int
    """What a request may have at most: what the spec says, else what the model does."""
    scratch: Path
    """A folder for the server's sockets and temporary files; it goes with the server."""
    core_ids: tuple[int, ...] = ()
    """Cores that the server may use."""
    gpu_ids: tuple[str, ...] = ()
    """GPUs that it may use, by index on the PCI bus: not every version of every engine understands
    UUIDs. Empty: it runs on the CPU."""
    counting: CountingRoute | None = None
    """How it counts experts, where its spec wants that."""
    probe_path: Path | None = None
    """The folder that makes our probe importable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What an engine said about itself while it started; None where it said nothing."""

    version: str | None = None
    kv_cache_tokens: int | None = None
    kv_cache_gib: float | None = None
    """Per GPU, or for the CPU worker."""
    weights_gib: float | None = None
    """Per GPU."""
    graphs_gib: float | None = None
    """Taken by CUDA graphs, per GPU."""
    moe_backend: str | None = None
    moe_config: str | None = None
    """File of the tuned kernel configuration, with the folder where that names what it was tuned
    for; `default` when there was none."""
    worker_cores: tuple[int, ...] | None = None
    """Cores that the workers' threads were bound to."""
    caches_cold: bool | None = None
    """Whether it compiled anew what an earlier start leaves in a cache; None where the log shows
    nothing of it."""


class Engine(Protocol):
    """Drives one engine. Implementations compute only; files and processes are of others."""

    name: str
    package: str
    """Import name of the engine's package."""
    ready_path: str
    version_path: str
    models_path: str
    metrics_path: str
    reset_prefix_cache_path: str
    flag_sources: tuple[str, ...]
    """Files below the package that declare its flags; the first is needed to know any."""
    compile_patterns: tuple[str, ...]
    """Regular expressions; a matching log line means that code was compiled at that moment."""
    continuous_usage: bool
    """Whether chunks tell their tokens by a running total; else by `return_token_ids`."""
    patience_s: float
    """From SIGTERM to SIGKILL: what an orderly end may take."""
    kills_itself: bool
    """Whether an orderly end is a SIGKILL that it sends to its own processes at last."""
    usual_remains: tuple[str, ...]
    """Regular expressions for names of shared memory that it leaves behind at every end."""

    def argv(self, spec: ServerSpec, launch: Launch) -> list[str]:
        """The words after the interpreter's path."""

    def env(self, spec: ServerSpec, launch: Launch, inherited: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of the server process."""

    def recorded_env(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The variables that may explain a difference between two starts."""

    def check_flags(self, spec: ServerSpec, known: frozenset[str] | None, *, label: str) -> None:
        """Raise `UsageError` for a flag that is unknown or not the user's to set.

        `known` is None where it could not be found out; then only the latter is checked.
        """

    def known_flags(self, sources: Mapping[str, str]) -> frozenset[str] | None:
        """Read the flags of a version from its `flag_sources`; None if the first is missing."""

    def caches_prefixes(self, spec: ServerSpec) -> bool:
        """Whether a server that is started for this spec keeps prompts for later requests."""

    def gpus_needed(self, spec: ServerSpec) -> int:
        """GPUs that one server of this spec occupies."""

    def memory_gib(self, environment: Mapping[str, str], *, weights_gib: float) -> float:
        """Main memory that one server occupies on a CPU, estimated."""

    def phase(self, line: str) -> str | None:
        """What the start is doing from this log line on, in plain words."""

    def cause(self, lines: Sequence[str]) -> str | None:
        """The log's own words for why the engine ended."""

    def parse_facts(self, lines: Iterable[str]) -> EngineFacts:
        """Read the start-up log."""

    def counters(self, metrics_text: str) -> dict[str, float]:
        """Read a Prometheus exposition, under names that all engines share."""

    def counting_route(
        self, spec: ServerSpec, *, version: str | None, on_gpu: bool, model_type: str
    ) -> CountingRoute:
        """How a server of this version counts experts, the least intrusive way that is exact.

        Raises `UsageError` where there is none; the message says what to use in its place.
        """

    def counted_request(self, request: RequestSpec, *, model: str) -> Question:
        """Ask for exactly so many tokens, greedily and in one answer, and for their routes."""

    def read_generated(self, answer: Any) -> Generated:
        """Read the decoded answer to a counted request."""

    def read_routes(self, answer: Any, architecture: Architecture) -> npt.NDArray[np.integer]:
        """The routes of one request, [tokens, layers of the model, k].

        `answer` is the decoded answer to a counted request, or to what the route collects by.
        Raises `RoutingError` where it has none, or none of this architecture.
        """


def growth(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What the ever-growing counters grew by; a counter that one side lacks is left out."""
    common = CUMULATIVE & before.keys() & after.keys()
    return {name: after[name] - before[name] for name in sorted(common)}
