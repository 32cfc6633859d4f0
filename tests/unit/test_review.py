"""What counts as a lowered bar, and what excuses it."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.baseline import Baseline, Gate, KnownRegression
from pytest_moeperf.records import Fingerprint, Sample, StartRecord
from pytest_moeperf.review import Rule, due, lowerings, unexcused, what_changed
from pytest_moeperf.waiver import Waiver

TODAY = "2026-02-01"
PLACE = "cpu/vllm/serving/mini-moe.closed-c1-isl32-osl48-n8"


def baseline(*, tpot=20.0, throughput=100.0, starts=5, tolerance=0.10, prefix="old", **changes):
    """Five starts of two gated metrics, all alike."""
    fields = {
        "cell": "serving/mini-moe.closed-c1-isl32-osl48-n8",
        "fingerprint": Fingerprint(
            hardware="cpu",
            cpu_model="AMD EPYC",
            cpu_cores=2,
            engine="vllm",
            model="mini-moe",
            server="tp1",
            workload="closed@1",
        ),
        "starts": tuple(
            StartRecord(
                start_id=f"{prefix}-{number}",
                session_id=prefix,
                recorded_at="2026-01-02T03:04:05Z",
                startup_s=40.0,
                engine_version="0.32.0",
                repeats=(
                    Sample(seed=0, values={"tpot_ms.p50": tpot, "output_throughput": throughput}),
                ),
            )
            for number in range(starts)
        ),
        "gates": {
            "tpot_ms.p50": Gate(direction="lower", tolerance=tolerance, unit="ms"),
            "output_throughput": Gate(direction="higher", tolerance=tolerance, unit="tok/s"),
        },
        "created": "2026-01-02T03:04:05Z",
        "expires": "2026-04-02",
        "engine": None,
        "tool": "0.1.0",
    }
    return Baseline(**{**fields, **changes})


def rules(old, new, today=TODAY):
    return [(each.metric, each.rule) for each in lowerings(old, new, today=today)]


def test_the_same_baseline_changes_nothing():
    assert what_changed({PLACE: baseline()}, {PLACE: baseline()}, today=TODAY) == ()


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"tpot": 20.9}, []),  # 4.5 % worse of 5 % that pass
        ({"tpot": 21.1}, [("tpot_ms.p50", Rule.WORSE)]),
        ({"throughput": 96.0}, []),
        ({"throughput": 95.0}, [("output_throughput", Rule.WORSE)]),
        ({"tpot": 10.0, "throughput": 200.0}, []),  # better
        ({"tpot": 15.0, "throughput": 90.0}, [("output_throughput", Rule.WORSE)]),
    ],
)
def test_a_mean_may_get_worse_by_half_of_the_tolerance(figures, expected):
    assert rules(baseline(), baseline(prefix="new", **figures)) == expected


@given(st.floats(min_value=0.5, max_value=2.0), st.floats(min_value=0.01, max_value=1000.0))
def test_both_directions_are_weighed_alike_at_any_scale(ratio, scale):
    old = baseline(tpot=20 * scale, throughput=100 * scale)
    worse = baseline(tpot=20 * scale * ratio, throughput=100 * scale / ratio, prefix="new")
    found = {metric for metric, _ in rules(old, worse)}
    if abs(math.log(ratio) - math.log(1.05)) > 0.001:
        assert found == ({"tpot_ms.p50", "output_throughput"} if ratio > 1.05 else set())


def test_the_message_shows_both_figures_and_the_limit():
    [found] = lowerings(baseline(), baseline(throughput=90.0, prefix="new"), today=TODAY)
    assert found.baseline == PLACE
    assert found.message == (
        "100 → 90.0 tok/s (-10.0 %) is worse by more than half of the tolerance of 10 %"
    )


def test_a_wider_tolerance_is_weighed_by_the_old_one():
    assert rules(baseline(), baseline(tolerance=0.5, tpot=23.0, prefix="new")) == [
        ("output_throughput", Rule.WIDENED),
        ("tpot_ms.p50", Rule.WIDENED),
        ("tpot_ms.p50", Rule.WORSE),
    ]
    assert rules(baseline(), baseline(tolerance=0.05)) == []


def test_a_turned_direction_is_found():
    turned = {**baseline().gates, "tpot_ms.p50": Gate(direction="higher", tolerance=0.1, unit="ms")}
    assert rules(baseline(), baseline(gates=turned)) == [("tpot_ms.p50", Rule.WIDENED)]


def test_a_metric_that_is_judged_no_more_is_found():
    gates = {"tpot_ms.p50": baseline().gates["tpot_ms.p50"]}
    assert rules(baseline(), baseline(gates=gates)) == [("output_throughput", Rule.UNGATED)]


def test_a_metric_without_values_is_found():
    new = baseline(prefix="new", tpot=None)
    [found] = lowerings(baseline(), new, today=TODAY)
    assert (found.metric, found.rule, found.message) == (
        "tpot_ms.p50",
        Rule.WORSE,
        "has no value any more",
    )


def test_a_removed_file_is_found_unless_it_judged_nothing_any_more():
    assert rules(baseline(), None) == [(None, Rule.REMOVED)]
    assert rules(baseline(), None, today="2026-04-03") == []
    assert rules(None, baseline()) == []


def test_an_expired_baseline_still_guards_its_figures():
    assert rules(baseline(), baseline(tpot=30.0, prefix="new"), today="2026-04-03") == [
        ("tpot_ms.p50", Rule.WORSE)
    ]


def test_figures_of_another_machine_or_workload_replace_the_bar():
    other = dataclasses.replace(baseline().fingerprint, workload="closed@2")
    [found] = lowerings(baseline(), baseline(fingerprint=other, tpot=1.0), today=TODAY)
    assert found.rule is Rule.REPLACED
    assert found.message == (
        "another baseline in its place: the workload is closed@2 here and closed@1 "
        "before the change"
    )


def test_an_edited_start_is_found():
    old = baseline()
    slower = dataclasses.replace(
        old.starts[0], repeats=(Sample(seed=0, values={"tpot_ms.p50": 20.1}),)
    )
    new = dataclasses.replace(old, starts=(slower, *old.starts[1:]))
    assert rules(old, new) == [(None, Rule.EDITED)]


def test_further_repeats_and_starts_are_no_edit():
    old = baseline(starts=3)
    longer = dataclasses.replace(
        old.starts[0],
        repeats=(*old.starts[0].repeats, Sample(seed=1, values={"tpot_ms.p50": 20.0})),
    )
    further = baseline(prefix="more", starts=1).starts
    assert rules(old, dataclasses.replace(old, starts=(longer, *old.starts[1:], *further))) == []


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(10, 5, []), (5, 4, [(None, Rule.THINNED)]), (3, 2, [(None, Rule.THINNED)]), (2, 3, [])],
)
def test_fewer_starts_than_before_and_than_five_are_found(before, after, expected):
    assert rules(baseline(starts=before), baseline(starts=after, prefix="new")) == expected


def test_an_expiry_may_move_only_with_new_figures():
    assert rules(baseline(), baseline(expires="2026-04-03")) == [(None, Rule.EXTENDED)]
    new = baseline(prefix="new", expires="2026-04-20")
    later = tuple(
        dataclasses.replace(start, recorded_at="2026-01-20T00:00:00Z") for start in new.starts
    )
    assert rules(baseline(), dataclasses.replace(new, starts=later)) == []


def known(**changes):
    fields = {
        "metric": "tpot_ms.p50",
        "reason": "r",
        "issue": "https://example.org/1",
        "expires": "2026-03-01",
        "extent": 0.08,
    }
    return KnownRegression(**{**fields, **changes})


def test_a_known_regression_may_be_added_but_not_stretched():
    old = baseline(known=(known(),))
    assert rules(baseline(), old) == []
    assert rules(old, baseline(known=(known(),), prefix="new")) == []
    assert rules(old, baseline()) == []
    assert rules(baseline(), baseline(known=(known(expires="2026-05-03"),))) == [
        ("tpot_ms.p50", Rule.EXTENDED)  # 91 days
    ]
    assert rules(old, baseline(known=(known(expires="2026-03-02"),))) == [
        ("tpot_ms.p50", Rule.EXTENDED)
    ]
    assert rules(old, baseline(known=(known(extent=0.1),))) == [("tpot_ms.p50", Rule.EXTENDED)]


def test_the_anchor_may_not_go_or_get_worse(make_recording):
    engine = Baseline.begun(make_recording()).engine
    old = baseline(engine=engine).anchored("release")
    slower = dataclasses.replace(
        old, anchor=baseline(engine=engine, tpot=25.0).anchored("r").anchor
    )
    assert rules(old, dataclasses.replace(old, anchor=None)) == [(None, Rule.ANCHOR)]
    assert rules(old, slower) == [("tpot_ms.p50", Rule.ANCHOR)]
    faster = dataclasses.replace(
        old, anchor=baseline(engine=engine, tpot=15.0).anchored("r").anchor
    )
    assert rules(old, faster) == []


# Waivers


LOWERED = lowerings(baseline(), baseline(throughput=90.0, prefix="new"), today=TODAY)


def waiver(**changes):
    fields = {
        "baseline": PLACE,
        "metric": "output_throughput",
        "rule": "worse",
        "reason": "safety checks cost 10 %",
        "owner": "@somebody",
        "issue": "https://example.org/1",
        "expires": "2026-05-02",  # 90 days
    }
    return Waiver(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "excuses"),
    [
        ({}, True),
        ({"expires": TODAY}, True),
        ({"expires": "2026-05-03"}, False),
        ({"expires": "2026-01-31"}, False),
        ({"metric": "tpot_ms.p50"}, False),
        ({"metric": None}, False),
        ({"rule": "widened"}, False),
        ({"baseline": "cpu/vllm/serving/other"}, False),
    ],
)
def test_a_waiver_excuses_what_it_names_while_it_lasts(changes, excuses):
    left = unexcused(LOWERED, waivers=[waiver(**changes)], earlier=[], today=TODAY)
    assert left == (() if excuses else LOWERED)


def test_a_waiver_of_an_earlier_change_excuses_nothing_further():
    assert unexcused(LOWERED, waivers=[waiver()], earlier=[waiver()], today=TODAY) == LOWERED


def test_the_waiver_that_is_proposed_would_excuse():
    proposed = [each.waiver(TODAY) for each in LOWERED]
    assert unexcused(LOWERED, waivers=proposed, earlier=[], today=TODAY) == ()


# What has run out


def test_nothing_is_due_while_all_lasts():
    assert list(due([baseline(known=(known(),))], [waiver()], today=TODAY)) == []


def test_what_has_run_out_is_due_and_what_lasts_too_long_does_not_count():
    assert list(due([baseline(known=(known(),))], [waiver()], today="2026-05-03")) == [
        f"{PLACE}: expired on 2026-04-02 and is compared with nothing: `moeperf baseline refresh`",
        (
            f"{PLACE}: tpot_ms.p50: the known regression expired on 2026-03-01: see "
            "https://example.org/1, then `moeperf baseline prune`"
        ),
        (
            f"{PLACE}: output_throughput: the waiver of @somebody expired on 2026-05-02: see "
            "https://example.org/1, then `moeperf baseline prune`"
        ),
    ]
    [line] = due([], [waiver(metric=None, expires="2027-01-01")], today=TODAY)
    assert line == (
        f"{PLACE}: worse: the waiver of @somebody expires on 2027-01-01, later than 2026-05-02, "
        "and does not count"
    )
