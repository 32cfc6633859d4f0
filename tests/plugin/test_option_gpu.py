"""--gpu: what the run measures on."""

import pytest

from pytest_moeperf.hardware import Gpu


@pytest.fixture
def gpus(monkeypatch):
    """Makes the machine have GPUs of the given names; none unless it is called."""

    def have(*names):
        found = tuple(
            Gpu(index=index, name=name, memory_gib=140.4, uuid=f"GPU-{index}")
            for index, name in enumerate(names)
        )
        monkeypatch.setattr("pytest_moeperf.gpu.detect_gpus", lambda: found)

    have()
    return have


def test_an_unknown_class_is_an_error_that_lists_the_known(suite, gpus):
    outcome = suite.run("--gpu", "h9000")
    assert outcome.usage_error == (
        "ERROR: --gpu h9000: unknown; valid are auto, cpu, a100, a100-40gb, a100-pcie, "
        "a100-pcie-40gb, b200, h100, h100-nvl, h100-pcie, h200, h200-nvl, l40s; "
        "this machine has no NVIDIA GPU"
    )


def test_a_class_that_the_machine_lacks_is_an_error_that_names_what_was_found(suite, gpus):
    gpus("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    outcome = suite.run("--gpu", "h200")
    assert outcome.usage_error == (
        "ERROR: --gpu h200: this machine has 2x NVIDIA H100 80GB HBM3; use --gpu h100, --gpu cpu"
    )


def test_auto_is_the_cpu_where_there_is_no_gpu(suite, gpus, server):
    suite.write_ratio((0.9, 1.1))
    outcome = suite.run("--gpu", "auto", "--engine", f"vllm={server.url}")
    outcome.counts(passed=1)
    outcome.shows("moeperf: --gpu auto, --engine *", "moeperf: cpu (* cores, * GiB), vllm*")
    assert outcome.run_json["hardware"] == "cpu"


def test_auto_is_the_gpu_where_there_is_one(suite, gpus, server):
    gpus("NVIDIA H200", "NVIDIA H200")
    suite.write_ratio((0.9, 1.1))
    outcome = suite.run("--gpu", "auto", "--engine", f"vllm={server.url}")
    outcome.counts(passed=1)
    outcome.shows("moeperf: h200 (2x NVIDIA H200, 140 GiB each), vllm*")


def test_the_cpu_can_be_chosen_beside_a_gpu_in_any_case(suite, gpus, server):
    gpus("NVIDIA H200")
    suite.write_ratio((0.9, 1.1))
    outcome = suite.run("--gpu", "CPU", "--engine", f"vllm={server.url}")
    outcome.shows("moeperf: cpu (*")
    outcome.counts(passed=1)


def test_a_session_that_measures_nothing_does_not_look_for_gpus(suite):
    suite.write("def test_other():\n    pass\n")
    suite.run("--gpu", "h9000").counts(passed=1)
