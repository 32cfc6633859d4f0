"""--baseline check|record: from the first figures to a regression."""

import json
import shlex

import pytest

from pytest_moeperf.cli import main

CELL = "serving.load/tiny-moe.closed-c1-isl4-osl4-n1"
SUITE = """\
from pytest_moeperf import ClosedLoop

def test_single_stream(measure, moe):
    cell = measure(moe, ClosedLoop(concurrency=1, isl=4, osl=4, requests=1))
    cell.gate("itl_token_ms.p50", "output_throughput")
"""


@pytest.fixture
def slow_suite(suite):
    """Long enough a step that a busy machine does not matter."""
    suite.write(SUITE)
    suite.script(ttft_ms=20, itl_ms=20)
    return suite


@pytest.fixture
def recorded(slow_suite, record):
    """The path of the baseline that a first run recorded."""
    record(passed=1)
    return slow_suite.root / "baselines" / "cpu" / "vllm" / f"{CELL}.json"


def change(path, edit):
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def test_without_a_baseline_the_test_fails_and_tells_how_to_record_one(suite, server):
    outcome = suite.run("--engine", f"vllm={server.url}", "--junit-xml", suite.root / "junit.xml")
    assert outcome.code == pytest.ExitCode.TESTS_FAILED
    outcome.counts(failed=1)
    outcome.shows(
        "tiny-moe, 1 at a time, 4 in, 8 out on vllm==0.32.0",
        "  NO_BASELINE itl_token_ms.p50: * ms",
        "    itl_token_ms.p50 is * ms and has no baseline to be compared with; nothing is stored "
        "at baselines/cpu/vllm/serving.load/tiny-moe.closed-c1-isl4-osl8-n2.json",
        "  NO_BASELINE ttft_ms.p50: * ms",
        "  next: pytest 'serving/test_load.py::test_single_stream[[]vllm]' --gpu cpu "
        f"--engine vllm={server.url} --repeats 1 --ignore-finding busy_machine --baseline record",
    )
    place = "; nothing is stored at baselines/cpu/vllm/serving.load/tiny-moe.closed-"
    [cell] = outcome.run_json["cells"]
    assert all(place in verdict["reason"] for verdict in cell["verdicts"])
    told = {each.get("name"): each.get("value") for each in outcome.junit.iter("property")}
    assert place in told["moeperf.ttft_ms.p50.reason"]
    assert not (suite.root / "baselines").exists()


def test_an_expired_baseline_is_not_told_as_missing(recorded, slow_suite):
    change(recorded, lambda baseline: baseline.update(expires="2020-01-01"))
    outcome = slow_suite.run()
    outcome.counts(failed=1)
    outcome.shows("*has no baseline: the stored one expired on 2020-01-01*")
    assert "nothing is stored" not in outcome.text


def test_without_an_ini_file_the_header_says_where_baselines_are_looked_for(
    suite, server, monkeypatch
):
    elsewhere, engine = suite.root / "elsewhere", ("--engine", f"vllm={server.url}")
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    outcome = suite.run(*engine, "../serving")
    outcome.shows(
        f"moeperf: *--baseline check, baselines in {suite.root}/baselines: no pytest.ini says where"
    )
    outcome.shows(f"*; nothing is stored at {suite.root}/baselines/cpu/vllm/serving.load/*.json")
    elsewhere.joinpath("bars").mkdir()
    assert "no pytest.ini" not in suite.run(*engine, "../serving", "--baseline-dir=bars").text
    suite.pytester.makeini("[pytest]\n")
    assert "no pytest.ini" not in suite.run(*engine, "../serving").text


def test_what_could_not_be_recorded_is_recorded_by_the_next_command(suite, make_server):
    with make_server(short_by_tokens=1) as server:
        outcome = suite.run("--engine", f"vllm={server.url}", "--baseline", "record")
    outcome.counts(failed=1)
    outcome.shows("  INVALID all metrics", "  next: * --baseline record   (measure again)")


