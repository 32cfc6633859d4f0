from pathlib import Path

import pytest

from pytest_moeperf.compat import differences
from pytest_moeperf.errors import UsageError
from pytest_moeperf.hardware import Gpu, Hardware
from pytest_moeperf.identity import (
    cell_name,
    check_model_name,
    check_suite_name,
    fingerprint,
    server_identity,
    workload_identity,
)
from pytest_moeperf.metrics import SLO
from pytest_moeperf.records import EngineInstall, ServerSpec

PLAIN = ServerSpec("mini-moe")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (PLAIN, "tp1, bfloat16"),
        (ServerSpec("m", tensor_parallel_size=2, max_model_len=512), "tp2, bfloat16, context 512"),
        (ServerSpec("m", flags=("--max-num-seqs", "8")), "tp1, bfloat16, --max-num-seqs 8"),
        (ServerSpec("m", tensor_parallel_size=2, expert_parallel=True), "tp2, ep, bfloat16"),
        (ServerSpec("m", load_format="dummy"), "tp1, bfloat16"),
        (ServerSpec("m", counts_experts=True), "tp1, bfloat16, counting experts"),
        (ServerSpec("m", overrides=(("layers", 4), ("k", 1))), "tp1, bfloat16, layers=4, k=1"),
        (ServerSpec("m", env=(("B", "2"), ("A", "1"))), "tp1, bfloat16, A=1, B=2"),
        (ServerSpec("m", env=(("HF_TOKEN", "hf_x"),)), "tp1, bfloat16, HF_TOKEN=(secret)"),
    ],
)
def test_a_server_is_described_in_words(spec, text):
    assert server_identity(spec) == text


def test_a_server_that_counts_experts_is_another_than_the_timed_one():
    counting = ServerSpec("mini-moe", counts_experts=True)
    assert counting != PLAIN
    assert counting.label == "mini-moe counting"
    assert cell_name("mini-moe", counting, "burst") != cell_name("mini-moe", PLAIN, "burst")


def test_objectives_are_part_of_a_workload_so_that_a_looser_one_is_another():
    strict, loose = SLO(ttft_ms=500, tpot_ms=50.5), SLO(ttft_ms=900, tpot_ms=50.5)
    assert workload_identity("burst", None) == "burst@1"
    assert workload_identity("burst", strict) == "burst@1 ttft_ms<=500 tpot_ms<=50.5"
    assert workload_identity("burst", loose) != workload_identity("burst", strict)


def test_other_texts_are_another_workload():
    one, other = (workload_identity("burst", None, ((text, 3),)) for text in ("hi", "ho"))
    assert one != other
    assert one.startswith("burst@1 ")


def test_only_a_plain_server_has_a_plain_name():
    assert cell_name("mini-moe", PLAIN, "burst") == "mini-moe.burst"
    tp2 = cell_name("mini-moe", ServerSpec("mini-moe", tensor_parallel_size=2), "burst")
    flags = cell_name("mini-moe", ServerSpec("mini-moe", flags=("-x",)), "burst")
    assert tp2.startswith("mini-moe-")
    assert tp2.endswith(".burst")
    assert len({tp2, flags, "mini-moe.burst"}) == 3


def test_figures_of_a_gpu_are_comparable_whatever_cpu_is_beside_it():
    gpu = Gpu(index=0, name="NVIDIA H200", memory_gib=140.4, uuid="GPU-0")
    hardware = Hardware(
        name="h200", gpus=(gpu, gpu), cpu_model="EPYC", cpu_cores=16, memory_gib=128.0
    )

    def of(url):
        install = EngineInstall(engine="vllm", url=url)
        spec = ServerSpec("m")
        return fingerprint(hardware, install, spec, gpus=1, model="m@1", workload="burst")

    here, far = of(None), of("http://far:8000")
    assert (here.cpu_model, here.cpu_cores, here.gpus) == (None, None, ("NVIDIA H200",))
    assert far.cpu_model == "not known, at far"
    assert [str(each) for each in differences(far, here)] == [
        "the CPU model is not known, at far here and any in the baseline"
    ]


@pytest.mark.parametrize("model", ["/models/my-moe_7B.v2", "~/moe", "models/8x7b=a+b", "./moe/"])
def test_a_plain_folder_can_name_baselines(model):
    check_model_name(model)


@pytest.mark.parametrize("model", ["/models/my model ünï", "my model", "models/_moe", "/m/模型"])
def test_a_model_whose_folder_cannot_name_a_baseline_is_quoted_as_typed(model):
    with pytest.raises(UsageError) as caught:
        check_model_name(model)
    assert str(caught.value) == (
        f"model {model!r}: its folder names baselines, whose name has letters from a to z, digits "
        "and . _ = + -, and begins with a letter or a digit; rename the folder, or give a link to "
        "it that has such a name"
    )


def test_signs_in_the_name_of_a_test_are_no_hindrance():
    for path in ("/a/serving/test_load.py", "/a/My suite (2)/test_a,b.py"):
        check_suite_name(Path(path))


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/a/測試/test_一.py", "test folder '測試'"),
        ("/a/pérf/test_load.py", "test folder 'pérf'"),
        ("/a/_perf/test_load.py", "test folder '_perf'"),
        ("/a/perf/test_一.py", "test file 'test_一.py'"),
    ],
)
def test_a_suite_that_cannot_name_a_baseline_is_quoted_as_typed(path, named):
    with pytest.raises(UsageError) as caught:
        check_suite_name(Path(path))
    assert str(caught.value).startswith(f"{named}: it names baselines, whose name has letters")
    assert str(caught.value).endswith(f"; rename the {named.split()[1]}")
