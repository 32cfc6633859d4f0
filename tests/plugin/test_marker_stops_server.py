"""@pytest.mark.stops_server, and the order in which every server starts once."""

SOURCE = """\
import pytest
from pytest_moeperf import ClosedLoop

LOAD = ClosedLoop(concurrency=1, isl=4, osl=4, requests=1)

@pytest.mark.stops_server
def test_stop(serve, moe):
    assert serve.stop(moe).clean

def test_moe(measure, moe):
    measure(moe, LOAD)

def test_other():
    pass

def test_dense(measure, dense):
    measure(dense, LOAD)

def test_moe_again(serve, moe):
    assert serve(moe).alive
"""


def order(outcome):
    lines = [line for line in outcome.text.splitlines() if "PASSED" in line]
    return [line.partition("::")[2].partition("[")[0].partition(" ")[0] for line in lines]


def test_tests_are_grouped_by_server_and_those_that_stop_it_come_last(suite):
    suite.write(SOURCE)
    outcome = suite.run("-v")
    outcome.counts(passed=5)
    assert order(outcome) == ["test_moe", "test_moe_again", "test_other", "test_dense", "test_stop"]
    assert len(outcome.logs) == 2


def test_a_server_that_was_stopped_starts_anew_for_the_next_test(suite):
    suite.write(
        "def test_stop(serve, moe):\n    assert serve.stop(moe).clean\n\n"
        "def test_start(serve, moe):\n    assert serve(moe).alive\n"
    )
    outcome = suite.run()
    outcome.counts(passed=2)
    assert len(outcome.logs) == 2


def test_an_attached_server_is_not_stopped(suite, server):
    suite.write("def test_stop(serve, moe):\n    serve.stop(moe)\n")
    outcome = suite.run("--engine", f"vllm={server.url}")
    outcome.counts(failed=1)
    outcome.shows(f"{server.url}: an attached server is not stopped by this plugin")
