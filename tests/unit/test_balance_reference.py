"""Routes held against logits, on three tokens whose choices are worked out by hand."""

import numpy as np
import pytest

from pytest_moeperf.balance import RouteCheck
from pytest_moeperf.errors import RoutingError

# One layer of four experts, top 2; each line is one token.
EXACT = np.array([[[3.0, 2.0, 1.0, 0.0]], [[0.00, 1.0, 0.51, 0.50]], [[0.0, 5.0, 4.0, 0.0]]])
ROUNDED = EXACT + np.array([[[0.0, 0.0, 0.01, 0.0]], [[0.0, 0.0, -0.02, 0.0]], [[0.0] * 4]])
# Moved by 0.01, 0.02 and 0.
MOST = 0.02


def check(*told, layers=(0,), exact=EXACT, rounded=ROUNDED):
    routes = np.array([[experts] for experts in told], dtype=np.uint8)
    return RouteCheck.of(routes, layers=layers, exact=exact, rounded=rounded)


def test_the_best_experts_in_any_order_are_right():
    found = check([1, 0], [1, 2], [2, 1])
    assert (found.tokens, found.choices, found.others, found.errors) == (3, 3, (), ())
    assert found.rounding == pytest.approx([MOST])


def test_what_rounding_explains_is_twice_the_most_that_it_moved_a_logit_of_the_layer_by():
    """Also of a token that it hardly moved: another kernel rounds that one otherwise."""
    others = check([0, 2], [1, 3], [0, 1]).others
    assert [other.bound for other in others] == pytest.approx([0.04, 0.04, 0.04])


def test_a_choice_closer_than_rounding_decides_nothing():
    assert check([0, 1], [1, 2], [1, 2]).decided == (2,)


def test_two_experts_that_rounding_may_swap_are_told_and_no_error():
    (other,) = check([0, 1], [1, 3], [1, 2]).others
    assert (other.token, other.layer) == (1, 0)
    assert (other.told, other.computed) == ((1, 3), (1, 2))
    assert other.shortfall == pytest.approx(0.01)
    assert other.by_rounding
    assert str(other) == (
        "token 1, layer 0: told experts [1, 3], computed [1, 2], 0.0100 apart where rounding is up "
        "to 0.0400"
    )


def test_any_other_expert_is_an_error():
    found = check([0, 2], [1, 0], [1, 2])
    assert [other.shortfall for other in found.errors] == pytest.approx([1.0, 0.51])
    assert str(found) == (
        "3 choices of 3 tokens, 66.7 % of them beyond rounding: 2 are others than computed, 2 of "
        "these not by rounding"
    )


def test_two_wrong_experts_count_by_the_worse_one():
    (error,) = check([2, 3], [1, 2], [1, 2]).errors
    assert error.shortfall == 3.0


def test_a_shifted_record_is_full_of_errors():
    """As if the first token were missing: the routes of the next stand in its place."""
    assert len(check([1, 2], [2, 1], [0, 1]).errors) == 2


def test_layers_without_a_router_are_not_looked_at():
    routes = np.array([[[0, 0], [0, 1]], [[0, 0], [1, 2]], [[0, 0], [1, 2]]])
    assert RouteCheck.of(routes, layers=(1,), exact=EXACT, rounded=ROUNDED).others == ()
    routes[0, 1] = [2, 3]
    (error,) = RouteCheck.of(routes, layers=(1,), exact=EXACT, rounded=ROUNDED).errors
    assert error.layer == 1


def test_rounding_is_judged_layer_by_layer():
    exact = np.tile(EXACT, (1, 2, 1))
    rounded = exact.copy()
    rounded[:, 1] += 1.0
    routes = np.array([[[0, 2], [0, 2]], [[1, 2], [1, 2]], [[1, 2], [1, 2]]])
    found = RouteCheck.of(routes, layers=(0, 1), exact=exact, rounded=rounded)
    assert [(other.layer, other.by_rounding) for other in found.others] == [(0, False), (1, True)]
    assert found.rounding == pytest.approx([0.0, 1.0])


def test_a_token_that_takes_all_experts_has_no_choice():
    found = check([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3])
    assert found.others == ()
    assert found.decided == (3,)


def test_a_layer_that_rounding_leaves_undecided_is_not_checked():
    """One logit that moved by 1 may explain any choice; the other layer is as exact as before."""
    exact, rounded = (np.tile(logits, (1, 2, 1)) for logits in (EXACT, ROUNDED))
    rounded[1, 0, 0] += 2.0
    routes = np.array([[[0, 2], [0, 1]], [[1, 3], [1, 2]], [[0, 1], [1, 2]]])
    found = RouteCheck.of(routes, layers=(0, 1), exact=exact, rounded=rounded)
    assert (found.errors, found.decided, found.unchecked) == ((), (0, 2), (0,))


def test_logits_that_are_not_numbers_are_no_excuse():
    broken = np.full_like(EXACT, np.nan)
    assert check([2, 3], [1, 2], [1, 2], exact=EXACT, rounded=broken).errors


@pytest.mark.parametrize("exact", [EXACT[:2], EXACT[:, :, :3], np.tile(EXACT, (1, 2, 1))])
def test_logits_of_other_tokens_or_layers_are_an_error(exact):
    with pytest.raises(RoutingError, match=r"logits of shape .* for 3 tokens in 1 layers"):
        check([0, 1], [1, 2], [1, 2], exact=exact)
