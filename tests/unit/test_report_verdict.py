"""What a verdict rests on, in words."""

from dataclasses import replace

import pytest

from pytest_moeperf.records import Outcome, Verdict
from pytest_moeperf.report.verdict import chance, evidence, failure, interval

SLOWER = Verdict(
    metric="tpot_ms.p50",
    outcome=Outcome.REGRESSED,
    direction="lower",
    change=0.05,
    effect=1 / 1.05 - 1,
    interval=(1 / 1.06 - 1, 1 / 1.04 - 1),
    p=2.4e-7,
    p_limit=0.0005,
    starts=3,
)


def test_the_interval_is_that_of_the_change_as_the_metric_is_read():
    assert interval(SLOWER) == "+5.0 % (+4.0 … +6.0)"
    rate = replace(SLOWER, direction="higher", change=-0.05, interval=(-0.06, -0.04))
    assert interval(rate) == "-5.0 % (-6.0 … -4.0)"


def test_a_loss_beyond_all_measure_is_told_as_such():
    endless = replace(SLOWER, change=None, effect=-1.0, interval=(-1.0, -0.5))
    assert interval(endless) == "– (+100.0 … +inf)"


def test_without_an_interval_the_change_stands_alone():
    assert interval(replace(SLOWER, interval=None)) == "+5.0 %"


def test_nothing_to_compare_with_is_a_dash():
    assert interval(Verdict(metric="m", outcome=Outcome.NO_BASELINE)) == "–"


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "change +5.0 % (+4.0 … +6.0), p = 2e-07 (limit 0.0005); unpaired, 3 starts"),
        ({"p": None}, "change +5.0 % (+4.0 … +6.0); unpaired, 3 starts"),
        (
            {"paired": True, "p_limit": None},
            "change +5.0 % (+4.0 … +6.0), p = 2e-07; A/B with vllm==0.31.0, 3 starts each",
        ),
        ({"starts": 1, "p": None}, "change +5.0 % (+4.0 … +6.0); unpaired, 1 start"),
        ({"interval": None}, ""),
    ],
)
def test_evidence_says_how_it_was_sampled(changes, shown):
    assert evidence(replace(SLOWER, **changes), "vllm==0.31.0") == shown


@pytest.mark.parametrize(
    ("p", "limit", "shown"),
    [
        (3.1e-7, 0.03 / 2, "3e-07 (limit 0.015)"),
        (3.1e-7, 0.03 / 60, "3e-07 (limit 0.0005)"),
        # With one digit it would read 0.004, beyond a limit that it keeps.
        (0.0036, 0.0037, "0.0036 (limit 0.0037)"),
        (0.0161, 0.03 / 2, "0.016 (limit 0.015)"),
        (0.0161, None, "0.02"),
        (None, 0.015, ""),
    ],
)
def test_the_chance_is_told_with_the_limit_that_it_was_held_against(p, limit, shown):
    assert chance(replace(SLOWER, p=p, p_limit=limit)) == shown


def test_what_differs_is_told_once_a_cell(session_report):
    one = replace(SLOWER, reason="slower", notes=("torch is 2 today", "kernel is 6 today"))
    other = replace(one, metric="ttft_ms.p50", notes=("torch is 2 today", "triton is 3 today"))
    fine = replace(one, outcome=Outcome.PASS, notes=("driver is 9 today",))
    cell = replace(session_report.cells[0], verdicts=(fine, one, other))
    assert [line.strip() for line in failure(cell).splitlines() if "differs" in line] == [
        "differs: torch is 2 today",
        "differs: kernel is 6 today",
        "differs: triton is 3 today",
    ]
