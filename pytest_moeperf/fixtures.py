"""The fixtures of the plugin. What they give is loaded when the first test asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_moeperf.session import SESSION

if TYPE_CHECKING:
    from pytest_moeperf.cell import Measure, Serve
    from pytest_moeperf.hardware import Hardware
    from pytest_moeperf.routing import Experts

__all__ = ["experts", "gpu", "measure", "serve"]


@pytest.fixture(scope="session")
def gpu(request: pytest.FixtureRequest) -> Hardware:
    """What is measured on, a CPU too: `gpu.name`, `gpu.count`, `gpu.memory_gb_per_s`."""
    return request.config.stash[SESSION].hardware


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Measure:
    """Measure a workload on a server: `measure(moe, ClosedLoop(concurrency=1, …))`."""
    from pytest_moeperf.cell import Measure  # noqa: PLC0415 - the judge, only for suites

    return Measure(request.node, request.config.stash[SESSION])


@pytest.fixture
def serve(request: pytest.FixtureRequest) -> Serve:
    """Start a server, or take the one that runs: `serve(moe)`."""
    from pytest_moeperf.cell import Serve  # noqa: PLC0415 - the judge, only for suites

    return Serve(request.node, request.config.stash[SESSION])


@pytest.fixture
def experts(request: pytest.FixtureRequest) -> Experts:
    """Count which experts a workload's tokens take: `experts(moe, Burst(requests=…))`."""
    from pytest_moeperf.routing import Experts  # noqa: PLC0415 - numpy, only for suites

    return Experts(request.node, request.config.stash[SESSION])
