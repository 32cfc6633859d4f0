import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.balance import (
    ExpertCounts,
    balancedness,
    explicit_placement,
    linear_placement,
    rank_loads,
    replicated_placement,
    round_robin_placement,
)
from pytest_moeperf.errors import RoutingError

COUNTS = ExpertCounts(
    counts=np.array([[8, 4, 2, 2], [1, 1, 7, 7]]), tokens=8, top_k=2, layers=(3, 4)
)


@st.composite
def counted(draw, experts):
    """Counts of a top-1 router, so that any whole numbers can be true."""
    layers = draw(st.integers(1, 4))
    tokens = draw(st.integers(1, 50))
    taken = draw(
        st.lists(
            st.lists(st.integers(0, experts - 1), min_size=tokens, max_size=tokens),
            min_size=layers,
            max_size=layers,
        )
    )
    counts = np.array([np.bincount(row, minlength=experts) for row in taken])
    return ExpertCounts(counts=counts, tokens=tokens, top_k=1)


def test_neighbours_together():
    assert rank_loads(COUNTS, linear_placement(4, 2)).tolist() == [[12, 4], [2, 14]]


def test_in_turns():
    assert rank_loads(COUNTS, round_robin_placement(4, 2)).tolist() == [[10, 6], [8, 8]]


def test_the_first_ranks_have_one_more_where_experts_do_not_divide():
    held = linear_placement(8, 3).served[0].sum(axis=1)
    assert held.tolist() == [3, 3, 2]
    assert round_robin_placement(8, 3).served[0].sum(axis=1).tolist() == [3, 3, 2]


def test_a_placement_of_ones_own():
    assert rank_loads(COUNTS, explicit_placement([0, 1, 1, 1], 2)).tolist() == [[8, 8], [1, 15]]


def test_a_placement_for_each_layer():
    placement = explicit_placement([[0, 1, 1, 1], [0, 1, 0, 1]], 2)
    assert rank_loads(COUNTS, placement).tolist() == [[8, 8], [8, 8]]


def test_copies_share_the_tokens_of_their_expert():
    # Three slots a rank: 0, 2, 3 and 0, 1, 2.
    placement = replicated_placement([0, 2, 3, 0, 1, 2], experts=4, ranks=2)
    assert rank_loads(COUNTS, placement).tolist() == [[4 + 1 + 2, 4 + 4 + 1], [11, 5]]
    assert balancedness(rank_loads(COUNTS, placement)) == pytest.approx((8 + 8) / (9 + 11))


def test_two_copies_on_one_rank_are_no_relief():
    placement = replicated_placement([0, 0, 1, 2, 3, 1], experts=4, ranks=2)
    assert rank_loads(COUNTS, placement)[0].tolist() == [8 + 2, 2 + 2 + 2]


def test_one_slot_an_expert_is_the_linear_placement():
    placed = replicated_placement(range(8), experts=8, ranks=4)
    assert placed.served.tolist() == linear_placement(8, 4).served.tolist()
    assert placed.ranks == 4


@given(st.sampled_from([(8, 1), (8, 2), (8, 4), (8, 8), (12, 3), (16, 4)]), st.data())
def test_ranks_are_at_least_as_balanced_as_experts(sizes, data):
    """A rank of m experts has at most m times the busiest one's load."""
    experts, ranks = sizes
    counts = data.draw(counted(experts))
    order = np.array(data.draw(st.permutations(range(experts))))
    placements = [
        linear_placement(experts, ranks),
        round_robin_placement(experts, ranks),
        explicit_placement(order % ranks, ranks),
    ]
    for placement in placements:
        loads = rank_loads(counts, placement)
        assert loads.sum(axis=1) == pytest.approx(counts.counts.sum(axis=1))
        assert balancedness(loads) >= balancedness(counts.counts) - 1e-9


@given(st.integers(1, 12), st.data())
def test_no_token_is_lost_or_served_twice_with_copies(experts, data):
    ranks = data.draw(st.integers(1, 4))
    extra = data.draw(st.lists(st.integers(0, experts - 1), max_size=8))
    slots = [*range(experts), *extra]
    slots += [0] * (-len(slots) % ranks)
    placement = replicated_placement(
        data.draw(st.permutations(slots)), experts=experts, ranks=ranks
    )
    assert placement.served.sum(axis=1) == pytest.approx(np.ones((1, experts)))


def test_one_rank_is_always_balanced():
    assert balancedness(rank_loads(COUNTS, linear_placement(4, 1))) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear_placement(4, 5), "4 experts on 5 ranks: expected 1 to 4 ranks"),
        (lambda: round_robin_placement(4, 0), "4 experts on 0 ranks"),
        (lambda: explicit_placement([0, 1, 2, 0], 2), "rank 2 in a placement: expected 0 to 1"),
        (lambda: explicit_placement([0.0, 1.0], 2), "ranks as float64 of shape"),
        (
            lambda: replicated_placement([0, 1, 2], experts=3, ranks=2),
            "3 expert slots on 2 ranks: expected as many on each",
        ),
        (
            lambda: replicated_placement([0, 1, 1, 0], experts=3, ranks=2),
            "row 0: expert 2 has no slot",
        ),
        (lambda: replicated_placement([0, 3], experts=3, ranks=2), "expert 3 in a placement"),
        (
            lambda: rank_loads(COUNTS, linear_placement(8, 2)),
            "a placement of 8 experts in 1 layers for counts of 4 experts in 2",
        ),
        (
            lambda: rank_loads(COUNTS, explicit_placement([[0, 0, 1, 1]] * 3, 2)),
            "a placement of 4 experts in 3 layers",
        ),
    ],
)
def test_placements_that_cannot_be(make, message):
    with pytest.raises(RoutingError, match=message):
        make()
