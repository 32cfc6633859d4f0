"""A server as a test asks for it: by name, before an engine is installed for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_moeperf.checks import shown
from pytest_moeperf.errors import UsageError

if TYPE_CHECKING:
    from pytest_moeperf.records import ServerSpec

__all__ = ["NamedServer", "required_server"]


@dataclass(frozen=True, slots=True)
class NamedServer:
    """What an argument such as `moe` holds, and a test passes to `measure` or `serve`."""

    name: str
    spec: ServerSpec
    engine: str
    """As given by `--engine`."""

    def __str__(self) -> str:
        return f"{self.spec.label} on {self.engine}"


def required_server(given: object) -> NamedServer:
    """What a test gave for a server; UsageError where that is another thing."""
    if isinstance(given, NamedServer):
        return given
    if isinstance(given, Mapping):
        raise UsageError(
            f"servers by engine ({', '.join(map(str, given))}) were given for a server: choose "
            "one, as in moe['vllm']"
        )
    raise UsageError(
        f"{shown(given)} was given for a server: give what an argument with a name of "
        "pytest_moeperf_servers brings, as moe in def test_load(measure, moe)"
    )
