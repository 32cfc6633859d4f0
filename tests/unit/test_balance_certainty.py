import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from pytest_moeperf.balance import (
    ExpertCounts,
    agreement,
    balancedness,
    cluster_interval,
    coefficient_of_variation,
)
from pytest_moeperf.errors import RoutingError

ROW = st.lists(st.integers(0, 20), min_size=6, max_size=6)


def top_1(*rows):
    """Counts of a top-1 router, filled up to one number of tokens by a last expert."""
    tokens = max(1, *map(sum, rows))
    counts = np.array([[*row, tokens - sum(row)] for row in rows])
    return ExpertCounts(counts=counts, tokens=tokens, top_k=1)


def requests_of(shares, generator, *, requests, tokens=100, likeness=160.0):
    """Top-1 requests that differ by more than chance, the more the smaller the likeness."""
    return [
        ExpertCounts(
            counts=np.array(
                [
                    generator.multinomial(tokens, generator.dirichlet(row * likeness))
                    for row in shares
                ]
            ),
            tokens=tokens,
            top_k=1,
        )
        for _ in range(requests)
    ]


UNEVEN = np.array([[0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05], [0.05] * 4 + [0.2] * 4])


def test_the_same_order_agrees():
    one, other = top_1([1, 2, 3], [3, 2, 1]), top_1([10, 20, 40], [30, 20, 1])
    assert agreement(one, other)[0] == pytest.approx(1)


def test_the_opposite_order_disagrees():
    one = ExpertCounts(counts=np.array([[1, 2, 3]]), tokens=6, top_k=1)
    other = ExpertCounts(counts=np.array([[3, 2, 1]]), tokens=6, top_k=1)
    assert agreement(one, other) == (pytest.approx(-1),)


def test_ties_share_their_rank():
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: Σ d d′ = 2.25 + 0 + 0 + 2.25, Σ d² = 4.5 and 5.
    one = ExpertCounts(counts=np.array([[0, 2, 2, 4]]), tokens=8, top_k=1)
    other = ExpertCounts(counts=np.array([[0, 3, 1, 4]]), tokens=8, top_k=1)
    assert agreement(one, other) == (pytest.approx(4.5 / (4.5 * 5) ** 0.5),)


def test_a_uniform_layer_has_no_order():
    one = ExpertCounts(counts=np.array([[2, 2], [1, 3]]), tokens=4, top_k=1)
    assert agreement(one, one) == (None, pytest.approx(1))


@given(st.tuples(ROW, ROW))
def test_agreement_is_spearmans(rows):
    one, other = map(top_1, rows)
    (found,) = agreement(one, other)
    if found is None:
        assert 1 in {len(set(counts.counts[0].tolist())) for counts in (one, other)}
    else:
        assert found == pytest.approx(spearmanr(one.counts[0], other.counts[0]).statistic)


def test_two_models_do_not_agree_or_disagree():
    with pytest.raises(RoutingError, match="expected two runs of one model"):
        agreement(top_1([1, 2]), top_1([1, 2, 3]))


def test_equal_requests_leave_no_doubt():
    (request,) = requests_of(UNEVEN, np.random.default_rng(0), requests=1)
    found = cluster_interval([request] * 5, balancedness, generator=np.random.default_rng(0))
    value = balancedness(request.counts)
    assert (found.low, found.value, found.high) == pytest.approx((value, value, value))


def test_one_request_says_nothing_of_others():
    generator = np.random.default_rng(0)
    requests = requests_of(UNEVEN, generator, requests=1)
    assert cluster_interval(requests, balancedness, generator=generator) is None


def test_the_same_generator_gives_the_same_bounds():
    requests = requests_of(UNEVEN, np.random.default_rng(1), requests=20)
    one, other = (
        cluster_interval(requests, balancedness, generator=np.random.default_rng(2), resamples=100)
        for _ in range(2)
    )
    assert one == other
    assert one.low < one.high


@pytest.mark.parametrize("resamples", [1, 64, 100])
def test_the_statistic_sees_as_many_resamples_as_asked(resamples):
    generator = np.random.default_rng(2)
    requests = requests_of(UNEVEN, generator, requests=5, tokens=30)
    seen = []

    def keep(counts):
        seen.append(counts)
        return balancedness(counts)

    cluster_interval(requests, keep, generator=generator, resamples=resamples)
    assert len(seen) == 1 + resamples
    assert {tuple(counts.sum(axis=1)) for counts in seen} == {(150, 150)}


def widths(requests, **options):
    found = cluster_interval(
        requests, balancedness, generator=np.random.default_rng(3), resamples=300, **options
    )
    return found.high - found.low


def test_more_confidence_is_wider():
    requests = requests_of(UNEVEN, np.random.default_rng(4), requests=30)
    assert widths(requests, confidence=0.99) > widths(requests, confidence=0.8)


def test_requests_that_differ_count_for_less_than_their_tokens():
    """The same number of tokens: what is alike within a request widens the bounds."""
    generator = np.random.default_rng(5)
    alike = requests_of(UNEVEN, generator, requests=40, likeness=1e6)
    apart = requests_of(UNEVEN, generator, requests=40, likeness=20)
    assert widths(apart) > 1.5 * widths(alike)


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        (balancedness, 2 * 0.125 / (0.3 + 0.2)),
        (lambda counts: float(coefficient_of_variation(counts)[0]), (0.35 / 8) ** 0.5 / 0.5),
    ],
    ids=["balancedness", "coefficient of variation"],
)
def test_the_bounds_hold_the_truth_about_as_often_as_they_say(statistic, expected):
    generator = np.random.default_rng(6)
    truth = statistic(UNEVEN)
    held = 0
    for _ in range(100):
        requests = requests_of(UNEVEN, generator, requests=64)
        found = cluster_interval(requests, statistic, generator=generator, resamples=200)
        held += found.low <= truth <= found.high
    assert held >= 85


def test_bounds_stay_within_what_can_be():
    requests = requests_of(UNEVEN, np.random.default_rng(7), requests=10)
    free, held = (
        cluster_interval(requests, balancedness, generator=np.random.default_rng(8), **bounds)
        for bounds in ({}, {"least": 0.48, "most": 0.53})
    )
    assert free.low < 0.48
    assert free.high > 0.53
    assert (held.low, held.value, held.high) == (0.48, free.value, 0.53)


@pytest.mark.parametrize("options", [{"confidence": 1}, {"confidence": 0}, {"resamples": 0}])
def test_bounds_that_nobody_can_give(options):
    requests = requests_of(UNEVEN, np.random.default_rng(9), requests=2)
    with pytest.raises(ValueError, match="resamples: expected a share below 1"):
        cluster_interval(requests, balancedness, generator=np.random.default_rng(0), **options)