def test_a_recorded_baseline_passes_until_the_engine_gets_slower(recorded, slow_suite):
    assert len(json.loads(recorded.read_text())["starts"]) == 1
    fine = slow_suite.run()
    fine.counts(passed=1)
    fine.shows("  itl_token_ms.p50 * ms * ≤ *  PASS", "2 PASS")

    slow_suite.script(ttft_ms=20, itl_ms=60)
    slower = slow_suite.run()
    slower.counts(failed=1)
    slower.shows(
        "tiny-moe, 1 at a time, 4 in, 4 out on vllm==0.32.0",
        "  REGRESSED itl_token_ms.p50: * ms*, expected * ms, allowed ≤ * ms",
        "    itl_token_ms.p50 is * times that of the baseline (* ms against * ms; allowed up to * "
        "ms), unpaired: 2 starts today against one stored start",
        "    change +* % (+* … +*), p = * (limit 0.015); unpaired, 2 starts",
        "  REGRESSED output_throughput: * tok/s*, expected * tok/s, allowed ≥ * tok/s",
        "    output_throughput is *% below the baseline *",
        "  next: pytest 'serving/test_load.py::test_single_stream[[]vllm]' --gpu cpu "
        f"--engine vllm@{slow_suite.python} --repeats 1 --ignore-finding busy_machine   "
        "(measure again)",
        f"  next: moeperf baseline show baselines/cpu/vllm/{CELL}.json   (what is expected)",
        "FAILED serving/test_load.py::test_single_stream[[]vllm]*",
    )
    [cell] = slower.run_json["cells"]
    verdicts = {each["metric"]: each["outcome"] for each in cell["verdicts"]}
    assert verdicts == {"itl_token_ms.p50": "REGRESSED", "output_throughput": "REGRESSED"}
    assert cell["cell"] == CELL


def test_recording_tells_what_it_wrote_and_judges_nothing(slow_suite):
    first = slow_suite.run("--baseline", "record")
    first.counts(passed=1)
    first.shows("2 RECORDED", f"new, 1 start: {slow_suite.root}/baselines/cpu/vllm/{CELL}.json")
    again = slow_suite.run("--baseline", "record")
    again.counts(passed=1)
    again.shows(f"1 → 2 starts: {slow_suite.root}/baselines/cpu/vllm/{CELL}.json")


def test_a_baseline_of_another_machine_skips_and_names_the_field(recorded, slow_suite):
    change(recorded, lambda baseline: baseline["fingerprint"].update(cpu_cores=96))
    outcome = slow_suite.run("-rs")
    outcome.counts(skipped=1)
    outcome.shows(
        "SKIPPED [[]1] serving/test_load.py:3: INCOMPARABLE: itl_token_ms.p50 cannot be compared "
        "with its baseline: the number of usable CPU cores is * here and 96 in the baseline",
    )
    [cell] = outcome.run_json["cells"]
    assert {each["outcome"] for each in cell["verdicts"]} == {"INCOMPARABLE"}
    [step] = cell["next_steps"]
    assert step["purpose"] == "store figures of this machine in its place"
    _, *typed = shlex.split(step["command"])
    assert main([*typed, "--starts", "1", "--yes"]) == 0
    slow_suite.run().counts(passed=1)


def test_recording_over_a_baseline_of_another_machine_fails_and_leaves_it(recorded, slow_suite):
    change(recorded, lambda baseline: baseline["fingerprint"].update(cpu_cores=96))
    before = recorded.read_text()
    outcome = slow_suite.run("--baseline", "record")
    outcome.counts(failed=1)
    outcome.shows("*96*--baseline-dir*")
    assert recorded.read_text() == before


def test_a_failing_test_records_nothing_of_the_cells_that_it_did_not_reach(suite, server):
    suite.write(SUITE.replace("    cell.gate", "    assert not cell\n    cell.gate"))
    suite.run("--baseline", "record", "--engine", f"vllm={server.url}").counts(failed=1)
    assert list((suite.root / "baselines").rglob("*.json")) == []


def test_a_machine_that_got_slower_itself_skips_and_blames_it(recorded, slow_suite, monkeypatch):
    monkeypatch.setattr("pytest_moeperf.probe.memory_copy_gib_per_s", lambda: 5.0)
    slow_suite.script(ttft_ms=20, itl_ms=60)
    outcome = slow_suite.run("-rs")
    outcome.counts(skipped=1)
    outcome.shows("SKIPPED *ENV_DRIFT*copies memory at 5.0 GiB/s today, 10.0 GiB/s when*")


def test_an_unknown_mode_is_an_error(suite):
    outcome = suite.run("--baseline", "accept")
    assert outcome.code == pytest.ExitCode.USAGE_ERROR
    assert "--baseline: invalid choice: 'accept'" in outcome.errors
