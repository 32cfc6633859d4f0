"""Comparisons where only one server runs at a time: one recorded GPU, two servers."""

from pathlib import Path

import pytest

RECORDING = Path(__file__).parents[1] / "data" / "nvml" / "1x-h200.json"
SOURCE = """\
import pytest
from pytest_moeperf import ClosedLoop

LOADS = {n: ClosedLoop(concurrency=n, isl=4, osl=8, requests=2) for n in (1, 2)}

@pytest.mark.parametrize("count", LOADS)
def test_ratio(measure, moe, dense, count):
    moes, denses = measure.together(moe, dense, LOADS)
    moes[count].over(denses[count], "output_throughput").within(BOUNDS, why="both are fakes")

def test_moe(measure, moe):
    one, two = measure(moe, LOADS[1]), measure(moe, LOADS[2])
    one.over(two, "output_throughput").within(0.02, 50, why="")

def test_dense(measure, dense):
    cells = measure.ladder(dense, LOADS)
    cells[1].over(cells[2], "output_throughput").within(0.02, 50, why="")

@pytest.mark.stops_server
@pytest.mark.parametrize("name", ["moe", "dense"])
def test_stop(serve, moe, dense, name):
    assert serve.stop({"moe": moe, "dense": dense}[name]).clean
"""


@pytest.fixture
def one_gpu(suite, monkeypatch):
    """Runs the suite on one H200, with these bounds of its ratio."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("MOEPERF_TEST_NVML", str(RECORDING))

    def run(bounds):
        suite.write(SOURCE.replace("BOUNDS", bounds))
        return suite.run(
            *("-p", "pytest_moeperf.testing.gpuhost", "--gpu", "h200"),
            *("--ignore-finding", "busy_machine", "--ignore-finding", "stall"),
        )

    return run


def test_every_server_starts_once_and_all_tests_share_its_cells(one_gpu):
    outcome = one_gpu("0.02, 50.0")
    outcome.counts(passed=6)
    # The stops included: one server has ended already, when it made room for the other.
    assert len(outcome.logs) == 2
    cells = outcome.run_json["cells"]
    assert len({cell["start"]["start_id"] for cell in cells}) == 2
    # Each of the two servers played two loads, for ratios above the line and below.
    assert len({str(cell["start"]["repeats"]) for cell in cells}) == 4


def test_a_bad_ratio_is_looked_at_again_on_the_server_that_runs_and_on_a_new_one(one_gpu):
    outcome = one_gpu("50.0, 60.0")
    outcome.counts(failed=2, passed=4)
    ratio = next(cell for cell in outcome.judged if cell["verdicts"][0]["outcome"] == "REGRESSED")
    assert len(ratio["start"]["repeats"]["seeds"]) == 2
    assert len(outcome.logs) == 4
