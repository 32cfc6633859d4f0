import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.balance import ExpertCounts, count_routes, merged
from pytest_moeperf.errors import RoutingError


def routes_of(generator, *, tokens, layers, experts, top_k):
    """[tokens, layers, k], each row without a repeat."""
    return np.argsort(generator.random((tokens, layers, experts)), axis=2)[:, :, :top_k]


@st.composite
def models(draw, *, parts):
    """Counts of several requests to one model."""
    experts = draw(st.integers(2, 9))
    top_k = draw(st.integers(1, experts))
    layers = draw(st.integers(1, 3))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = []
    for _ in range(parts):
        tokens = draw(st.integers(1, 12))
        shape = {"tokens": tokens, "layers": layers, "experts": experts, "top_k": top_k}
        found.append(count_routes(routes_of(generator, **shape), experts=experts))
    return found


def test_routes_are_counted_by_layer_and_expert():
    routes = [[[0, 2], [3, 1]], [[2, 1], [3, 0]], [[2, 3], [1, 3]]]
    counts = count_routes(np.array(routes, dtype=np.uint8), experts=4)
    assert counts.counts.tolist() == [[1, 1, 3, 1], [1, 2, 0, 3]]
    assert (counts.tokens, counts.top_k, counts.experts, counts.layers) == (3, 2, 4, (0, 1))


def test_a_byte_is_wide_enough_for_the_last_of_256_experts():
    routes = np.full((2, 3, 1), 255, dtype=np.uint8)
    counts = count_routes(routes, experts=256)
    assert counts.counts[:, 255].tolist() == [2, 2, 2]


def test_layers_without_a_router_are_left_out():
    routes = [[[0, 0], [1, 2]], [[0, 0], [2, 3]]]
    counts = count_routes(routes, experts=4, layers=[1])
    assert counts.counts.tolist() == [[0, 1, 2, 1]]
    assert counts.layers == (1,)


def test_counts_cannot_be_changed():
    counts = ExpertCounts(counts=np.array([[1, 1]]), tokens=1, top_k=2)
    with pytest.raises(ValueError, match="read-only"):
        counts.counts[0, 0] = 5


def test_what_was_passed_in_can_still_be_changed():
    passed = np.array([[1, 1]])
    counts = ExpertCounts(counts=passed, tokens=1, top_k=2)
    passed[0, 0] = 5
    assert counts.counts.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[3, -1, 1, 1]], "layer 0, expert 1: counted -1 times, expected 0 or more"),
        ([[1, 1, 1, 1], [1, 1, 1, 0]], r"layer 1: .* add up to 3, but 2 tokens × top 2 are 4"),
        ([[1, 1, 1, 1], [0, 0, 0, 0]], "layer 1: counts add up to 0, but 2 tokens"),
        ([[3, 1, 0, 0]], "layer 0, expert 0: counted 3 times for 2 tokens"),
        ([1, 1, 1, 1], r"experts of shape \[4\]: expected \[layers, experts\]"),
        ([[]], r"experts of shape \[1, 0\]"),
        ([[1.0, 1.0, 1.0, 1.0]], "experts as float64: expected whole numbers"),
        ([[2]], "top 2 of 1 experts: expected 1 to 1"),
    ],
)
def test_counts_that_cannot_be_true(counts, message):
    with pytest.raises(RoutingError, match=message):
        ExpertCounts(counts=np.array(counts), tokens=2, top_k=2)


def test_counts_of_no_tokens():
    with pytest.raises(RoutingError, match="0 tokens were counted: send load first"):
        ExpertCounts(counts=np.array([[0, 0]]), tokens=0, top_k=1)


def test_a_name_for_each_row():
    with pytest.raises(RoutingError, match="1 layers are named for 2 rows"):
        ExpertCounts(counts=np.array([[1, 0], [0, 1]]), tokens=1, top_k=1, layers=(3,))


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ([[[0, 1], [0, 0]]], r"token 0, layer 1: experts \[0, 0\], but a token takes an expert on"),
        ([[[0, 4], [0, 1]]], "token 0, layer 0: expert 4, but there are only 0 to 3"),
        ([[[0, -1], [0, 1]]], "token 0, layer 0: expert -1"),
        ([[0, 1]], r"experts of shape \[1, 2\]: expected \[tokens, layers, k\]"),
        (np.zeros((0, 2, 2), dtype=int), r"experts of shape \[0, 2, 2\]"),
        ([[[0.5, 1]]], "experts as float64"),
        ([[[0, 1, 2, 3, 1]]], "takes an expert once"),
    ],
)
def test_routes_that_cannot_be_true(routes, message):
    with pytest.raises(RoutingError, match=message):
        count_routes(routes, experts=4)


def test_silent_zeros_of_a_top_1_router():
    with pytest.raises(RoutingError, match="all 16 tokens took expert 0 in all 2 layers"):
        count_routes(np.zeros((16, 2, 1), dtype=int), experts=8)


def test_a_few_zeros_of_a_top_1_router_are_chance():
    assert count_routes([[[0]]], experts=8).counts[0, 0] == 1


@pytest.mark.parametrize("layers", [[], [2], [-1]])
def test_layers_that_the_routes_lack(layers):
    with pytest.raises(RoutingError, match="of routes: expected some of 0 to 1"):
        count_routes([[[0], [1]]], experts=2, layers=layers)


@given(models(parts=3))
def test_merging_is_associative_and_commutative(parts):
    one, two, three = parts
    left = merged([merged([one, two]), three])
    right = merged([one, merged([three, two])])
    assert left.counts.tolist() == right.counts.tolist() == merged(parts).counts.tolist()
    assert left.tokens == right.tokens == one.tokens + two.tokens + three.tokens


def test_merging_adds_up():
    one = ExpertCounts(counts=np.array([[2, 0]]), tokens=2, top_k=1, layers=(5,))
    other = ExpertCounts(counts=np.array([[1, 2]]), tokens=3, top_k=1, layers=(5,))
    both = merged([one, other])
    assert both.counts.tolist() == [[3, 2]]
    assert (both.tokens, both.layers) == (5, (5,))


@pytest.mark.parametrize(
    "other",
    [
        {"counts": np.array([[1, 1]]), "top_k": 2},
        {"counts": np.array([[1, 0, 0]]), "top_k": 1},
        {"counts": np.array([[1, 0]]), "top_k": 1, "layers": (7,)},
    ],
)
def test_counts_of_another_model_are_not_merged(other):
    one = ExpertCounts(counts=np.array([[1, 0]]), tokens=1, top_k=1)
    with pytest.raises(RoutingError, match="cannot be added to those of top 1 of 2 experts in lay"):
        merged([one, ExpertCounts(tokens=1, **other)])
