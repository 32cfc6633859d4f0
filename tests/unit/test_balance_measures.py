"""Figures by hand, and what must hold for all loads."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from pytest_moeperf.balance import (
    balancedness,
    coefficient_of_variation,
    deviations,
    largest_deviation,
    layer_balancedness,
    max_over_mean,
    normalised_entropy,
    perfect_balance_speedup,
    shares,
)
from pytest_moeperf.errors import RoutingError

PER_LAYER = [
    coefficient_of_variation,
    largest_deviation,
    layer_balancedness,
    max_over_mean,
    normalised_entropy,
]
LOADS = st_numpy.arrays(
    np.int64,
    st_numpy.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.integers(0, 10_000),
).map(lambda loads: loads + (loads.sum(axis=1, keepdims=True) == 0))
HAND = np.array([[10, 20, 30, 40], [25, 25, 25, 25]])


def test_shares_and_deviations_by_hand():
    assert shares(HAND).tolist() == [[0.1, 0.2, 0.3, 0.4], [0.25] * 4]
    assert deviations(HAND)[0] == pytest.approx([-0.6, -0.2, 0.2, 0.6])
    assert largest_deviation(HAND) == pytest.approx([0.6, 0])


def test_coefficient_of_variation_by_hand():
    # Squared deviations 225, 25, 25, 225 around the mean 25.
    assert coefficient_of_variation(HAND) == pytest.approx([math.sqrt(125) / 25, 0])


def test_entropy_by_hand():
    # Half on one, a quarter on each of two others: 1.5 bit of the 2 that four experts could have.
    assert normalised_entropy(np.array([[2, 1, 1, 0]])) == pytest.approx([0.75])


def test_balancedness_by_hand():
    assert max_over_mean(HAND) == pytest.approx([1.6, 1])
    assert layer_balancedness(HAND) == pytest.approx([0.625, 1])
    assert balancedness(HAND) == pytest.approx((25 + 25) / (40 + 25))


def test_a_layer_with_more_load_weighs_more():
    assert balancedness(np.array([[3, 1], [10, 10]])) == pytest.approx((2 + 10) / (3 + 10))


def test_10_to_14_percent_of_the_tokens_are_20_below_to_12_above_uniform():
    share = np.array([[0.10, 0.11, 0.12, 0.13, 0.13, 0.13, 0.14, 0.14]])
    assert deviations(share)[0, [0, 7]] == pytest.approx([-0.2, 0.12])


@given(st.integers(1, 300), st.integers(1, 5), st.integers(1, 1000))
def test_uniform_loads_are_perfect(units, layers, load):
    loads = np.full((layers, units), load)
    assert layer_balancedness(loads) == pytest.approx(np.ones(layers))
    assert balancedness(loads) == pytest.approx(1)
    assert normalised_entropy(loads) == pytest.approx(np.ones(layers))
    assert coefficient_of_variation(loads) == pytest.approx(np.zeros(layers), abs=1e-7)
    assert largest_deviation(loads) == pytest.approx(np.zeros(layers), abs=1e-9)


@given(st.integers(2, 300), st.integers(1, 5), st.integers(1, 1000), st.data())
def test_all_on_one_is_the_worst(units, layers, load, data):
    loads = np.zeros((layers, units), dtype=np.int64)
    for row in loads:
        row[data.draw(st.integers(0, units - 1))] = load
    assert layer_balancedness(loads) == pytest.approx(np.full(layers, 1 / units))
    assert balancedness(loads) == pytest.approx(1 / units)
    assert normalised_entropy(loads) == pytest.approx(np.zeros(layers))
    assert coefficient_of_variation(loads) == pytest.approx(np.full(layers, math.sqrt(units - 1)))
    assert max_over_mean(loads) == pytest.approx(np.full(layers, units))


@given(LOADS, st.randoms(use_true_random=False))
def test_the_order_of_experts_changes_nothing(loads, random):
    order = random.sample(range(loads.shape[1]), loads.shape[1])
    for measure in (*PER_LAYER, balancedness):
        assert measure(loads[:, order]) == pytest.approx(measure(loads), abs=1e-9)


@given(LOADS, st.integers(2, 1000))
def test_more_of_the_same_tokens_change_nothing(loads, times):
    for measure in (*PER_LAYER, balancedness):
        assert measure(loads * times) == pytest.approx(measure(loads), abs=1e-9)


@given(LOADS)
def test_every_measure_stays_in_its_range(loads):
    units = loads.shape[1]
    assert shares(loads).sum(axis=1) == pytest.approx(np.ones(len(loads)))
    assert deviations(loads).sum(axis=1) == pytest.approx(np.zeros(len(loads)), abs=1e-9)
    within = 1e-9
    assert (
        (normalised_entropy(loads) >= -within) & (normalised_entropy(loads) <= 1 + within)
    ).all()
    assert (layer_balancedness(loads) >= 1 / units - within).all()
    assert (coefficient_of_variation(loads) <= math.sqrt(units - 1) + within).all()
    layers = layer_balancedness(loads)
    assert layers.min() - within <= balancedness(loads) <= layers.max() + within


@given(LOADS.filter(lambda loads: loads.min() > 0))
def test_over_layers_with_as_many_tokens_it_is_the_harmonic_mean(loads):
    equal = shares(loads)
    harmonic = len(equal) / (1 / layer_balancedness(equal)).sum()
    assert balancedness(equal) == pytest.approx(harmonic)


@given(LOADS, st.data())
def test_the_sum_of_two_runs_is_never_worse_than_both(loads, data):
    """max(a + b) ≤ max a + max b: why balance over many steps flatters."""
    other = data.draw(
        st_numpy.arrays(np.int64, loads.shape, elements=st.integers(1, 10_000)), label="other"
    )
    worse = min(balancedness(loads), balancedness(other))
    assert balancedness(loads + other) >= worse - 1e-9


@pytest.mark.parametrize(
    ("loads", "message"),
    [
        ([[1, 2], [0, 0]], "row 1 of the loads has no tokens"),
        ([[1, -2]], "a load is negative or no number"),
        ([[1, math.nan]], "a load is negative or no number"),
        ([1, 2], r"loads of shape \[2\]: expected \[layers, units\]"),
        ([[]], r"loads of shape \[1, 0\]"),
    ],
)
@pytest.mark.parametrize("measure", [*PER_LAYER, balancedness, shares, deviations])
def test_loads_that_cannot_be(measure, loads, message):
    with pytest.raises(RoutingError, match=message):
        measure(np.array(loads))


def test_what_perfect_balance_would_give():
    assert perfect_balance_speedup(0.8) == pytest.approx(1.25)
    # Half of a step in the experts: 0.5 + 0.5 × 0.8 of the time remains.
    assert perfect_balance_speedup(0.8, expert_time_share=0.5) == pytest.approx(1 / 0.9)
    assert perfect_balance_speedup(0.3, expert_time_share=0) == 1


@given(st.floats(0.01, 1), st.floats(0, 1))
def test_balance_never_slows_down_nor_beats_the_number_of_ranks(balanced, share):
    speedup = perfect_balance_speedup(balanced, expert_time_share=share)
    assert 1 - 1e-9 <= speedup <= 1 / balanced + 1e-9


@pytest.mark.parametrize(
    ("balanced", "share"), [(0, 1), (1.1, 1), (0.5, -0.1), (0.5, 1.1), (math.nan, 1)]
)
def test_no_speedup_of_what_is_no_balancedness(balanced, share):
    with pytest.raises(ValueError, match="no speed-up at balancedness"):
        perfect_balance_speedup(balanced, expert_time_share=share)
