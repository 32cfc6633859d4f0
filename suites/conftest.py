"""The servers that the suites measure, by class of hardware."""

import pytest

from pytest_moeperf import ClosedLoop, ServerSpec

SERVERS = {
    "cpu": {
        "moe": ServerSpec("mini-moe"),
        "dense": ServerSpec("mini-dense"),
    },
}
"""`dense` has the size that one token of `moe` activates. More hardware is more entries."""

NO_SERVERS = {"moe": None, "dense": None}


def pytest_moeperf_servers(hardware):
    return SERVERS.get(hardware, NO_SERVERS)


@pytest.fixture(scope="session")
def ladder():
    """Streams that decode together, by their number."""
    return {
        batch: ClosedLoop(concurrency=batch, isl=32, osl=32, requests=max(4, batch))
        for batch in (1, 2, 4, 8, 16)
    }
