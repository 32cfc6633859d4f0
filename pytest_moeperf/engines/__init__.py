"""One file an engine: what it is started with, and how its answers and log are read."""

from __future__ import annotations

from pytest_moeperf.engines.base import CountingRoute, Engine, EngineFacts, Launch, growth
from pytest_moeperf.engines.sglang import Sglang
from pytest_moeperf.engines.vllm import Vllm
from pytest_moeperf.errors import UsageError

__all__ = [
    "ENGINES",
    "CountingRoute",
    "Engine",
    "EngineFacts",
    "Launch",
    "engine_named",
    "engine_of_metrics",
    "growth",
]

ENGINES: dict[str, Engine] = {"vllm": Vllm(), "sglang": Sglang()}


def engine_named(name: str) -> Engine:
    """Return the engine; raise `UsageError` listing them for another name."""
    try:
        return ENGINES[name]
    except KeyError:
        raise UsageError(f"engine {name!r}: unknown; valid are {', '.join(ENGINES)}") from None


def engine_of_metrics(text: str) -> str | None:
    """Whose metrics these are, by their prefix; None where it is not one engine's alone."""
    lines = text.splitlines()
    found = [name for name in ENGINES if any(line.startswith(f"{name}:") for line in lines)]
    return found[0] if len(found) == 1 else None
