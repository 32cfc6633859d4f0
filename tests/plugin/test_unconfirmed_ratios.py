"""Bad ratios whose servers fail while they are measured again: the ratio stands, and says why."""

import pytest

from pytest_moeperf.pool import start_server

TWO_SERVERS = """\
from pytest_moeperf import ClosedLoop

LOAD = ClosedLoop(concurrency=1, isl=4, osl=8, requests=2)

def test_ratio(measure, serve, moe, dense):
    one, other = measure.together(moe, dense, LOAD)
    serve.stop(dense)
    one.over(other, "output_throughput").within(50, 60, why="both are fakes")
"""


@pytest.fixture
def crashing(monkeypatch):
    """The server that started first dies while the third one starts."""
    started = []

    def start(*arguments, **options):
        if len(started) == 2:
            started[0].process.kill()
        started.append(start_server(*arguments, **options))
        return started[-1]

    monkeypatch.setattr("pytest_moeperf.pool.start_server", start)


def unconfirmed(outcome):
    """Why the one ratio of a session was not confirmed, as run.json tells it."""
    outcome.counts(failed=1)
    (cell,) = outcome.judged
    (verdict,) = cell["verdicts"]
    assert verdict["outcome"] == "REGRESSED"
    return verdict["reason"].partition("; not confirmed, because measuring it again failed: ")[2]


def test_a_server_that_dies_under_the_second_look_is_quoted_below_the_ratio(suite):
    # Two requests warm it up and two are the repeat.
    suite.script(
        die_after_requests=5, die_exit_code=134, die_log=["RuntimeError: illegal memory access"]
    )
    suite.write_ratio((2, 3))
    outcome = suite.run()
    cause = "tiny-moe: the server died while in use: RuntimeError: illegal memory access"
    assert unconfirmed(outcome) == cause
    outcome.shows(
        "  REGRESSED output_throughput *: 1.00, allowed 2.00 … 3.00",
        f"    * not confirmed, because measuring it again failed: {cause}",
        "    command: * -m vllm.entrypoints.openai.api_server --model *",
        "    exit code: 134",
        "    last * lines of *.moeperf/logs/server-*-tiny-moe.log:",
        "      RuntimeError: illegal memory access",
        "  next: *",
    )


def test_a_server_that_dies_while_the_other_one_starts_again_is_quoted_too(suite, crashing):
    suite.write(TWO_SERVERS)
    outcome = suite.run()
    assert unconfirmed(outcome) == "tiny-moe: the server died while in use"
    outcome.shows("  REGRESSED *", "    command: *", "    exit code: -9", "      * complete.")
    assert len(outcome.logs) == 3


def test_a_server_that_now_has_to_make_room_for_the_other_one_is_named(suite, monkeypatch):
    # Both fit at first; the second one is not to start again beside the first.
    available = iter([16.0, 16.0, 1.0, 16.0])
    monkeypatch.setattr("pytest_moeperf.pool._available_gib", lambda: next(available))
    suite.write(TWO_SERVERS)
    assert unconfirmed(suite.run()) == (
        "tiny-moe had to make room for a later server of the comparison: this machine cannot run "
        "all of them at once, which measuring in turns needs"
    )
