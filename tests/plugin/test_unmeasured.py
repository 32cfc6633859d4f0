"""What becomes of tests that end without a verdict, and of what cannot be written."""

import pytest

from pytest_moeperf import store
from pytest_moeperf.errors import StorageError

LOAD = """\
from pytest_moeperf import ClosedLoop

LOAD = ClosedLoop(concurrency=1, isl=4, osl=4, requests=1)
"""


def test_a_server_that_dies_at_start_is_in_the_report_of_the_run(suite):
    suite.script(start_exit_code=3)
    outcome = suite.run()
    outcome.counts(failed=1)
    (told,) = outcome.run_json["unmeasured"]
    assert "serving/test_load.py::test_single_stream[vllm]: tiny-moe: the engine ended" in told
    assert f"failed without a verdict: {told}" in outcome.text.splitlines()


def test_an_assertion_of_a_test_is_told_in_its_own_words(suite, server):
    suite.write("def test_it(serve, moe):\n    assert serve(moe).url[:4] == 'ftp:'\n")
    outcome = suite.run("--engine", f"vllm={server.url}")
    outcome.counts(failed=1)
    (told,) = outcome.run_json["unmeasured"]
    assert told.endswith("test_it[vllm]: AssertionError: assert 'http' == 'ftp:'")


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_of_a_server_that_nobody_named_the_name_is_told(suite, server, workers):
    suite.write("def test_it(measure, moe_tp8):\n    pass\n")
    outcome = suite.run_process("--engine", f"vllm={server.url}", *workers)
    assert outcome.code == pytest.ExitCode.TESTS_FAILED
    (told,) = outcome.run_json["unmeasured"]
    assert told.endswith("test_it: fixture 'moe_tp8' not found")


def test_what_was_measured_has_a_verdict_though_its_teardown_fails(suite, server):
    gate = 'measure(moe, LOAD).gate("itl_token_ms.p50")'
    suite.write(
        f"{LOAD}\ndef test_it(measure, moe, request):\n"
        f"    request.addfinalizer(lambda: 1 / 0)\n    {gate}\n"
    )
    outcome = suite.run("--engine", f"vllm={server.url}", "--baseline", "record")
    outcome.counts(passed=1, errors=1)
    assert outcome.run_json["unmeasured"] == []


def test_quiet_runs_still_count_the_verdicts(suite, server):
    outcome = suite.run("--engine", f"vllm={server.url}", "-q")
    assert "2 NO_BASELINE" in outcome.text.splitlines()


def test_a_baseline_that_cannot_be_written_at_the_end_fails_the_session(suite, server, monkeypatch):
    def full(*_args, **_options):
        raise StorageError("cannot write x.json: no space left on device")

    monkeypatch.setattr(store.BaselineWriter, "flush", full)
    outcome = suite.run("--engine", f"vllm={server.url}", "--baseline", "record")
    assert outcome.code == pytest.ExitCode.TESTS_FAILED
    outcome.shows("error: cannot write x.json: no space left on device")
