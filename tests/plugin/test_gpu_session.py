"""Whole sessions on GPUs: a recording stands in for the driver, a fake for the engine."""

import json
from pathlib import Path

import pytest

RECORDINGS = Path(__file__).parents[1] / "data" / "nvml"
TWO_CELLS = """\
from pytest_moeperf import ClosedLoop

LOAD = ClosedLoop(concurrency=2, isl=4, osl=8, requests=4)
SHORTER = ClosedLoop(concurrency=2, isl=4, osl=4, requests=4)
LONGER = ClosedLoop(concurrency=2, isl=16, osl=8, requests=4)

def test_first(measure, moe):
    measure(moe, LOAD).gate("output_throughput")

def test_of_the_same_shapes(measure, moe):
    measure(moe, SHORTER).gate("output_throughput")

def test_of_longer_prompts(measure, moe):
    measure(moe, LONGER).gate("output_throughput")
"""


@pytest.fixture
def recorded(suite, whole_warm_up, monkeypatch):
    """What a session on one H200 recorded, with two repeats a cell."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("MOEPERF_TEST_NVML", str(RECORDINGS / "1x-h200.json"))
    suite.write(TWO_CELLS)
    # The load of the machine that runs the tests is no fault of the fake.
    outcome = suite.run(
        *("-p", "pytest_moeperf.testing.gpuhost", "--gpu", "h200", "--repeats", "2"),
        *("--ignore-finding", "stall", "--baseline", "record"),
    )
    outcome.counts(passed=3)
    return outcome


def test_the_first_play_is_kept_as_the_cold_one_and_no_shape_is_met_twice(recorded):
    first, same, longer = (cell["start"] for cell in recorded.judged)
    plays = first["warmup"]["values"]
    assert len(plays["output_throughput"]) >= 2
    assert min(plays["output_throughput"] + plays["ttft_ms.p50"]) > 0
    assert "tpot_ms.p50" not in plays
    assert "warmup" not in same
    assert len(longer["warmup"]["seeds"]) == 1
    first, same, longer = (cell["warmup_reason"] for cell in recorded.judged)
    assert "from the best one's" in first or "not steady after 8 plays" in first
    assert same == "the server has met all shapes of the workload"
    assert longer == "the server was warm before"


def test_what_the_gpu_did_is_in_the_reports_and_in_the_baseline(recorded):
    cell = recorded.judged[0]
    [path] = (recorded.root / "baselines" / "h200").rglob("*isl4-osl8*.json")
    [stored] = json.loads(path.read_text())["starts"]
    assert stored["gpus"] == cell["start"]["repeats"]["gpus"]
    assert stored["gpus"]["repeat"] == [0, 1]
    assert len(stored["gpus"]["uuids"]) == 1
    assert min(stored["gpus"]["sm_clock_mhz"]) > 0
    assert stored["warmup"]["seeds"] == cell["start"]["warmup"]["seeds"]
    used = stored["gpus"]["memory_used_gib"][0]
    values = cell["start"]["repeats"]["values"]
    assert values["output_throughput_per_gpu_gib"][0] == pytest.approx(
        values["output_throughput"][0] / used, rel=1e-3
    )
    # The CPU beside a GPU decides nothing, and how fast it copies memory excuses nothing.
    assert "memory_copy_gib_per_s" not in stored["environment"]
    assert stored["environment"]["gpu_driver"]
    fingerprint = recorded.judged[0]["fingerprint"]
    assert (fingerprint["cpu_model"], fingerprint["cpu_cores"]) == (None, None)
    assert fingerprint["gpus"] == ["NVIDIA H200"]
    recorded.shows("time: * % starting (1 server, 1 spec), * % warm-up, * % measuring, *other")
    spent = recorded.run_json["time"]
    assert (spent["starts"], spent["specs"], spent["processes"]) == (1, 1, 1)
    assert min(spent["starting_s"], spent["warmup_s"], spent["measuring_s"]) > 0


STARTUP = """\
def test_startup(measure, moe):
    measure.startup(moe).gate("startup_s")
"""


@pytest.mark.parametrize(("cold", "files"), [(True, 0), (False, 1)])
def test_a_start_with_empty_caches_is_skipped_and_not_recorded(suite, monkeypatch, cold, files):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("MOEPERF_TEST_NVML", str(RECORDINGS / "1x-h200.json"))
    suite.script(cold_caches=cold)
    suite.write(STARTUP)
    outcome = suite.run(
        *("-p", "pytest_moeperf.testing.gpuhost", "--gpu", "h200", "--baseline", "record", "-rs"),
    )
    outcome.counts(skipped=int(cold), passed=int(not cold))
    assert ("the engine compiled what its next start on this machine finds" in outcome.text) == cold
    assert len(list((outcome.root / "baselines").rglob("*.json"))) == files
