"""The suites as they ship, on recorded GPUs with fake engines."""

import re
import shutil
from pathlib import Path

import pytest

from pytest_moeperf.testing import make_fake_interpreter

ROOT = Path(__file__).parents[2]
SERVERS_OF_ONE_GPU = ["llama-3.1-8b", "mixtral-8x7b"]
SERVERS_OF_TWO = ["llama-3.1-8b tp2", "mixtral-8x7b tp2", "mixtral-8x7b tp2 ep"]
TOLD = "test_weights or kv_cache or graphs or lifecycle or kernels or configuration"
"""What needs no load."""
LOADED = "(single_stream and llama) or moe_over_dense"
"""Of the load what a fake plays in a second or two."""

STEADY = ("--repeats", "3")
"""A ratio that one disturbed repeat can spoil is looked at again, on servers started for that."""


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Interpreters with a fake vLLM and a fake SGLang, by engine."""
    folder = tmp_path_factory.mktemp("engines")
    versions = {"vllm": "0.24.0", "sglang": "0.5.16"}
    return {
        name: make_fake_interpreter(
            folder / name, distribution=name, version=version, ttft_ms=4, itl_ms=2
        )
        for name, version in versions.items()
    }


@pytest.fixture
def shipped(suite, engines, monkeypatch):
    """Runs the suites on so many H200, with the engines of these names."""
    shutil.copytree(ROOT / "suites", suite.root / "suites")
    monkeypatch.setenv("HF_HUB_CACHE", str(suite.root / "no-downloads"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def run(*arguments, gpus, names=("vllm",)):
        recording = ROOT / "tests" / "data" / "nvml" / f"{gpus}x-h200.json"
        monkeypatch.setenv("MOEPERF_TEST_NVML", str(recording))
        typed = [word for name in names for word in ("--engine", f"{name}@{engines[name]}")]
        # What is found where others keep the cores of the fake busy.
        ignored = ("busy_machine", "stall")
        return suite.run_process(
            "suites",
            *("-p", "pytest_moeperf.testing.gpuhost", "--gpu", "h200", "--baseline", "record"),
            *typed,
            *(word for code in ignored for word in ("--ignore-finding", code)),
            *arguments,
        )

    return run


def started(outcome):
    """How many servers were started, for how many specs."""
    spent = outcome.run_json["time"]
    assert spent["starts"] == len(outcome.logs)
    return spent["starts"], spent["specs"]


def labels(outcome):
    return sorted({cell["server"] for cell in outcome.run_json["cells"]})


def test_on_one_gpu_each_of_its_two_servers_starts_once(shipped):
    outcome = shipped("-k", f"{TOLD} or {LOADED}", *STEADY, "-rs", gpus=1)
    assert outcome.code == 0, outcome.text
    assert labels(outcome) == SERVERS_OF_ONE_GPU
    assert started(outcome) == (2, 2)
    outcome.shows("SKIPPED * suites/lifecycle/test_startup.py:*: needs 2 GPUs, this machine has 1")
    assert "no server" not in outcome.text


def test_on_two_gpus_each_of_all_five_servers_starts_once(shipped):
    outcome = shipped("-k", TOLD, gpus=2)
    assert outcome.code == 0, outcome.text
    assert labels(outcome) == sorted([*SERVERS_OF_ONE_GPU, *SERVERS_OF_TWO])
    assert started(outcome) == (5, 5)
    assert "skipped" not in outcome.text


def test_with_two_engines_each_server_starts_once_for_each(shipped):
    loaded = "single_stream and llama and not tp2"
    outcome = shipped("-k", f"{TOLD} or ({loaded})", gpus=1, names=("vllm", "sglang"))
    assert outcome.code == 0, outcome.text
    assert started(outcome) == (4, 4)


def test_models_come_with_dummy_weights_where_there_is_no_copy(shipped):
    outcome = shipped("-k", "single_stream and llama and not tp2", gpus=1)
    (cell,) = outcome.judged
    assert re.fullmatch(r"llama-3\.1-8b@dummy-[0-9a-f]{12}", cell["fingerprint"]["model"])


def test_what_needs_real_weights_fails_in_one_line_without_them(shipped):
    outcome = shipped("-k", "single_stream and llama and not tp2", "--weights", "real", gpus=1)
    outcome.counts(failed=1)
    outcome.shows("--weights real: no complete copy of llama-3.1-8b: *use --weights dummy")


def test_all_tests_are_there_for_every_server(shipped):
    outcome = shipped("--collect-only", "-q", gpus=2, names=("vllm", "sglang"))
    ids = re.findall(r"^suites/(\S+)$", outcome.text, re.MULTILINE)
    for test, variants in {
        # Two engines, five servers and, of the ladders, their rungs.
        "serving/test_burst.py::test_all_requests_at_once": 10,
        "serving/test_burst.py::test_as_many_as_published": 2 * 2,
        "serving/test_single_stream.py::test_one_request_at_a_time": 10,
        "serving/test_rate_ladder.py::test_requests_arrive_at_a_fixed_rate": 2 * 3 * 4,
        "serving/test_batch_ladder.py::test_streams_decode_together": 10 * 7,
        "health/test_log_guards.py::test_experts_run_on_the_same_kernels": 2 * 3,
        "compare/test_tensor_parallel.py::test_two_gpus_over_one_with_experts": 2,
        "compare/test_engines.py::test_sglang_over_vllm": 1,
    }.items():
        assert sum(name.partition("[")[0] == test for name in ids) == variants, test
