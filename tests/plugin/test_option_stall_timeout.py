"""--stall-timeout: how long a loaded server may go without a token."""


def test_a_server_that_hangs_under_load_fails_the_test_and_is_ended(suite, leftovers):
    suite.script(hang_after_requests=3)
    outcome = suite.run("--stall-timeout", "0.5")
    outcome.counts(failed=1)
    outcome.shows(
        "tiny-moe: http://127.0.0.1:* sent no token for * s with 1 requests in flight, * of 2 done",
        "  command: * -m vllm.entrypoints.openai.api_server *",
        "  last * lines of *.moeperf/logs/server-*-tiny-moe.log:",
        "FAILED serving/test_load.py::test_single_stream*",
    )
    assert "Traceback" not in outcome.text
    assert leftovers() == []


def test_a_server_that_hung_is_started_anew_for_the_next_test(suite):
    suite.script(hang_after_requests=3)
    suite.write_ratio((0.9, 1.1), (0.9, 1.1))
    outcome = suite.run("--stall-timeout", "0.3")
    outcome.counts(failed=2)
    assert len(outcome.logs) == 2


def test_a_time_of_zero_is_an_error(suite):
    assert suite.run("--stall-timeout", "0").usage_error == (
        "ERROR: --stall-timeout 0: must be above 0 s"
    )


def test_the_command_to_measure_again_repeats_it(suite, server):
    suite.write_ratio((2, 3))
    outcome = suite.run("--engine", f"vllm={server.url}", "--stall-timeout", "120")
    outcome.counts(failed=1)
    outcome.shows("  next: pytest * --stall-timeout 120 *   (measure again)")
    assert "--stall-timeout" in outcome.run_json["options"]
