"""Counts of experts in baselines: what is stored, what is refused, what a change of them is."""

import dataclasses
import json

import pytest

from pytest_moeperf.admission import refusals
from pytest_moeperf.baseline import Baseline
from pytest_moeperf.baseline_format import encode
from pytest_moeperf.errors import BaselineError
from pytest_moeperf.report.baselines import text
from pytest_moeperf.review import Rule, lowerings, what_changed
from pytest_moeperf.store import decoded

EVEN, SKEWED = (25, 25, 25, 25), (40, 10, 30, 20)
TODAY = "2026-02-01"


@pytest.fixture
def counted(make_recording, make_routing):
    """A baseline of nothing but counts, in two layers."""

    def make(*rows):
        return Baseline.begun(make_recording(gates={}, routing=make_routing(*rows)))

    return make


def test_counts_read_back_as_they_were(counted):
    baseline = counted(EVEN, SKEWED)
    assert decoded(encode(baseline), source="x") == baseline


def test_a_layer_is_a_line_of_the_file(counted):
    assert "      [40, 10, 30, 20]\n" in encode(counted(EVEN, SKEWED))


def test_counts_never_expire(counted):
    baseline = counted(EVEN)
    assert baseline.expires == "9999-12-31"
    assert not baseline.expired("2096-01-01")


def test_further_starts_leave_the_first_counts(counted, make_recording, make_routing, make_start):
    again = make_recording(gates={}, routing=make_routing(SKEWED), start=make_start("start-2"))
    baseline = counted(EVEN).extended(again, source="x")
    assert (baseline.routing.prefill, len(baseline.starts)) == ((EVEN,), 2)
    assert baseline.expires == "9999-12-31"


def test_counts_alone_are_enough_for_a_reference(counted):
    assert refusals(counted(EVEN), starts=1) == ()
    without = dataclasses.replace(counted(EVEN), routing=None)
    assert refusals(without, starts=1) == ("has no metric that is judged",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [0]}, "$.routing.prefill: 2 rows for 1 layers"),
        ({"experts": 5}, "$.routing.prefill[0]: 4 counts for 5 experts"),
        (
            {"prefill_tokens": 99},
            "$.routing.prefill[0]: no counts of 99 tokens that take 1 experts each",
        ),
        ({"prefill": [[101, -1, 0, 0], [25] * 4]}, "$.routing.prefill[0][1]: -1 must be at least"),
        ({"decode": [[1, 0, 0, 0], [1, 0, 0, 0]]}, "$.routing.decode[0]: no counts of 0 tokens"),
        ({"route": ""}, '$.routing.route: "" must have at least 1 characters'),
    ],
)
def test_counts_that_cannot_be_true_are_refused_with_the_place(counted, change, message):
    document = json.loads(encode(counted(EVEN, SKEWED)))
    document["routing"] |= change
    with pytest.raises(BaselineError) as error:
        decoded(json.dumps(document), source="x.json")
    assert str(error.value).startswith(f"x.json: {message}")


def test_other_experts_of_the_same_prompts_lower_the_bar(counted):
    (found,) = lowerings(counted(EVEN), counted(SKEWED), today=TODAY)
    assert found.rule is Rule.REROUTED
    assert found.message.startswith("layer 0 sends 20.0 % of the load of the same prompts")


def test_rounding_does_not(counted):
    # 2 of 200 tokens went to another expert.
    before, after = counted((50, 50, 50, 50)), counted((52, 48, 50, 50))
    assert lowerings(before, after, today=TODAY) == ()


def test_counts_that_are_gone_lower_the_bar(counted):
    without = dataclasses.replace(counted(EVEN), routing=None)
    assert [each.rule for each in lowerings(counted(EVEN), without, today=TODAY)] == [Rule.UNGATED]
    assert lowerings(without, counted(EVEN), today=TODAY) == ()


def test_a_review_tells_what_became_of_the_experts(counted):
    place = counted(EVEN).place
    new = text(what_changed({}, {place: counted(SKEWED)}, today=TODAY), unchanged=0)
    moved = text(
        what_changed({place: counted(EVEN)}, {place: counted(SKEWED)}, today=TODAY), unchanged=0
    )
    told = "  experts of its prompts: 1 layer of 4 experts, top 1, 100 + 0 tokens: peak 1.60× in"
    assert told in new
    assert "expires never" in new
    assert "  experts of its prompts: layer 0 sends 20.0 %" in moved
    assert "! lowered (rerouted): layer 0 sends 20.0 %" in moved
