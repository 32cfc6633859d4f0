"""Hooks that a suite's conftest.py may implement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_moeperf.records import ServerSpec


@pytest.hookspec(firstresult=True)
def pytest_moeperf_servers(
    hardware: str,
) -> Mapping[str, ServerSpec | Sequence[ServerSpec] | None] | None:
    """Name the servers that tests may ask for, on one class of hardware.

    Every name becomes a fixture: a test with the argument `moe` runs once per `--engine`, with
    the spec under that name, and once per spec where there are several. Map a name to None where
    the hardware has no such server: tests that ask for it are skipped with that reason.

    Args:
        hardware: Class of the machine, such as `cpu` or `h200`.
    """


@pytest.hookspec(firstresult=True)
def pytest_moeperf_values(hardware: str) -> Mapping[str, Sequence[object]] | None:
    """Name what else measuring tests may ask for on one class of hardware, such as workloads.

    Every name becomes a parameter: a test with the argument `burst` runs once per value under
    that name.

    Args:
        hardware: Class of the machine, such as `cpu` or `h200`.
    """
