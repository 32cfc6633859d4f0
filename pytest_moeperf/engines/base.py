"""What the rest of the plugin knows about an engine: one protocol, and values without its words."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pytest_moeperf.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from pytest_moeperf.records import ServerSpec

__all__ = ["Engine", "EngineFacts", "Launch", "check_flags", "flag_names", "growth"]

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
class Launch:
    """What one start of a server adds to its spec."""

    model_path: Path
    served_name: str
    host: str = "127.0.0.1"
    port: int
    scratch: Path
    """A folder for the server's sockets and temporary files; it goes with the server."""
    core_ids: tuple[int, ...] = ()
    """Cores that the server may use."""
    gpu_ids: tuple[str, ...] = ()
    """GPUs that it may use, by UUID; empty: it runs on the CPU."""


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
    """File name of the tuned kernel configuration, or `default` when there was none."""
    worker_cores: tuple[int, ...] | None = None
    """Cores that the workers' threads were bound to."""
    weights_load_s: float | None = None
    compile_s: float | None = None
    engine_init_s: float | None = None


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


def growth(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What the ever-growing counters grew by; a counter that one side lacks is left out."""
    common = CUMULATIVE & before.keys() & after.keys()
    return {name: after[name] - before[name] for name in sorted(common)}


def flag_names(words: Iterable[str]) -> list[str]:
    """The flags among command-line words, without values and with dashes for underscores.

    >>> flag_names(["--moe_backend", "triton", "-cc.mode=NONE", "--watermark=-1"])
    ['--moe-backend', '-cc', '--watermark']
    """
    flags = [word for word in words if re.match(r"--?[A-Za-z]", word)]
    return [re.split(r"[=.]", flag, maxsplit=1)[0].replace("_", "-") for flag in flags]


def check_flags(
    words: Iterable[str],
    *,
    known: frozenset[str] | None,
    reserved: Mapping[str, str],
    label: str,
) -> None:
    """Raise `UsageError` for the first flag that `label` lacks or that is `reserved`.

    `reserved` maps a flag to what to use in its place.
    """
    for flag in flag_names(words):
        if flag in reserved:
            raise UsageError(f"engine flag {flag}: set by the plugin; use {reserved[flag]}")
        if known is None or flag in known or _is_negation(flag, known):
            continue
        near = difflib.get_close_matches(flag, sorted(known), n=3, cutoff=0.7)
        advice = f"did you mean {' or '.join(near)}?" if near else "see the engine's --help=all"
        raise UsageError(f"engine flag {flag}: {label} has no such flag; {advice}")


def _is_negation(flag: str, known: frozenset[str]) -> bool:
    return flag.startswith("--no-") and f"--{flag.removeprefix('--no-')}" in known
