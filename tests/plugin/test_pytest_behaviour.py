"""What pytest's own options do is what its users expect."""

import json
import os
import re
import shlex
import signal
import socket
import time

import pytest

GOOD, BAD = (0.9, 1.1), (2, 3)


def properties(case):
    return {each.get("name"): each.get("value") for each in case.iter("property")}


def node_ids(outcome, word):
    return re.findall(rf"::(\w+)\[vllm\] {word}", outcome.text)


def wait_for(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


@pytest.fixture
def attached(server):
    return ("--engine", f"vllm={server.url}")


def test_junitxml_has_a_failure_for_each_red_test_and_the_verdicts_as_properties(suite, attached):
    suite.write_ratio(GOOD, BAD)
    outcome = suite.run(*attached, "--junitxml=junit.xml")
    [results] = outcome.junit
    assert {name: results.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "2",
        "failures": "1",
        "errors": "0",
        "skipped": "0",
    }
    good, bad = results.iter("testcase")
    assert (good.find("failure"), bad.find("failure").get("message")[:27]) == (
        None,
        "Failed: tiny-moe, 1 at a ti",
    )
    assert "REGRESSED output_throughput" in bad.find("failure").text
    assert {"PASS"} <= set(properties(good).values())
    assert {"REGRESSED"} <= set(properties(bad).values())


def test_lf_runs_the_red_tests_alone(suite, attached):
    suite.write_ratio(GOOD, BAD, GOOD)
    suite.run(*attached).counts(passed=2, failed=1)
    outcome = suite.run(*attached, "--lf", "-v")
    outcome.counts(failed=1, deselected=0)
    assert node_ids(outcome, "FAILED")[:1] == ["test_ratio_2"]
    assert not node_ids(outcome, "PASSED")


def test_x_stops_at_the_first_red_test_and_still_reports(suite, attached):
    suite.write_ratio(BAD, GOOD)
    outcome = suite.run(*attached, "-x")
    outcome.counts(failed=1)
    assert len(outcome.judged) == 1


def test_k_selects_by_name_and_by_engine(suite, attached):
    suite.write_ratio(GOOD, BAD)
    suite.run(*attached, "-k", "ratio_1").counts(passed=1, deselected=1)
    suite.run(*attached, "-k", "not vllm").counts(deselected=2)


def test_xfail_takes_a_regression_and_strict_xfail_notices_its_end(suite, attached):
    suite.write_ratio(BAD, GOOD)
    test = suite.root / "serving" / "test_load.py"
    mark = "@pytest.mark.xfail(reason='known', strict=True)\ndef test_"
    test.write_text("import pytest\n" + test.read_text().replace("def test_", mark))
    outcome = suite.run(*attached)
    outcome.counts(xfailed=1, failed=1)
    outcome.shows("[[]XPASS(strict)] known")


def test_q_shows_neither_header_nor_progress_nor_tables(suite, attached):
    suite.write_ratio(GOOD, BAD)
    outcome = suite.run(*attached, "-q")
    outcome.counts(passed=1, failed=1)
    assert "  … " not in outcome.text
    assert "moeperf: cpu" not in outcome.text
    assert "metric " not in outcome.text
    outcome.shows("  REGRESSED output_throughput*", "FAILED *")


def test_an_output_that_is_not_utf_8_fails_no_test(suite, attached, monkeypatch):
    suite.write_ratio(GOOD)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    outcome = suite.run_process(*attached)
    outcome.counts(passed=1)
    outcome.shows("  [?] tiny-moe: *")


@pytest.mark.parametrize(("bounds", "code"), [(GOOD, 0), (BAD, 1)])
def test_without_the_terminal_plugin_it_measures_and_reports_all_the_same(
    suite, attached, bounds, code
):
    suite.write_ratio(bounds)
    words = suite.arguments([*attached, "-p", "no:terminal"])
    words.remove("--color=no")  # An option of that plugin.
    result = suite.pytester.runpytest_inprocess(*words)
    assert result.ret == code
    assert result.outlines + result.errlines == []
    report = json.loads((suite.root / ".moeperf" / "run.json").read_text())
    assert sum(report["outcomes"].values()) == 1


@pytest.mark.parametrize("place", ["serving", "elsewhere"])
def test_the_next_command_can_be_pasted_where_pytest_was_called(
    suite, attached, monkeypatch, place
):
    suite.write_ratio(BAD)
    suite.pytester.makeini("[pytest]\n")
    (suite.root / place).mkdir(exist_ok=True)
    monkeypatch.chdir(suite.root / place)
    outcome = suite.run(*attached, suite.root / "serving")
    outcome.counts(failed=1)
    outcome.shows(f"rootdir: {suite.root}")
    (step,) = outcome.judged[0]["next_steps"]
    assert step["purpose"] == "measure again"
    program, *words = shlex.split(step["command"])
    assert program == "pytest"
    suite.run(*words).counts(failed=1)


def test_colors_are_pytests_to_decide(suite, attached):
    suite.write_ratio(GOOD)
    plain = suite.run(*attached, "--color=no")
    colored = suite.run(*attached, "--color=yes")
    assert "\x1b[" not in plain.text
    assert re.search(r"\x1b\[32mPASS *\x1b\[0m", colored.text)


def test_collect_only_lists_the_tests_and_starts_nothing(suite):
    suite.write_ratio(GOOD, BAD)
    outcome = suite.run("--collect-only", "-q", "--engine", "vllm")
    outcome.shows(
        "serving/test_load.py::test_ratio_1[[]vllm]", "serving/test_load.py::test_ratio_2[[]vllm]"
    )
    assert outcome.code == pytest.ExitCode.OK
    assert not (suite.root / ".moeperf").exists()


def test_a_session_without_measuring_tests_shows_nothing_of_this_plugin(suite):
    suite.write("def test_other():\n    pass\n")
    outcome = suite.run()
    outcome.counts(passed=1)
    assert "moeperf: cpu" not in outcome.text
    assert "run.json" not in outcome.text


def test_the_step_summary_of_github_gets_the_results_below_what_is_there(
    suite, attached, monkeypatch, tmp_path
):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    suite.write_ratio(GOOD, BAD)
    outcome = suite.run(*attached)
    outcome.counts(passed=1, failed=1)
    text = summary.read_text()
    assert text.startswith("before\n## moeperf: 1 of 2 verdicts failed: ")
    [step] = outcome.judged[1]["next_steps"]
    assert step["command"].startswith(
        "pytest 'serving/test_load.py::test_ratio_2[vllm]' --gpu cpu "
    )
    assert f"- next: `{step['command']}` (measure again)" in text
    assert "REGRESSED" in text
    assert "| `output_throughput ÷ tiny-moe` | PASS |" in text


@pytest.mark.parametrize("workers", [2, 4])
def test_with_xdist_one_worker_measures_and_the_report_is_complete(suite, workers):
    suite.write_ratio(GOOD, BAD)
    suite.write(
        "from pytest_moeperf import ClosedLoop\n\n"
        "def test_dense(measure, dense):\n"
        "    cell = measure(dense, ClosedLoop(concurrency=1, isl=4, osl=4, requests=1))\n"
        "    cell.over(cell, 'e2el_ms.p50').within(1, 1, why='it is the same cell')\n",
        name="test_dense",
    )
    suite.write("def test_other():\n    pass\n", name="test_other")
    outcome = suite.run_process("-n", workers)
    outcome.counts(passed=3, failed=1)
    assert len(outcome.logs) == 2
    assert len({log.name.split("-")[1] for log in outcome.logs}) == 1
    assert len(outcome.judged) == 3
    assert outcome.run_json["hardware"] == "cpu"
    assert "@moeperf" not in outcome.text + outcome.run_json["cells"][0]["test"]
    outcome.shows("*= moeperf =*", "*1 REGRESSED*", "run: .moeperf/run.json")
    # What workers spent is told by the process that reports.
    spent = outcome.run_json["time"]
    assert (spent["processes"], spent["starts"], spent["specs"]) == (1, 2, 2)
    assert spent["measuring_s"] > 0


def test_with_xdist_misuse_is_told_without_a_traceback(suite):
    outcome = suite.run_process("-n", "1", "--gpu", "h9000")
    assert outcome.code != 0
    outcome.shows("--gpu h9000: unknown; valid are auto, cpu, *")
    assert "Traceback" not in outcome.text


@pytest.fixture
def loaded(suite):
    """A session in a process of its own, in the middle of a load."""
    suite.script(itl_ms=20, child_processes=2, load_log=["a request"], load_log_requests=[1, 1000])
    suite.write(
        "from pytest_moeperf import Burst\n\n"
        "def test_long(measure, moe):\n"
        "    measure(moe, Burst(requests=4, isl=4, osl=100))\n"
    )
    session = suite.start()
    logs = suite.root / ".moeperf" / "logs"
    try:
        wait_for(lambda: any("a request" in log.read_text() for log in logs.glob("*.log")))
        yield session
    finally:
        session.kill()
        session.wait()
        session.stdout.close()


def port_of(suite):
    [log] = (suite.root / ".moeperf" / "logs").glob("*.log")
    return int(re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())[1])


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_ctrl_c_under_load_ends_the_session_and_its_servers(loaded, suite, leftovers):
    port = port_of(suite)
    assert len(leftovers()) >= 3
    os.kill(loaded.pid, signal.SIGINT)
    output, _ = loaded.communicate(timeout=30)
    assert loaded.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in output
    assert leftovers() == []
    assert is_free(port)


def test_a_killed_session_leaves_no_process_and_no_port(loaded, suite, leftovers):
    port = port_of(suite)
    assert len(leftovers()) >= 3
    loaded.kill()
    wait_for(lambda: leftovers() == [] and is_free(port), timeout_s=10)
