"""--max-minutes: how long a session may start servers to settle doubtful verdicts."""

import functools
import itertools

import pytest

from pytest_moeperf.sampling import Budget

SUITE = """\
from pytest_moeperf import ClosedLoop

LOAD = ClosedLoop(concurrency=1, isl=4, osl=4, requests=1)

def test_moe(measure, moe):
    measure(moe, LOAD).gate("itl_token_ms.p50")

def test_dense(measure, dense):
    measure(dense, LOAD).gate("itl_token_ms.p50")
"""


@pytest.fixture
def slowed(suite, record):
    """Two servers that are three times as slow as their baselines."""
    suite.write(SUITE)
    suite.script(ttft_ms=20, itl_ms=20)
    record(passed=2)
    suite.script(ttft_ms=20, itl_ms=60)
    return suite


def test_without_time_every_cell_has_the_start_it_was_measured_on(slowed):
    outcome = slowed.run("--max-minutes", 0)
    outcome.counts(passed=2)
    outcome.shows(
        "  itl_token_ms.p50 *INCONCLUSIVE", "    *; no further start within --max-minutes 0"
    )
    assert not any(cell["further"] for cell in outcome.run_json["cells"])


def test_the_time_is_shared_by_all_cells_of_the_session(slowed, monkeypatch):
    # Every start takes 40 s by this clock.
    clock = itertools.count(step=40).__next__
    monkeypatch.setattr("pytest_moeperf.sampling.Budget", functools.partial(Budget, clock=clock))
    outcome = slowed.run("--max-minutes", 0.5)
    outcome.counts(failed=1, passed=1)
    outcome.shows("1 REGRESSED, 1 INCONCLUSIVE")


@pytest.mark.parametrize("minutes", ["-1", "nan"])
def test_less_than_none_is_an_error(suite, minutes):
    outcome = suite.run(f"--max-minutes={minutes}")
    assert outcome.usage_error == (
        f"ERROR: --max-minutes {minutes}: must be 0 or more; 0 makes no start but the first"
    )
