from dataclasses import fields, replace

import pytest

from pytest_moeperf.compat import Difference, differences, explain
from pytest_moeperf.records import Fingerprint

HERE = Fingerprint(
    hardware="cpu",
    cpu_model="AMD EPYC 25/17/1",
    cpu_cores=2,
    engine="vllm-cpu",
    model="mini-moe@3f2a",
    server="tp1@77ab",
    workload="closed-c1-isl32-osl48-n8@1",
)


def test_equal_fingerprints_do_not_differ():
    assert differences(HERE, replace(HERE)) == ()


def test_differences_carry_both_sides_as_text_in_the_order_of_the_fingerprint():
    there = replace(HERE, gpus=("NVIDIA H200", "NVIDIA H200"), cpu_cores=1)
    assert differences(HERE, there) == (
        Difference("cpu_cores", "2", "1"),
        Difference("gpus", "none", "NVIDIA H200, NVIDIA H200"),
    )


@pytest.mark.parametrize("field", [item.name for item in fields(Fingerprint)])
def test_every_field_is_compared_and_has_words(field):
    there = replace(HERE, **{field: ("other",) if field == "gpus" else "other"})
    (difference,) = differences(HERE, there)
    assert difference.field == field
    assert str(difference).endswith("and other in the baseline")


def test_a_difference_reads_as_a_clause():
    assert (
        str(Difference("cpu_cores", "1", "2"))
        == "the number of usable CPU cores is 1 here and 2 in the baseline"
    )


def test_an_empty_field_reads_as_not_known():
    (difference,) = differences(replace(HERE, cpu_model=""), HERE)
    assert difference.ours == "not known"


def test_the_cores_of_the_server_are_named_first():
    sentences = explain(
        {"kernel": "6.9", "server_cores": "1", "OMP_NUM_THREADS": "1", "torch": "2.13.0"},
        {"kernel": "6.8", "server_cores": "2", "OMP_NUM_THREADS": "2", "torch": "2.12.0"},
    )
    assert sentences == (
        "the server may run on 1 core today; it was 2 cores when the baseline was recorded",
        "OMP_NUM_THREADS is 1 today; it was 2 when the baseline was recorded",
        "torch is 2.13.0 today; it was 2.12.0 when the baseline was recorded",
        "kernel is 6.9 today; it was 6.8 when the baseline was recorded",
    )


def test_entries_of_one_side_are_named():
    assert explain({"VLLM_A": "1"}, {"VLLM_B": "2"}) == (
        "VLLM_A is 1 today; it was not set when the baseline was recorded",
        "VLLM_B is not set today; it was 2 when the baseline was recorded",
    )


def test_the_same_environment_explains_nothing():
    assert explain({"kernel": "6.8"}, {"kernel": "6.8"}) == ()
    assert explain({"kernel": "6.8"}) == ()


def test_an_entry_that_any_stored_start_shares_explains_nothing():
    stored = ({"kernel": "6.8", "server_cores": "4"}, {"kernel": "6.7", "server_cores": "2"})
    assert explain({"kernel": "6.8", "server_cores": "1"}, *stored) == (
        "the server may run on 1 core today; it was 2 cores when the baseline was recorded",
    )
