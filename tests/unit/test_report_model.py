"""What a session's reports have in common."""

import dataclasses

from pytest_moeperf.records import Outcome
from pytest_moeperf.report.model import BY_URGENCY


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
