"""Requests with the experts that their tokens took, and the counts of prefill and decode."""

from dataclasses import replace

import numpy as np
import pytest

from pytest_moeperf.balance import RoutedRequest, RoutingCounts
from pytest_moeperf.errors import RoutingError

# Three tokens of prompt, two of output: the second of these was never put in.
FIRST = RoutedRequest(
    prompt_tokens=3,
    output_tokens=2,
    routes=np.array(
        [[[0, 1], [0, 0]], [[0, 2], [0, 0]], [[1, 2], [0, 0]], [[3, 0], [0, 0]]], dtype=np.uint8
    ),
)
SECOND = RoutedRequest(
    prompt_tokens=1, output_tokens=1, routes=np.array([[[3, 1], [0, 0]]], dtype=np.int32)
)


def counted(*requests, experts=4, layers=(0,)):
    return RoutingCounts(requests=requests, experts=experts, layers=layers)


def test_the_tokens_of_the_prompt_are_prefill_and_the_others_decode():
    counts = counted(FIRST, SECOND)
    assert counts.prefill.counts.tolist() == [[2, 3, 2, 1]]
    assert counts.prefill.tokens == 4
    assert counts.decode.counts.tolist() == [[1, 0, 0, 1]]
    assert counts.decode.tokens == 1
    assert counts.total.counts.tolist() == [[3, 3, 2, 2]]
    assert (counts.total.tokens, counts.total.top_k, counts.total.layers) == (5, 2, (0,))


def test_each_request_has_counts_of_its_own():
    counts = counted(FIRST, SECOND)
    assert [each.counts.tolist() for each in counts.by_request] == [[[3, 2, 2, 1]], [[0, 1, 0, 1]]]
    assert [each.tokens for each in counts.by_request] == [4, 1]


def test_a_token_that_comes_out_last_is_never_decoded():
    counts = counted(SECOND)
    assert counts.decode is None
    assert counts.total.counts.tolist() == counts.prefill.counts.tolist() == [[0, 1, 0, 1]]


def test_layers_without_a_router_are_left_out_and_the_others_keep_their_number():
    routes = np.array([[[0, 0], [1, 2]], [[0, 0], [2, 3]]])
    request = RoutedRequest(prompt_tokens=2, output_tokens=1, routes=routes)
    counts = counted(request, layers=(1,))
    assert counts.total.layers == (1,)
    assert counts.total.counts.tolist() == [[0, 1, 2, 1]]


@pytest.mark.parametrize(
    ("prompt_tokens", "output_tokens"),
    [(3, 1), (3, 3), (4, 2)],
)
def test_a_missing_or_surplus_token_is_an_error(prompt_tokens, output_tokens):
    expected = prompt_tokens + output_tokens - 1
    with pytest.raises(RoutingError, match=f"routes of 4 tokens: .* have {expected}, as the last"):
        RoutedRequest(prompt_tokens=prompt_tokens, output_tokens=output_tokens, routes=FIRST.routes)


@pytest.mark.parametrize(
    "routes", [np.zeros((4, 2), dtype=int), np.zeros((4, 2, 2)), [[["a", "b"]]]]
)
def test_what_is_no_table_of_whole_numbers_is_an_error(routes):
    with pytest.raises(RoutingError, match=r"expected whole numbers, \[tokens, layers, k\]"):
        RoutedRequest(prompt_tokens=4, output_tokens=1, routes=routes)


def test_a_request_needs_tokens():
    with pytest.raises(RoutingError, match=r"a request of 0 \+ 2 tokens: expected at least 1"):
        RoutedRequest(prompt_tokens=0, output_tokens=2, routes=FIRST.routes[:1])


def test_all_tokens_but_the_last_were_put_in():
    told = replace(FIRST, prompt_ids=(5, 6, 7), output_ids=(8, 9))
    assert told.put_in == (5, 6, 7, 8)
    assert replace(told, output_ids=None).put_in is None
    assert FIRST.put_in is None


def test_zeros_in_place_of_routes_are_an_error():
    zeros = RoutedRequest(prompt_tokens=3, output_tokens=2, routes=np.zeros_like(FIRST.routes))
    with pytest.raises(RoutingError, match="the engine did not record this layer"):
        _ = counted(zeros).prefill


def test_an_expert_that_the_model_lacks_is_an_error():
    with pytest.raises(RoutingError, match="expert 3, but there are only 0 to 2"):
        _ = counted(FIRST, experts=3).total


def test_requests_of_two_models_are_an_error():
    other = RoutedRequest(prompt_tokens=1, output_tokens=1, routes=np.array([[[3], [0]]]))
    with pytest.raises(RoutingError, match="routes of 2 layers × top 1 and 2 layers × top 2"):
        _ = counted(FIRST, other).prefill


def test_counts_of_nothing_are_an_error():
    with pytest.raises(RoutingError, match="no request was counted: send at least 1"):
        counted()


def test_routes_cannot_be_changed_and_what_was_passed_in_can():
    passed = np.array([[[0, 1], [2, 3]]])
    request = RoutedRequest(prompt_tokens=1, output_tokens=1, routes=passed)
    passed[0, 0, 0] = 3
    assert request.routes.tolist() == [[[0, 1], [2, 3]]]
    with pytest.raises(ValueError, match="read-only"):
        request.routes[0, 0, 0] = 1
