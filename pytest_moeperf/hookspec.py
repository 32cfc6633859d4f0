"""Hooks that a suite's conftest.py may implement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_moeperf.records import ServerSpec


@pytest.hookspec(firstresult=True)
def pytest_moeperf_servers(hardware: str) -> Mapping[str, ServerSpec | None] | None:
    """Name the servers that tests may ask for, on one class of hardware.

    Every name becomes a fixture: a test with the argument `moe` runs once per `--engine`, with
    the spec under that name. Map a name to None where the hardware has no such server: tests
    that ask for it are skipped with that reason.

    Args:
        hardware: Class of the machine, such as `cpu` or `h200`.
    """
