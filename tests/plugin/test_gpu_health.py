"""A GPU that does not do what a measurement needs makes it INVALID, in whole sessions."""

import json
from pathlib import Path

import pytest

RECORDING = Path(__file__).parents[1] / "data" / "nvml" / "1x-h200.json"
NOBODY = 2**22 + 1
"""No process has this number: it is over the greatest that Linux gives."""


@pytest.fixture
def run(suite, monkeypatch):
    """Runs the suite on one H200 whose answers are changed while a server is on it."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def changed(*arguments, **answers):
        recording = json.loads(RECORDING.read_text())
        recording["gpus"][0]["busy"].update(answers)
        path = suite.root / "nvml.json"
        path.write_text(json.dumps(recording))
        monkeypatch.setenv("MOEPERF_TEST_NVML", str(path))
        # The load of the machine that runs the tests is no fault of the fake.
        return suite.run(
            *("-p", "pytest_moeperf.testing.gpuhost", "--gpu", "h200", "--baseline", "record"),
            *("--ignore-finding", "stall", *arguments),
        )

    return changed


def reasons(outcome):
    """Of the only cell: how it came out, and why its repeats do not count."""
    [cell] = outcome.judged
    [verdict] = {verdict["outcome"] for verdict in cell["verdicts"]}
    discarded = cell["discarded"].get("findings", [])
    return verdict, {finding["code"] for findings in discarded for finding in findings}


def test_heat_is_no_measurement(run):
    outcome = run(nvmlDeviceGetCurrentClocksEventReasons=8 | 64)
    outcome.counts(failed=1)
    assert reasons(outcome) == ("INVALID", {"throttled"})
    assert "GPU-4581ee0d by heat (hardware) in 100 % of the samples, down to" in outcome.text


def test_somebody_else_on_the_gpu_is_no_measurement(run):
    # Later than at the start, where it would be waited for.
    came = {"series": [[], *[[{"pid": NOBODY, "usedGpuMemory": 1}]] * 10_000]}
    outcome = run(nvmlDeviceGetComputeRunningProcesses=came)
    outcome.counts(failed=1)
    assert reasons(outcome) == ("INVALID", {"foreign_process"})
    assert f"others computed on a GPU of the server: {NOBODY} on GPU-4581ee0d" in outcome.text


def test_a_finding_that_is_ignored_counts_for_nothing(run):
    ignored = ("--ignore-finding", "throttled")
    outcome = run(*ignored, nvmlDeviceGetCurrentClocksEventReasons=8)
    outcome.counts(passed=1)
    assert reasons(outcome) == ("RECORDED", set())
