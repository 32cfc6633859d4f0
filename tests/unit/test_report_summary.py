"""The step summary of a GitHub workflow."""

import dataclasses

import pytest

from pytest_moeperf.report.summary import markdown


def test_the_text_is_the_documented_form(session_report, golden):
    golden("summary.md", markdown(session_report))


def test_nothing_but_passes_leaves_nothing_to_attend_to(session_report):
    cell = session_report.cells[0]
    passed = dataclasses.replace(cell, verdicts=cell.verdicts[1:])
    text = markdown(dataclasses.replace(session_report, cells=(passed,), notes=(), machine={}))
    assert text.startswith("## moeperf: 1 PASS\n")
    assert "attention" not in text
    assert "Machine" not in text


def test_a_run_without_verdicts_says_so(session_report):
    text = markdown(dataclasses.replace(session_report, cells=()))
    assert text.startswith("## moeperf: nothing judged\n")


def test_what_a_baseline_says_is_text_and_not_markup(session_report):
    # The incomparable cell quotes a CPU model from a baseline that somebody made up.
    text = markdown(session_report)
    assert "<b>" not in text
    assert "[x](" not in text


def test_a_row_keeps_its_columns_whatever_its_names_hold(session_report):
    cell = session_report.cells[0]
    verdict = dataclasses.replace(cell.verdicts[0], metric="a|b`c\nd", unit="x|y")
    odd = dataclasses.replace(cell, engine="v|w", verdicts=(verdict,))
    text = markdown(dataclasses.replace(session_report, cells=(odd,)))
    row = next(line for line in text.splitlines() if line.startswith("| `mini-moe"))
    assert r"`a\|b'c d` |" in row
    assert r"31.5 x\|y" in row
    assert row.replace(r"\|", "").count("|") == 10


@pytest.mark.parametrize(
    ("seconds", "shown"), [(4.21, "4.2 s"), (59.9, "59.9 s"), (60.2, "1 min 0 s")]
)
def test_the_duration_is_short(session_report, seconds, shown):
    text = markdown(dataclasses.replace(session_report, duration_s=seconds))
    assert f" · {shown}\n" in text
