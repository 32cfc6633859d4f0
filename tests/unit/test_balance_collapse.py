import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.balance import ExpertCounts, collapses, dead_experts


def counts_of(*rows, tokens, top_k=1, layers=()):
    return ExpertCounts(counts=np.array(rows), tokens=tokens, top_k=top_k, layers=layers)


def test_two_experts_with_over_80_percent():
    even, collapsed = [25] * 8, [10, 0, 95, 5, 5, 75, 5, 5]
    found = collapses(counts_of(even, collapsed, tokens=100, top_k=2, layers=(6, 7)))
    assert [each.message for each in found] == [
        "layer 7 has collapsed: experts 2, 5 take 85.0 % of its tokens (over 80 % is a collapse)"
    ]
    assert (found[0].layer, found[0].experts) == (7, (2, 5))


def test_one_expert_with_over_80_percent_is_named_alone():
    (found,) = collapses(counts_of([3, 81, 2, 2, 3, 3, 3, 3], tokens=100))
    assert found.message.startswith("layer 0 has collapsed: expert 1 takes 81.0 %")


@pytest.mark.parametrize(
    "row",
    [
        [40, 40, 4, 4, 3, 3, 3, 3],  # exactly 80 %
        [40, 4, 4, 4, 4, 4, 20, 20],  # exactly 40 % on one
        [41, 9, 9, 9, 8, 8, 8, 8],  # 41 %, and none of the others is idle
        [41, 2, 2, 2, 5, 5, 5, 38],  # three of seven below 5 % are not half of them
    ],
)
def test_uneven_is_no_collapse_yet(row):
    assert collapses(counts_of(row, tokens=100)) == ()


def test_one_with_over_40_percent_while_others_have_next_to_nothing():
    (found,) = collapses(counts_of([41, 4, 4, 4, 4, 14, 14, 15], tokens=100))
    assert found.message == (
        "layer 0 has collapsed: expert 0 takes 41.0 % of its tokens (over 40 % is a collapse)"
    )


def test_of_a_top_4_router_the_four_busiest_count():
    rows = [[90, 85, 85, 80, *[5] * 12], [60, 60, 60, 60, *[14] * 8, *[12] * 4]]
    (found,) = collapses(counts_of(*rows, tokens=100, top_k=4))
    assert (found.layer, found.experts) == (0, (0, 1, 2, 3))
    assert found.share == pytest.approx(0.85)


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (2, 1), (2, 2), (3, 2), (4, 4), (8, 6)])
def test_a_uniform_router_of_few_experts_has_not_collapsed(experts, top_k):
    counts = counts_of([top_k * 30] * experts, tokens=30 * experts, top_k=top_k)
    assert collapses(counts) == ()


def test_one_of_two_experts():
    assert [each.experts for each in collapses(counts_of([90, 10], tokens=100))] == [(0,)]


@given(st.permutations([50, 36, 4, 2, 2, 2, 2, 2]))
def test_collapse_is_found_wherever_the_experts_stand(row):
    (found,) = collapses(counts_of(row, tokens=100))
    assert [row[expert] for expert in found.experts] == [50, 36]


def test_dead_experts_are_named_by_layer():
    counts = counts_of([50, 50, 0, 60], [40, 40, 40, 40], tokens=80, top_k=2, layers=(1, 2))
    assert dead_experts(counts) == ((1, 2),)


def test_none_is_dead():
    assert dead_experts(counts_of([40, 40], tokens=80)) == ()


def test_few_tokens_do_not_tell_who_is_dead():
    assert dead_experts(counts_of([39, 0], tokens=39)) is None
    assert dead_experts(counts_of([40, 0], tokens=40)) == ((0, 1),)


def test_of_a_top_2_router_both_choices_of_a_token_tell_who_is_dead():
    # 40 tokens × 2 over 4 experts are 20 for each; 39 tokens are 19.5.
    assert dead_experts(counts_of([40, 40, 0, 0], tokens=40, top_k=2)) == ((0, 2), (0, 3))
    assert dead_experts(counts_of([39, 39, 0, 0], tokens=39, top_k=2)) is None
