"""What counts as a clean end of a server, by engine."""

import signal

import pytest

from pytest_moeperf.engines import ENGINES
from pytest_moeperf.process import ENDED_BY_SIGTERM, Shutdown


def shutdown(engine, **told):
    driver = ENGINES[engine]
    codes = ENDED_BY_SIGTERM | ({-signal.SIGKILL} if driver.kills_itself else set())
    fields = {"seconds": 4.4, "exit_code": 0, "killed": 0, "removed": ()} | told
    return Shutdown(**fields, usual_codes=codes, usual_remains=driver.usual_remains)


def test_sglang_ends_itself_by_sigkill_and_leaves_a_snapshot_of_its_loads():
    # As SGLang 0.5.16 ended on an H200.
    told = {"exit_code": -9, "removed": ("sglang_loads_e0168bbc2633_ebc8f211.shm",)}
    assert shutdown("sglang", **told).clean
    assert not shutdown("vllm", **told).clean


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(
    "told",
    [
        {"killed": 1},
        {"left": (4711,)},
        {"port_open": True},
        {"exit_code": 1},
        {"removed": ("psm_12345678",)},
        {"removed": ("sglang_loads_1.shm", "psm_12345678")},
    ],
    ids=["killed", "left", "port", "exit code", "shared memory", "more shared memory"],
)
def test_what_else_remains_is_not_clean(engine, told):
    assert not shutdown(engine, **told).clean
