"""Verdicts on whether prompts take the experts of before; figures are worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.balance import ExpertCounts, RouteCheck
from pytest_moeperf.baseline import Baseline, EngineProvenance
from pytest_moeperf.judge import routing
from pytest_moeperf.records import CellResult, Outcome, RoutingRecord


def record(*rows, layers=None, top_k=1):
    return RoutingRecord(
        route="told",
        layers=tuple(range(len(rows))) if layers is None else layers,
        experts=len(rows[0]),
        top_k=top_k,
        prefill_tokens=sum(rows[0]) // top_k,
        decode_tokens=0,
        prefill=tuple(map(tuple, rows)),
        decode=None,
    )


def test_a_permuted_router_is_caught_with_the_experts_that_gained_and_lost():
    stored = record([25, 25, 25, 25], [10, 20, 30, 40])
    now = record([25, 25, 25, 25], [40, 20, 30, 10])
    verdict = routing.shift(now, stored)
    # ½ (0.3 + 0.3)
    assert (verdict.outcome, verdict.measured) == (Outcome.REGRESSED, pytest.approx(30.0))
    assert verdict.reason == (
        "layer 1 sends 30.0 % of the load of the same prompts to other experts than before (up to "
        "2.0 % is rounding): expert 0 gets 40.0 %, was 10.0 %; expert 3 gets 10.0 %, was 40.0 %; "
        "1 of 2 layers changed: the router, its kernel or the weights are not what they were"
    )


@given(
    rows=st.lists(
        st.lists(st.integers(0, 200), min_size=8, max_size=8), min_size=1, max_size=4
    ).map(lambda rows: [[*row, 1000 - sum(row) % 1000] for row in rows]),
    data=st.data(),
)
def test_two_experts_that_swap_places_are_caught_by_the_difference_of_their_shares(rows, data):
    tokens = max(map(sum, rows))
    rows = [[*row[:-1], row[-1] + tokens - sum(row)] for row in rows]
    layer = data.draw(st.integers(0, len(rows) - 1))
    one, other = data.draw(st.permutations(range(9)))[:2]
    swapped = [list(row) for row in rows]
    swapped[layer][one], swapped[layer][other] = rows[layer][other], rows[layer][one]
    moved = abs(rows[layer][one] - rows[layer][other]) / tokens
    verdict = routing.shift(record(*swapped), record(*rows))
    assert verdict.measured == pytest.approx(100 * moved)
    assert (verdict.outcome is Outcome.REGRESSED) == (verdict.measured > 2.0)


@given(
    ties=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20),
)
def test_a_few_tokens_on_the_edge_are_no_shift(ties):
    """20 of 1,000 tokens may fall to another expert: 2 %."""
    stored = [200, 150, 125, 125, 125, 125, 100, 50]
    now = list(stored)
    for loser, winner in ties:
        now[loser] -= 1
        now[winner] += 1
    assert routing.shift(record(now), record(stored)).outcome is Outcome.PASS


def test_other_tokens_than_recorded_are_told():
    verdict = routing.shift(record([6, 5]), record([5, 5]))
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.reason.startswith("11 prompt tokens were counted, 10 are stored: the engine")


def test_generated_tokens_that_took_another_way_are_no_shift():
    """A single near-tie may lead all that is generated elsewhere."""
    now, before = (
        replace(record([25, 25]), decode_tokens=10, decode=(row,)) for row in ((10, 0), (0, 10))
    )
    verdict = routing.shift(now, before)
    assert (verdict.outcome, verdict.measured) == (Outcome.PASS, 0.0)


def test_another_architecture_than_recorded_is_told():
    verdict = routing.shift(record([5, 5]), record([5, 5, 0]))
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.reason == (
        "top 1 of 2 experts in layers 0 were counted, top 1 of 3 experts in layers 0 are stored"
    )


@pytest.fixture
def cell(fingerprint, make_start):
    return CellResult(
        cell="moe.balance/tiny.burst",
        test="",
        server="tiny",
        engine="vllm",
        workload="burst",
        fingerprint=fingerprint,
        start=make_start(),
        routing=record([25, 25]),
    )


@pytest.fixture
def stored(cell):
    return Baseline(
        cell=cell.cell,
        fingerprint=cell.fingerprint,
        engine=EngineProvenance(distribution="vllm", version="0.32.0"),
        starts=(cell.start,),
        routing=record([25, 25]),
        created="2026-01-02T03:00:00Z",
        expires="9999-12-31",
        tool="0.1.0",
    )


def test_what_is_stored_decides(cell, stored):
    other = replace(cell, routing=record([30, 20]))
    assert routing.as_stored(cell, stored, recording=False).outcome is Outcome.PASS
    assert routing.as_stored(other, stored, recording=False).outcome is Outcome.REGRESSED


def test_without_a_baseline_there_is_no_verdict(cell, stored):
    without = replace(stored, routing=None)
    for nothing in (None, without):
        assert routing.as_stored(cell, nothing, recording=False).outcome is Outcome.NO_BASELINE


@pytest.mark.parametrize("recording", [False, True])
def test_of_other_weights_there_is_no_verdict(cell, stored, recording):
    elsewhere = replace(stored.fingerprint, model="tiny@other")
    verdict = routing.as_stored(cell, replace(stored, fingerprint=elsewhere), recording=recording)
    assert verdict.outcome is Outcome.INCOMPARABLE
    assert "the model is " in verdict.reason


def test_recording_does_not_bury_a_contradiction(cell, stored):
    other = replace(cell, routing=record([30, 20]))
    assert routing.as_stored(cell, None, recording=True).outcome is Outcome.RECORDED
    assert routing.as_stored(cell, stored, recording=True).outcome is Outcome.RECORDED
    assert routing.as_stored(other, stored, recording=True).outcome is Outcome.REGRESSED


def test_the_layers_that_changed_most_are_shown_of_both_sides():
    now, before = (
        ExpertCounts(counts=np.array([[5, 5], row]), tokens=10, top_k=1) for row in ([8, 2], [2, 8])
    )
    one, other = routing.moved_layers(now, before, 1)
    assert (one.counts.tolist(), other.counts.tolist()) == ([[8, 2]], [[2, 8]])
    assert one.layers == other.layers == (1,)


def checked(told):
    """A token that takes one of three experts, of which the second is best by far."""
    exact = np.array([[[0.0, 2.0, 1.0]]])
    routes = np.array([[[told]]])
    return RouteCheck.of(routes, layers=(0,), exact=exact, rounded=exact + 0.01)


def test_experts_that_a_forward_pass_takes_as_well_pass():
    verdict = routing.as_computed(checked(1))
    assert (verdict.outcome, verdict.measured, verdict.upper) == (Outcome.PASS, 0.0, 0.0)
    assert verdict.reason == (
        "a forward pass in PyTorch: 1 choices of 1 tokens, 100.0 % of them beyond rounding: 0 are "
        "others than computed, 0 of these not by rounding"
    )


def test_a_router_that_rounding_decides_proves_nothing():
    exact = np.array([[[0.0, 2.0, 1.0]]])
    routes = np.array([[[2]]])
    check = RouteCheck.of(routes, layers=(0,), exact=exact, rounded=exact + 1.0)
    verdict = routing.as_computed(check)
    assert (verdict.outcome, verdict.measured) == (Outcome.INCONCLUSIVE, 0.0)
    assert verdict.reason.endswith("; too few choices of router 0 are beyond rounding")


def test_an_expert_that_a_forward_pass_does_not_take_fails():
    verdict = routing.as_computed(checked(2))
    assert (verdict.outcome, verdict.measured) == (Outcome.REGRESSED, 1.0)
    assert verdict.reason.endswith(
        "; the first is token 0, layer 0: told experts [2], computed [1], 1.0000 apart where "
        "rounding is up to 0.0200: the engine tells, or takes, wrong experts"
    )
