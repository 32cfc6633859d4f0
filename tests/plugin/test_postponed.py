"""A test in doubt waits for the others of its server, so that one further start serves all."""

import pytest

SUITE = """\
import pytest
from pytest_moeperf import ClosedLoop

LADDER = {
    streams: ClosedLoop(concurrency=streams, isl=4, osl=4, requests=streams)
    for streams in (1, 2)
}

@pytest.mark.parametrize("streams", LADDER)
def test_ladder(measure, moe, streams):
    measure.ladder(moe, LADDER)[streams].gate("itl_token_ms.p50")

def test_first_token(measure, moe):
    measure(moe, ClosedLoop(concurrency=1, isl=8, osl=4, requests=1)).gate("itl_token_ms.p50")
"""

WITH_A_FIXTURE = (
    SUITE
    + """
@pytest.fixture
def tool(request):
    print("set up for", request.node.name)
    yield
    print("torn down for", request.node.name)

def test_with_a_fixture(measure, moe, tool, record_property):
    record_property("shown", "once")
    cell = measure(moe, LADDER[1])
    cell.gate("ttft_ms.p50")
    cell.gate("itl_token_ms.p50")
    assert cell.value("itl_token_ms.p50") > 0
"""
)

OF_ANOTHER_SERVER = """
def test_dense(measure, dense):
    measure(dense, LADDER[1]).gate("itl_token_ms.p50")

def test_after_dense(serve, dense):
    assert serve(dense).alive
"""


@pytest.fixture
def slowed(suite, record):
    """Three cells of one server that are three times as slow as their baselines."""
    suite.write(SUITE)
    suite.script(ttft_ms=20, itl_ms=20)
    record(passed=3)
    suite.script(ttft_ms=20, itl_ms=60)
    return suite


def bought(outcome):
    return [[start["start_id"] for start in cell["bought"]] for cell in outcome.run_json["cells"]]


def test_one_further_start_serves_all_tests_of_a_server(slowed):
    outcome = slowed.run()
    outcome.counts(failed=3)
    outcome.shows(
        "  … in doubt: it runs again after the other tests of its server",
        "  … start 2 of up to 2 for serving.load and 2 more cells: starting tiny-moe",
        "3 REGRESSED",
        "time: * starting (2 servers, 1 spec)*",
    )
    assert len(outcome.logs) == 2
    [first], [second], [third] = bought(outcome)
    assert first == second == third


def test_every_test_has_one_result(slowed):
    outcome = slowed.run("--junitxml", "junit.xml", "-v")
    names = [case.get("name") for case in outcome.junit.iter("testcase")]
    assert names == ["test_ladder[vllm-1]", "test_ladder[vllm-2]", "test_first_token[vllm]"]
    outcome.shows("*test_first_token* FAILED*100%*")
    assert outcome.text.count(" FAILED") == 3


def test_what_a_test_says_in_its_first_run_is_said_again_and_kept_once(slowed):
    slowed.write(WITH_A_FIXTURE)
    outcome = slowed.run("--junitxml", "junit.xml", "-o", "junit_family=xunit1", "-k", "fixture")
    outcome.counts(failed=1)
    [case] = outcome.junit.iter("testcase")
    shown = [each for each in case.iter("property") if each.get("name") == "shown"]
    assert len(shown) == 1
    [cell] = {cell["cell"] for cell in outcome.run_json["cells"]}
    assert cell.startswith("serving.load/tiny-moe")


def test_it_waits_for_its_own_server_alone(slowed):
    slowed.write(SUITE + OF_ANOTHER_SERVER)
    slowed.run("--baseline", "record", "-k", "test_dense")
    outcome = slowed.run("-v", "-k", "ladder or dense")
    order = [
        line.partition("::")[2].partition(" ")[0]
        for line in outcome.text.splitlines()
        if " PASSED" in line or " FAILED" in line
    ]
    assert order == [
        "test_ladder[vllm-1]",
        "test_ladder[vllm-2]",
        "test_dense[vllm]",
        "test_after_dense[vllm]",
    ]


@pytest.mark.parametrize("option", ["-x", "--maxfail=1"])
def test_what_still_waited_when_the_session_ended_is_told(slowed, option):
    slowed.write(
        "def test_nothing(serve, moe):\n    assert serve(moe).port == 0\n", name="test_worse"
    )
    outcome = slowed.run(option)
    outcome.counts(failed=1)
    outcome.shows(
        "*itl_token_ms.p50 *INCONCLUSIVE",
        "left in doubt: serving/test_load.py::test_ladder[[]vllm-1]: the session ended before it "
        "ran again",
    )
    assert len(outcome.run_json["cells"]) == 3
    assert not outcome.run_json["finished"]


def test_a_start_up_time_in_doubt_takes_the_start_of_the_others(slowed):
    slowed.write(
        SUITE + "\ndef test_startup(measure, moe):\n    measure.startup(moe).gate('startup_s')\n"
    )
    slowed.run("--baseline", "record", "-k", "startup")
    slowed.script(ttft_ms=20, itl_ms=60, start_delay_s=2)
    outcome = slowed.run()
    outcome.counts(failed=4)
    outcome.shows("time: * starting (2 servers, 1 spec)*")


def test_an_xdist_worker_puts_no_test_off(slowed):
    """It is told by number what comes next, so each test takes a start of its own."""
    outcome = slowed.run_process("-n", 2)
    outcome.counts(failed=3)
    assert len(outcome.logs) == 4


def test_a_recording_puts_no_test_off(slowed):
    outcome = slowed.run("--baseline", "record")
    outcome.counts(passed=3)
    assert "in doubt" not in outcome.text
    assert len(outcome.logs) == 1
