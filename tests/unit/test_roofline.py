import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.memory import weight_bytes
from pytest_moeperf.models import catalogue
from pytest_moeperf.roofline import expert_coverage, predicted_step_growth, weight_bytes_per_step

MINI_MOE = catalogue()["mini-moe"].architecture
MINI_DENSE = catalogue()["mini-dense"].architecture


@pytest.mark.parametrize(
    ("batch", "share"), [(1, 0.25), (2, 0.4375), (4, 0.68359375), (8, 0.8998870849609375)]
)
def test_coverage_of_eight_experts_by_top_two(batch, share):
    assert expert_coverage(batch, experts=8, top_k=2) == pytest.approx(share)


def test_coverage_agrees_with_drawing_experts_at_random():
    generator = random.Random(0)  # noqa: S311  a simulation
    touched = [
        len({expert for _ in range(4) for expert in generator.sample(range(8), 2)})
        for _ in range(20_000)
    ]
    assert sum(touched) / 20_000 / 8 == pytest.approx(expert_coverage(4, 8, 2), abs=0.005)


@given(st.integers(1, 64), st.integers(1, 256), st.data())
def test_coverage_grows_from_the_share_of_one_token_towards_all(batch, experts, data):
    top_k = data.draw(st.integers(1, experts))
    coverage = expert_coverage(batch, experts, top_k)
    assert top_k / experts <= coverage + 1e-12
    assert coverage <= expert_coverage(batch + 1, experts, top_k) <= 1


@pytest.mark.parametrize(
    ("batch", "experts", "top_k"), [(0, 8, 2), (1, 8, 0), (1, 2, 3), (1, 0, 0)]
)
def test_coverage_of_nothing_is_an_error(batch, experts, top_k):
    with pytest.raises(ValueError, match="no coverage of"):
        expert_coverage(batch, experts, top_k)


def test_one_token_of_mini_moe_reads_two_experts_a_layer():
    attention = 8 * (2 * 1024 * 1024 + 2 * 1024 * 256)
    experts = 8 * 2 * 3 * 1024 * 2048
    router, norms, output_layer = 8 * 8 * 1024, 17 * 1024, 4096 * 1024
    expected = 2 * (attention + experts + router + norms + output_layer)
    assert weight_bytes_per_step(MINI_MOE, 1) == expected


def test_a_large_batch_reads_everything_but_the_input_embedding():
    input_embedding = 2 * 4096 * 1024
    everything = weight_bytes(MINI_MOE) - input_embedding
    assert weight_bytes_per_step(MINI_MOE, 200) == pytest.approx(everything)


def test_the_step_of_a_mixture_grows_until_all_experts_are_read():
    growth = [round(predicted_step_growth(MINI_MOE, batch), 2) for batch in (1, 2, 4, 8, 16, 32)]
    assert growth == [1.0, 1.6, 2.39, 3.08, 3.37, 3.4]


@given(st.integers(1, 256))
def test_the_step_of_a_dense_model_stays_flat(batch):
    assert predicted_step_growth(MINI_DENSE, batch) == 1
