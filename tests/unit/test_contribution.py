"""What a test adds to the report, and how it travels."""

from dataclasses import replace

from pytest_moeperf.contribution import Contribution, expected, joined, packed, unpacked
from pytest_moeperf.records import Outcome


def test_it_arrives_as_it_was_sent(session_report):
    sent = Contribution(
        cells=session_report.cells,
        engines=session_report.engines,
        hardware="cpu",
        machine=(("hardware", "a CPU"),),
    )
    assert any(cell.routing is not None for cell in sent.cells)
    assert unpacked(packed(sent)) == sent


def test_a_loss_in_a_test_that_is_expected_to_fail_is_expected(session_report):
    regressed = session_report.cells[0]
    found = expected(regressed, "the issue")
    assert [verdict.outcome for verdict in found.verdicts] == [Outcome.EXPECTED, Outcome.PASS]
    assert found.verdicts[0].reason == f"{regressed.verdicts[0].reason}; expected: the issue"
    assert replace(found, verdicts=regressed.verdicts) == regressed


def test_without_a_reason_none_is_told(session_report):
    assert expected(session_report.cells[0], "").verdicts[0].reason.endswith("; expected")


def test_what_is_said_of_one_cell_comes_together(session_report):
    cell, other = session_report.cells[0], session_report.cells[1]
    first, second = (replace(cell, verdicts=(verdict,)) for verdict in cell.verdicts)
    assert joined((first, other), second) == ((other,), cell)
    assert joined((other,), cell) == ((other,), cell)
