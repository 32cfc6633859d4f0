"""Repeats as dots beside what was expected."""

from dataclasses import replace

import pytest

from pytest_moeperf.records import Outcome, Verdict
from pytest_moeperf.report.html_strip import LEFT, RIGHT, strip

JUDGED = Verdict(
    metric="tpot_ms.p50",
    outcome=Outcome.PASS,
    unit="ms",
    direction="lower",
    expected=20.0,
    upper=30.0,
    stored=((10.0, 30.0), (20.0,)),
    starts=1,
)


@pytest.fixture
def cell(session_report, make_start):
    """One start of 31.4 and 31.5 ms, and no more."""
    return replace(
        session_report.cells[0], start=make_start(tpot=(40.0, 50.0)), further=(), old=(), new=()
    )


def test_values_bounds_and_expected_share_one_scale(cell):
    drawn = strip(cell, JUDGED)
    baseline, today = drawn.lanes
    # 10 to 50 ms, and 6 % of that on both sides: 7.6 to 52.4.
    per_ms = (RIGHT - LEFT) / 44.8

    def place(value):
        return pytest.approx(LEFT + (value - 7.6) * per_ms, abs=0.06)

    assert [dot.x for dot in baseline.dots] == [place(10), place(30), place(20)]
    assert [dot.x for dot in today.dots] == [place(40), place(50)]
    assert [x for x, _, _ in baseline.medians] == [place(20), place(20)]
    assert [x for x, _, _ in today.medians] == [place(45)]
    assert drawn.expected.x == place(20)
    assert drawn.limits == (place(30),)
    assert drawn.allowed == (LEFT, place(30))
    assert [(tick.x, tick.text) for tick in drawn.ticks] == [(place(20), "20"), (place(40), "40")]


def test_the_picture_is_told_in_words(cell):
    drawn = strip(cell, JUDGED)
    assert drawn.summary == (
        "tpot_ms.p50: baseline 10.0 to 30.0 ms, this run 40.0 to 50.0 ms, expected 20.0 ms, "
        "allowed ≤ 30.0"
    )
    assert [lane.name for lane in drawn.lanes] == ["baseline (2 starts)", "this run (1 start)"]
    assert drawn.lanes[0].dots[2].title == "baseline, start 2: 20.0 ms"


def test_an_a_b_has_a_lane_for_each_engine(session_report):
    cell = session_report.cells[0]
    drawn = strip(cell, cell.verdicts[0])
    assert [(lane.name, lane.kind, len(lane.dots)) for lane in drawn.lanes] == [
        ("baseline (2 starts)", "before", 4),
        ("this run (2 starts)", "now", 4),
        ("A/B: old engine (3 starts)", "before", 6),
        ("A/B: new engine (3 starts)", "now", 6),
    ]


def test_a_ratio_has_values_of_its_own(cell):
    ratio = Verdict(metric="x ÷ y", outcome=Outcome.PASS, lower=0.5, upper=1.5, values=(0.9, 1.1))
    drawn = strip(cell, ratio)
    assert [lane.name for lane in drawn.lanes] == ["this run (2 repeats)"]
    assert drawn.limit_label.label == "allowed 0.5 … 1.50"
    assert drawn.lanes[0].dots[0].title == "this run: 0.9"


def test_discarded_repeats_are_not_drawn(cell):
    start = cell.start
    finding = cell.discarded[0].findings
    bad = replace(start, repeats=(replace(start.repeats[0], findings=finding), start.repeats[1]))
    assert len(strip(replace(cell, start=bad), JUDGED).lanes[1].dots) == 1


def test_without_a_value_there_is_no_picture(cell):
    told = Verdict(metric="moe_backend", outcome=Outcome.PASS, reason="as before")
    assert strip(cell, told) is None


@pytest.mark.parametrize("value", [0.0, 131072.0, 1e-9, 3e12])
def test_a_single_value_has_a_scale_too(cell, value):
    exact = Verdict(metric="kv", outcome=Outcome.PASS, lower=value, upper=value, values=(value,))
    drawn = strip(cell, exact)
    assert drawn.lanes[0].dots[0].x == pytest.approx((LEFT + RIGHT) / 2, abs=0.1)
    assert 1 <= len(drawn.ticks) <= 7


@pytest.mark.parametrize("starts", [1, 9, 40])
def test_many_starts_do_not_make_it_tall(cell, starts):
    verdict = replace(JUDGED, stored=((20.0,),) * starts)
    drawn = strip(cell, verdict)
    assert drawn.height <= 190
    assert len({dot.y for dot in drawn.lanes[0].dots}) == starts


@pytest.mark.parametrize("expected", [10.0, 30.0, 50.0])
def test_words_stay_in_the_picture(cell, expected):
    drawn = strip(cell, replace(JUDGED, expected=expected, upper=expected))
    for mark in (drawn.expected, drawn.limit_label):
        width = 7 * len(mark.label)
        left = mark.label_x - {"start": 0, "middle": width / 2, "end": width}[mark.anchor]
        assert left >= LEFT - 30
        assert left + width <= drawn.width + 10
