"""The gates that a session plans for, which share its chance of a false alarm."""

import pytest

from pytest_moeperf.hardware import Gpu

PLANNED = """\
import pytest
from pytest_moeperf.session import SESSION

def test_gates(request, measure, moe):
    assert request.config.stash[SESSION].sampler.night.gates == {gates}
"""
OTHER = "def test_other({}, moe): pass\n"


def test_each_test_that_measures_has_two(suite):
    suite.write(PLANNED.format(gates=4) + OTHER.format("measure"))
    suite.run().counts(passed=2)


@pytest.mark.parametrize("fixture", ["serve", "experts"])
def test_a_test_without_a_p_has_none(suite, fixture):
    suite.write(PLANNED.format(gates=2) + OTHER.format(fixture))
    suite.run().counts(passed=2)


@pytest.mark.parametrize(
    "skipped",
    [
        pytest.param("def test_other(measure, absent): pass", id="no such server"),
        pytest.param(
            "@pytest.mark.across_engines('vllm', 'sglang')\ndef test_other(measure, moe): pass",
            id="not all of its engines",
        ),
        pytest.param("@pytest.mark.skip\ndef test_other(measure, moe): pass", id="by its author"),
    ],
)
def test_a_test_that_is_skipped_when_it_is_collected_has_none(suite, skipped):
    suite.write(PLANNED.format(gates=2) + skipped)
    suite.run().counts(passed=1, skipped=1)


@pytest.mark.parametrize(
    "skipped",
    [
        pytest.param("def test_other(measure, moe_tp2): pass", id="by its server"),
        pytest.param(
            "@pytest.mark.gpus(2)\ndef test_other(measure, moe): pass", id="by its marker"
        ),
    ],
)
def test_a_test_that_takes_more_gpus_than_there_are_has_none(mixtral_suite, monkeypatch, skipped):
    h200 = Gpu(index=0, name="NVIDIA H200", memory_gib=141.0, uuid="GPU-0")
    monkeypatch.setattr("pytest_moeperf.gpu.detect_gpus", lambda: (h200,))
    mixtral_suite.write(PLANNED.format(gates=2) + skipped)
    mixtral_suite.run("--gpu", "h200").counts(passed=1, skipped=1)
