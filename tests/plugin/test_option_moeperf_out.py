"""--moeperf-out: where run.json, report.html and the server logs go."""

import json
import signal

import jsonschema
import pytest

from pytest_moeperf.store import schema

IN_THE_WAY = """\
from pathlib import Path

def test_last():
    run = Path({run!r})
    run.unlink()
    run.mkdir()
"""

KILLED = """\
import os
import signal

def test_last():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_report_and_the_logs_go_there(suite, tmp_path):
    place = tmp_path / "deep" / "out"
    suite.write_ratio((0.9, 1.1))
    suite.run("--moeperf-out", place).counts(passed=1)
    assert sorted(path.name for path in place.iterdir()) == ["logs", "report.html", "run.json"]
    assert len(list((place / "logs").iterdir())) == 1
    assert not (suite.root / ".moeperf").exists()


def test_the_report_is_what_its_schema_says(suite, server):
    suite.write_ratio((0.9, 1.1), (2, 3))
    outcome = suite.run("--engine", f"vllm={server.url}", "--repeats", "2")
    outcome.counts(passed=1, failed=1)
    outcome.shows("run: .moeperf/run.json", "report: .moeperf/report.html")
    report = outcome.run_json
    jsonschema.Draft202012Validator(schema("run-2")).validate(report)
    assert [cell["verdicts"][0]["outcome"] for cell in outcome.judged] == ["PASS", "REGRESSED"]
    assert report["cells"][0]["test"] == "serving/test_load.py::test_ratio_1[vllm]"
    failed = outcome.judged[1]
    assert set(failed["verdicts"][0]["values"]) == {1.0}
    (step,) = failed["next_steps"]
    assert f"--engine vllm={server.url} --repeats 2" in step["command"]
    page = (outcome.root / ".moeperf" / "report.html").read_text()
    assert "1 of 2 verdicts failed" in page
    assert f"--engine vllm={server.url} --repeats 2" in page


def test_a_session_without_results_writes_nothing(suite):
    suite.write("def test_other():\n    pass\n")
    suite.run().counts(passed=1)
    assert not (suite.root / ".moeperf").exists()


def test_a_file_in_its_place_is_an_error_before_anything_starts(suite, tmp_path):
    place = tmp_path / "out"
    place.write_text("")
    assert suite.run("--moeperf-out", place).usage_error == (
        f"ERROR: cannot write {place}: a file is in the place of one of its folders"
    )


def test_nothing_is_not_the_working_directory(suite):
    assert suite.run("--moeperf-out=").usage_error == (
        "ERROR: --moeperf-out '': give a folder, or leave the option out"
    )


def test_a_report_that_cannot_be_written_at_the_end_fails_the_session(suite, server, tmp_path):
    place = tmp_path / "out"
    suite.write_ratio((0.9, 1.1))
    suite.write(IN_THE_WAY.format(run=str(place / "run.json")), name="test_other")
    outcome = suite.run("--engine", f"vllm={server.url}", "--moeperf-out", place)
    outcome.counts(passed=2)
    assert outcome.code == pytest.ExitCode.TESTS_FAILED
    outcome.shows(f"error: cannot write {place / 'run.json'}: *")
    assert "Traceback" not in outcome.text + outcome.errors


def test_a_session_that_is_killed_leaves_what_it_measured(suite, server):
    place = suite.root / ".moeperf"
    place.mkdir()
    (place / "report.html").write_text("of another session")
    suite.write_ratio((0.9, 1.1))
    suite.write(KILLED, name="test_other")
    outcome = suite.run_process("--engine", f"vllm={server.url}")
    assert outcome.code == -signal.SIGKILL
    report = json.loads((place / "run.json").read_text())
    jsonschema.Draft202012Validator(schema("run-2")).validate(report)
    assert report["outcomes"] == {"PASS": 1}
    assert not report["finished"]
    assert "time" not in report
    assert not (place / "report.html").exists()


@pytest.mark.parametrize(
    ("stop", "arguments"),
    [
        ("raise KeyboardInterrupt", ()),
        ("import pytest; pytest.exit('enough')", ()),
        ("assert False", ("-x",)),
        ("assert False", ("-n1", "--maxfail=1")),
    ],
    ids=["ctrl-c", "exit", "x", "xdist"],
)
def test_a_session_that_is_stopped_is_not_finished(suite, server, stop, arguments):
    suite.write_ratio((0.9, 1.1))
    suite.write(
        f"def test_middle():\n    {stop}\n\ndef test_last():\n    pass\n", name="test_other"
    )
    outcome = suite.run_process("--engine", f"vllm={server.url}", *arguments)
    assert outcome.run_json["outcomes"] == {"PASS": 1}
    assert not outcome.run_json["finished"]
    assert outcome.run_json["time"]["other_s"] > 0
