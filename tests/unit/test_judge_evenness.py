"""Verdicts on how evenly experts are used; figures are worked out by hand."""

import math

import numpy as np
import pytest

from pytest_moeperf.balance import ExpertCounts, linear_placement
from pytest_moeperf.errors import UsageError
from pytest_moeperf.judge import evenness
from pytest_moeperf.records import Outcome

WHY = "so it was agreed"


def counts(*rows, top_k=1, layers=()):
    return ExpertCounts(
        counts=np.array(rows), tokens=sum(rows[0]) // top_k, top_k=top_k, layers=layers
    )


def alike(*rows, requests=8, **more):
    """As many requests as needed to be sure: all of them the same."""
    return [counts(*rows, **more)] * requests


# Bounds


def test_an_even_router_passes():
    verdict = evenness.measure("largest_deviation", alike([5, 5, 5, 5]), at_most=0.5, why=WHY)
    assert (verdict.outcome, verdict.measured, verdict.upper) == (Outcome.PASS, 0.0, 0.5)


def test_an_uneven_layer_fails_and_is_named_in_plain_words():
    # 8 ÷ 5 − 1 = 0.6 in layer 7.
    requests = alike([5, 5, 5, 5], [8, 4, 4, 4], layers=(3, 7))
    verdict = evenness.measure("largest_deviation", requests, at_most=0.5, why=WHY)
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.measured == pytest.approx(0.6)
    assert verdict.certain == pytest.approx((0.6, 0.6))
    assert verdict.reason == (
        "expert 0 of layer 7 gets 40.0 % of its load, a fair share is 25.0 %; largest_deviation "
        "there is 0.6 (0.6 to 0.6 by 95 % of 8 requests drawn anew), beyond what is allowed (at "
        "most 0.5): so it was agreed"
    )


def test_the_bound_itself_passes():
    requests = alike([6, 4, 5, 5])
    assert evenness.measure("largest_deviation", requests, at_most=0.2, why=WHY).outcome == "PASS"


def test_where_requests_differ_too_much_nothing_is_said():
    # One of eight requests goes to one expert, the others are even: by chance it may be missing.
    requests = [*alike([5, 5, 5, 5], requests=7), counts([200, 0, 0, 0])]
    verdict = evenness.measure("largest_deviation", requests, at_most=1.0, why=WHY)
    assert verdict.measured > 1.0
    assert verdict.certain[0] < 1.0
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason.endswith("; send more requests to be sure")


def test_one_request_says_nothing_of_others():
    verdict = evenness.measure("max_over_mean", alike([20, 0], requests=1), at_most=1.5, why=WHY)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.certain is None
    assert "max_over_mean there is 2.00 of one request" in verdict.reason


def test_balancedness_is_of_all_layers():
    # Means 5 + 5, maxima 5 + 10.
    verdict = evenness.measure("balancedness", alike([5, 5], [10, 0]), at_least=0.7, why=WHY)
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.measured == pytest.approx(10 / 15)
    assert verdict.reason.startswith("expert 0 of layer 1 gets 100.0 % of its load")
    assert "; balancedness of all layers is 0.667 (" in verdict.reason


def test_ranks_are_judged_by_their_placement():
    # Experts 0 and 1 on one rank: 12 of 20 tokens, mean 10.
    verdict = evenness.measure(
        "balancedness",
        alike([6, 6, 4, 4]),
        at_least=0.9,
        placement=linear_placement(experts=4, ranks=2),
        why=WHY,
    )
    assert verdict.metric == "balancedness over 2 ranks"
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.measured == pytest.approx(10 / 12)
    assert verdict.reason.startswith(
        "rank 0 of layer 0 gets 60.0 % of its load, a fair share is 50.0 %; "
    )


def test_ranks_of_a_top_2_router_are_judged_by_their_placement():
    # 20 choices of 10 tokens: 12 on the first rank, 8 on the second, 10 on average.
    verdict = evenness.measure(
        "balancedness",
        alike([6, 6, 4, 4], top_k=2),
        at_least=0.8,
        placement=linear_placement(experts=4, ranks=2),
        why=WHY,
    )
    assert (verdict.outcome, verdict.measured) == (Outcome.PASS, pytest.approx(10 / 12))


