"""@pytest.mark.gpus(count)."""

import pytest

from pytest_moeperf.hardware import Gpu


def test_a_test_that_needs_more_gpus_than_there_are_is_skipped_with_both_numbers(suite):
    suite.write("import pytest\n\n@pytest.mark.gpus(2)\ndef test_two(measure, moe):\n    pass\n")
    outcome = suite.run("-rs")
    outcome.counts(skipped=1)
    outcome.shows("SKIPPED * needs 2 GPUs, this machine has 0")
    assert outcome.logs == []


def test_a_test_with_enough_gpus_runs(suite, server, monkeypatch):
    gpus = tuple(
        Gpu(index=index, name="NVIDIA H200", memory_gib=141.0, uuid=f"GPU-{index}")
        for index in range(2)
    )
    monkeypatch.setattr("pytest_moeperf.gpu.detect_gpus", lambda: gpus)
    suite.write("import pytest\n\n@pytest.mark.gpus(2)\ndef test_two(measure, moe):\n    pass\n")
    suite.run("--gpu", "h200", "--engine", f"vllm={server.url}").counts(passed=1)


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ("moe_tp2", "needs 2 GPUs, this machine has 1"),
        ("moe", "its weights take 87.0 GiB a GPU, NVIDIA H100 80GB HBM3 has 79.6 GiB"),
    ],
)
def test_a_server_that_the_gpus_cannot_hold_skips_its_tests(
    mixtral_suite, monkeypatch, server, reason
):
    h100 = Gpu(index=0, name="NVIDIA H100 80GB HBM3", memory_gib=79.6, uuid="GPU-0")
    monkeypatch.setattr("pytest_moeperf.gpu.detect_gpus", lambda: (h100,))
    mixtral_suite.write(f"def test_large(serve, {server}):\n    serve({server})\n")
    outcome = mixtral_suite.run("--gpu", "h100", "-rs")
    outcome.counts(skipped=1)
    outcome.shows(f"SKIPPED * {reason}")
    assert outcome.logs == []


@pytest.mark.parametrize("arguments", ["", "0", "'two'", "1, 2", "True"])
def test_a_count_that_is_none_is_an_error_in_one_line(suite, arguments):
    suite.write(
        f"import pytest\n\n@pytest.mark.gpus({arguments})\ndef test_two(measure, moe):\n    pass\n"
    )
    outcome = suite.run()
    assert outcome.usage_error == (
        "ERROR: serving/test_load.py::test_two[vllm]: gpus takes one positive number of GPUs, "
        "as in @pytest.mark.gpus(2)"
    )


def test_the_markers_are_known_to_strict_pytest(suite):
    outcome = suite.run("--markers")
    outcome.shows("@pytest.mark.stops_server: *", "@pytest.mark.gpus(count): *")
