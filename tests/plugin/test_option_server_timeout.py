"""--server-timeout: how long a server may take to become ready."""

import pytest


def test_a_server_that_never_gets_ready_is_ended_and_quoted(suite, leftovers):
    suite.script(start_hang=True, start_log=["INFO waiting for a lock"])
    outcome = suite.run("--server-timeout", "2")
    outcome.counts(failed=1)
    outcome.shows(
        "tiny-moe: not ready after 2 s (*); it was stopped (--server-timeout gives it longer)",
        "  command: *-m vllm.entrypoints.openai.api_server --model *tiny-moe*",
        "  last * lines of *.moeperf/logs/server-*-tiny-moe.log:",
        "    INFO waiting for a lock",
    )
    assert "Traceback" not in outcome.text
    assert leftovers() == []


def test_a_server_that_failed_to_start_is_not_tried_again_for_the_next_test(suite):
    suite.write_ratio((0.9, 1.1), (0.5, 2))
    suite.script(start_hang=True)
    outcome = suite.run("--server-timeout", "0.5")
    outcome.counts(failed=2)
    assert len(outcome.logs) == 1


@pytest.mark.parametrize("given", ["0", "-3", "nan"])
def test_a_time_that_is_none_is_an_error(suite, given):
    outcome = suite.run(f"--server-timeout={given}")
    assert outcome.usage_error == f"ERROR: --server-timeout {given}: must be above 0 s"


def test_the_command_to_measure_again_repeats_it(suite, server):
    suite.write_ratio((2, 3))
    outcome = suite.run("--engine", f"vllm={server.url}", "--server-timeout", "900.5")
    outcome.counts(failed=1)
    outcome.shows("  next: pytest * --server-timeout 900.5 *   (measure again)")
    assert "--server-timeout" in outcome.run_json["options"]
