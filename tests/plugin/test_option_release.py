"""--release: what is not settled fails."""

import pytest


@pytest.fixture
def doubtful(suite, record):
    """A cell twice as slow as its baseline, and no time to find out whether that is noise."""
    suite.script(ttft_ms=20, itl_ms=20)
    record(passed=1)
    suite.script(ttft_ms=20, itl_ms=40)
    return suite


def test_every_night_what_is_not_settled_passes(doubtful):
    outcome = doubtful.run("--max-minutes", 0)
    outcome.counts(passed=1)
    outcome.shows("1 INCONCLUSIVE, 1 PASS")


def test_before_a_release_it_fails_and_the_next_command_says_so(doubtful):
    outcome = doubtful.run("--max-minutes", 0, "--release")
    outcome.counts(failed=1)
    outcome.shows("*INCONCLUSIVE itl_token_ms.p50*", "*next: pytest * --release   (measure again)")
    assert outcome.run_json["release"]
    page = (outcome.root / ".moeperf" / "report.html").read_text()
    assert '<span class="badge failed"><span aria-hidden="true">✕</span> INCONCLUSIVE' in page
    assert "badge open" not in page