@pytest.mark.parametrize(
    ("name", "bound", "text"),
    [
        ("evenness", {"at_most": 1}, "'evenness' is no measure of balance; valid are balancedness"),
        ("balancedness", {"at_most": 1}, "more balancedness is better: bound it by at_least()"),
        ("max_over_mean", {"at_least": 1}, "less max_over_mean is better: bound it by at_most()"),
        ("max_over_mean", {"at_most": math.nan}, "max_over_mean: the bound nan is no number"),
        ("balancedness", {"at_least": math.nan}, "balancedness: the bound nan is no number"),
    ],
)
def test_misuse_is_one_line(name, bound, text):
    with pytest.raises(UsageError) as error:
        evenness.measure(name, alike([5, 5]), **bound, why=WHY)
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", evenness.MEASURES)
def test_every_measure_calls_a_collapse_worse(name):
    even, collapsed = alike([25, 25, 25, 25]), alike([97, 1, 1, 1])
    bound = "at_most" if evenness.MEASURES[name].direction == "lower" else "at_least"
    limit = evenness.MEASURES[name].of(np.array([[40, 20, 20, 20]]))
    assert evenness.measure(name, even, **{bound: limit}, why=WHY).outcome is Outcome.PASS
    assert evenness.measure(name, collapsed, **{bound: limit}, why=WHY).outcome is Outcome.REGRESSED


# Collapse and dead experts


def test_a_collapse_fails_with_its_layer_experts_and_share():
    verdict = evenness.collapse(counts([25, 25, 25, 25], [90, 4, 3, 3]))
    assert (verdict.outcome, verdict.measured) == (Outcome.REGRESSED, 1)
    assert verdict.reason.startswith("layer 1 has collapsed: expert 0 takes 90.0 % of its tokens")
    assert evenness.collapse(counts([30, 25, 25, 20])).outcome is Outcome.PASS


def test_a_dead_expert_fails_by_its_number():
    verdict = evenness.dead(counts([40, 0, 30, 30], layers=(12,)))
    assert (verdict.outcome, verdict.measured) == (Outcome.REGRESSED, 1)
    assert verdict.reason.startswith("layer 12: no token took expert 1; ")
    assert evenness.dead(counts([40, 1, 30, 29])).outcome is Outcome.PASS


def test_of_many_findings_three_are_told():
    verdict = evenness.dead(counts([200, 0, 0, 0, 0, 0]))
    assert "no token took expert 3; and 2 more; " in verdict.reason


@pytest.mark.parametrize("judge", [evenness.collapse, evenness.dead])
def test_too_few_tokens_say_nothing(judge):
    # 79 tokens of 4 experts: a fair share is below 20.
    verdict = judge(counts([79, 0, 0, 0]))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason.startswith("79 tokens are too few to tell")
    assert judge(counts([80, 0, 0, 0])).outcome is Outcome.REGRESSED


# Hot experts


def agreement(one, other, **bound):
    return evenness.hot_experts(one, other, **bound, compared_with="b", why=WHY)


def test_the_same_hot_experts_agree():
    one, other = counts([4, 3, 2, 1]), counts([40, 30, 20, 10])
    verdict = agreement(one, other, at_least=0.9)
    assert (verdict.outcome, verdict.measured) == (Outcome.PASS, pytest.approx(1.0))
    assert agreement(one, other, at_most=0.5).outcome is Outcome.REGRESSED


def test_other_hot_experts_differ_and_the_odd_layer_is_named():
    # Spearman's correlation is 1 in layer 0 and −1 in layer 5.
    one = counts([4, 3, 2, 1], [4, 3, 2, 1], layers=(0, 5))
    other = counts([4, 3, 2, 1], [1, 2, 3, 4], layers=(0, 5))
    verdict = agreement(one, other, at_least=0.5)
    assert (verdict.outcome, verdict.measured) == (Outcome.REGRESSED, pytest.approx(0.0))
    assert verdict.reason.endswith("layer 5 by -1.00, its busiest are 0 in one load and 3 in b")
    assert agreement(one, other, at_most=0.5).outcome is Outcome.PASS


def test_of_loads_that_must_differ_the_layer_that_agrees_most_is_named():
    one = counts([4, 3, 2, 1], [4, 3, 2, 1], layers=(0, 5))
    other = counts([1, 2, 3, 4], [4, 3, 2, 1], layers=(0, 5))
    verdict = agreement(one, other, at_most=-0.5)
    assert (verdict.outcome, verdict.measured) == (Outcome.REGRESSED, pytest.approx(0.0))
    assert verdict.reason.endswith("layer 5 by 1.00, its busiest are 0 in one load and 0 in b")


def test_without_hot_experts_there_is_nothing_to_compare():
    even = counts([5, 5])
    assert agreement(even, even, at_least=0.5).outcome is Outcome.INCONCLUSIVE


# What is shown


def test_the_least_even_layers_are_shown_in_the_order_of_the_model():
    found = evenness.worst_layers(counts([5, 5], [8, 2], [6, 4], layers=(1, 2, 3)), 2)
    assert (found.layers, found.counts.tolist()) == ((2, 3), [[8, 2], [6, 4]])


def test_random_weights_are_refused_with_what_to_use():
    verdict = evenness.untrained("balancedness", "mini-moe")
    assert verdict.outcome is Outcome.INCOMPARABLE
    assert verdict.reason.startswith("mini-moe has random weights")
