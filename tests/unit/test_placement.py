from dataclasses import replace

import pytest

from pytest_moeperf.hardware import Gpu, Hardware
from pytest_moeperf.models import catalogue
from pytest_moeperf.placement import gpus_lacking, in_turns, lacking
from pytest_moeperf.records import ServerSpec

MIXTRAL, LLAMA = (catalogue()[name].architecture for name in ("mixtral-8x7b", "llama-3.1-8b"))
ONE = ServerSpec("mixtral-8x7b")
TWO = replace(ONE, tensor_parallel_size=2)


def machine(*memory_gib, name="NVIDIA H100 80GB HBM3"):
    gpus = tuple(
        Gpu(index=index, name=name, memory_gib=memory, uuid=f"GPU-{index}")
        for index, memory in enumerate(memory_gib)
    )
    return Hardware(name="h100", gpus=gpus, cpu_model="x", cpu_cores=8, memory_gib=500.0)


@pytest.mark.parametrize(
    ("needed", "available", "text"),
    [
        (0, 0, ""),
        (2, 2, ""),
        (1, 0, "needs 1 GPU, this machine has 0"),
        (2, 1, "needs 2 GPUs, this machine has 1"),
    ],
)
def test_too_few_gpus_are_told_with_both_numbers(needed, available, text):
    assert gpus_lacking(needed, available) == text


def test_weights_that_fit_no_gpu_are_told_with_both_sizes():
    # 46,702,792,704 parameters × 2 bytes ÷ 2^30
    assert lacking(ONE, MIXTRAL, machine(79.6), gpus=1) == (
        "its weights take 87.0 GiB a GPU, NVIDIA H100 80GB HBM3 has 79.6 GiB"
    )


@pytest.mark.parametrize(
    ("spec", "architecture", "memory"),
    [
        (ONE, MIXTRAL, (140.4,)),
        (ONE, MIXTRAL, (79.6, 140.4)),
        (TWO, MIXTRAL, (79.6, 79.6)),
        (ServerSpec("llama-3.1-8b"), LLAMA, (79.6,)),
    ],
)
def test_weights_that_fit_are_no_reason(spec, architecture, memory):
    gpus = spec.tensor_parallel_size
    assert lacking(spec, architecture, machine(*memory), gpus=gpus) == ""


def test_both_halves_must_fit():
    assert "43.5 GiB a GPU" in lacking(TWO, MIXTRAL, machine(79.6, 40.0), gpus=2)


def test_flags_may_quantize_so_that_nothing_is_said_of_the_weights():
    quantized = replace(ONE, flags=("--quantization", "fp8"))
    assert lacking(quantized, MIXTRAL, machine(79.6), gpus=1) == ""


def test_on_a_cpu_all_cells_take_turns():
    assert in_turns([ONE, TWO, ONE], machine(), running=[]) == [[0, 1, 2]]
    assert in_turns([], machine(), running=[]) == []


def test_on_gpus_the_cells_of_a_server_do_and_one_that_runs_comes_first():
    specs = [ONE, TWO, ONE, TWO]
    gpus = machine(140.4, 140.4)
    assert in_turns(specs, gpus, running=[]) == [[0, 2], [1, 3]]
    assert in_turns(specs, gpus, running=[TWO]) == [[1, 3], [0, 2]]
    assert in_turns([], gpus, running=[TWO]) == []
