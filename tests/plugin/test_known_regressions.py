"""A loss that a baseline accepts for a while is an expected failure."""

import json

import pytest

SUITE = """\
from pytest_moeperf import ClosedLoop

def test_single_stream(measure, moe):
    cell = measure(moe, ClosedLoop(concurrency=1, isl=4, osl=4, requests=1))
    cell.gate("itl_token_ms.p50")
"""
ISSUE = "https://github.com/vllm-project/vllm/issues/41306"


@pytest.fixture
def known(suite, record):
    """Says what is known of the engine, which has become three times as slow."""
    suite.write(SUITE)
    suite.script(ttft_ms=20, itl_ms=20)
    record(passed=1)
    suite.script(ttft_ms=20, itl_ms=60)
    [path] = (suite.root / "baselines").rglob("*.json")

    def know(*, extent=2.5, expires="2999-12-31"):
        document = json.loads(path.read_text())
        document["known"] = [
            {
                "metric": "itl_token_ms.p50",
                "reason": "the new scheduler",
                "issue": ISSUE,
                "expires": expires,
                "extent": extent,
            }
        ]
        path.write_text(json.dumps(document))

    return know


def test_a_known_regression_is_an_expected_failure_with_its_issue(known, suite):
    known()
    outcome = suite.run("-rx")
    outcome.counts(xfailed=1)
    outcome.shows(f"XFAIL *EXPECTED*the new scheduler*{ISSUE}*")
    assert outcome.code == pytest.ExitCode.OK


def test_runxfail_reports_it_as_any_other(known, suite):
    known()
    suite.run("--runxfail").counts(failed=1)


def test_a_larger_loss_than_the_known_one_fails(known, suite):
    known(extent=1.5)
    outcome = suite.run()
    outcome.counts(failed=1)
    outcome.shows("  REGRESSED itl_token_ms.p50*")
    outcome.shows(
        "*; more than the known regression of 150 % allows (up to *ms): the new scheduler*"
    )


def test_after_its_date_it_fails(known, suite):
    known(expires="2026-01-01")
    suite.run().counts(failed=1)


def test_one_that_is_gone_fails_until_its_entry_goes(known, suite):
    known()
    suite.script(ttft_ms=20, itl_ms=20)
    outcome = suite.run()
    outcome.counts(failed=1)
    outcome.shows("  UNEXPECTED_PASS itl_token_ms.p50*")
