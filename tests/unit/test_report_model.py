"""What a session's reports have in common."""

import dataclasses

import pytest

from pytest_moeperf.records import Outcome
from pytest_moeperf.report.model import BY_URGENCY, time_line
from pytest_moeperf.timeline import TimeSpent


def test_every_outcome_has_its_urgency():
    assert sorted(BY_URGENCY) == sorted(Outcome)


def test_outcomes_are_counted_most_urgent_first(session_report):
    assert list(session_report.outcomes.items()) == [
        (Outcome.REGRESSED, 1),
        (Outcome.INVALID, 1),
        (Outcome.INCOMPARABLE, 1),
        (Outcome.PASS, 1),
    ]


def test_cells_are_grouped_by_suite_in_the_order_of_measurement(session_report):
    mixed = dataclasses.replace(session_report, cells=session_report.cells[::-1])
    assert {suite: [cell.server for cell in cells] for suite, cells in mixed.suites.items()} == {
        "moe": ["mini-moe", "mini-dense"],
        "serving": ["mini-moe", "mini-moe"],
    }
    assert list(mixed.suites) == ["moe", "serving"]


def test_the_phases_of_a_session_are_all_of_it(session_report):
    # 245.3 s, of which 240.394 are told.
    assert session_report.phases["other"] == pytest.approx(4.906, abs=1e-4)
    assert sum(session_report.phases.values()) == pytest.approx(session_report.duration_s)
    assert time_line(session_report) == (
        "time: 245 s = 41 % starting (2 servers, 2 specs), 9 % warm-up, 47 % measuring, "
        "1 % stopping, 0 % waiting, 2 % other"
    )


def test_the_times_of_processes_side_by_side_are_added(session_report):
    two = dataclasses.replace(session_report, processes=2)
    assert time_line(two).startswith("time of 2 processes: 491 s = 20 % starting")


def test_without_a_run_all_time_is_other(session_report):
    none = dataclasses.replace(session_report, spent=TimeSpent(starts=1, specs=1), processes=0)
    assert "(1 server, 1 spec)" in time_line(none)
    assert time_line(none).endswith("100 % other")
    assert time_line(dataclasses.replace(none, duration_s=0.0)).startswith("time: 0 s = 0 %")


def test_of_a_session_that_still_runs_only_its_length_is_known(session_report):
    running = dataclasses.replace(session_report, finished=False, spent=None)
    assert running.phases == {}
    assert time_line(running) == "time: 245 s until this was written"
