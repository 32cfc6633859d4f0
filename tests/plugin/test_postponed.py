"""A test in doubt waits for the others of its server, so that one further start serves all."""

import json

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

WITH_FIXTURES = (
    SUITE
    + """
@pytest.fixture(scope="session", autouse=True)
def shared():
    print("shared set up")
    yield
    print("shared torn down")

@pytest.fixture
def own():
    print("own set up")
    yield
    print("own torn down")

def test_with_fixtures(measure, moe, own, record_property):
    print("in the test")
    record_property("shown", "once")
    cell = measure(moe, LADDER[1])
    cell.gate("ttft_ms.p50")
    cell.gate("itl_token_ms.p50")
    print("after the gates")
"""
)

SAID = [
    "shared set up",
    "own set up",
    "in the test",
    "after the gates",
    "own torn down",
    "shared torn down",
]

OF_ANOTHER_SERVER = """
def test_dense(measure, dense):
    measure(dense, LADDER[1]).gate("itl_token_ms.p50")

def test_after_dense(serve, dense):
    assert serve(dense).alive
"""


FAILS_THE_SECOND_TIME = """
from pytest_moeperf.errors import MoeperfError
from pytest_moeperf.run import Run

measure_anew, calls = Run.measure_anew, []

def once(*arguments):
    calls.append(arguments)
    if len(calls) > 1:
        raise {error}
    return measure_anew(*arguments)

Run.measure_anew = once
Run.measure_also = lambda *arguments: None
"""

LOOP = """
def pytest_runtestloop(session):
    for item in list(session.items):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    return True
"""

INTERRUPTED = """
from pytest_moeperf.run import Run

def interrupt(*_arguments):
    raise KeyboardInterrupt

Run.measure_anew = interrupt
"""


def add_to_conftest(suite, code):
    conftest = suite.pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + code)


@pytest.fixture
def slowed(suite, record):
    """Three cells of one server that are three times as slow as their baselines."""
    suite.write(SUITE)
    suite.script(ttft_ms=20, itl_ms=20)
    record(passed=3)
    suite.script(ttft_ms=20, itl_ms=60)
    return suite


def bought(outcome):
    return [[start["start_id"] for start in cell["further"]] for cell in outcome.run_json["cells"]]


def test_one_further_start_serves_all_tests_of_a_server(slowed):
    outcome = slowed.run()
    outcome.counts(failed=3)
    outcome.shows(
        "  … in doubt: judged after the other tests of its server",
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


def test_its_time_is_that_of_its_function_and_of_its_verdict(slowed):
    slept = SUITE.replace(
        '.gate("itl_token_ms.p50")', '.gate("itl_token_ms.p50")\n    time.sleep(0.5)'
    )
    slowed.write(slept.replace("import pytest\n", "import time\n\nimport pytest\n", 1))
    outcome = slowed.run("--junitxml", "junit.xml")
    outcome.counts(failed=3)
    took_s = [float(case.get("time")) for case in outcome.junit.iter("testcase")]
    # The first one's verdict took a further start, of which the others only had to be told.
    assert len(took_s) == 3
    assert min(took_s) >= 0.5


def test_its_function_and_its_fixtures_run_once(slowed):
    slowed.write(WITH_FIXTURES)
    junit = ("--junitxml", "junit.xml", "-o", "junit_family=xunit1")
    outcome = slowed.run(*junit, "-k", "with_fixtures", "-s")
    outcome.counts(failed=1)
    said = [words for line in outcome.text.splitlines() for words in SAID if line.endswith(words)]
    assert said == SAID
    [case] = outcome.junit.iter("testcase")
    shown = [each for each in case.iter("property") if each.get("name") == "shown"]
    assert len(shown) == 1
    assert any("itl_token_ms.p50" in each.get("name") for each in case.iter("property"))


def test_what_it_printed_is_shown_once(slowed):
    slowed.write(WITH_FIXTURES)
    lines = slowed.run("-k", "with_fixtures").text.splitlines()
    # That of a fixture of the session's is shown with its last test, or not at all.
    assert [lines.count(words) for words in SAID[:-1]] == [1] * 5


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
    outcome = slowed.run(option, "-rs", "--junitxml", "junit.xml")
    outcome.counts(failed=1, skipped=3)
    outcome.shows(
        "*itl_token_ms.p50 *INCONCLUSIVE",
        "left open: serving/test_load.py::test_ladder[[]vllm-1]: the session ended before "
        "its verdict",
    )
    assert len(outcome.run_json["cells"]) == 3
    assert not outcome.run_json["finished"]
    cases = {
        case.get("name"): [each.tag for each in case] for case in outcome.junit.iter("testcase")
    }
    assert len(cases) == 4
    assert "skipped" in cases["test_first_token[vllm]"]
    line = SUITE.splitlines().index("def test_first_token(measure, moe):") + 1
    outcome.shows(f"SKIPPED [[]1[]] serving/test_load.py:{line}: the session ended before its*")


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


FAILS_LATER = """
def test_fails(measure, moe, request):
    request.addfinalizer({finalizer})
    measure(moe, LADDER[1]).gate("itl_token_ms.p50")
    {then}
"""


@pytest.mark.parametrize(
    ("then", "finalizer", "expected", "verdict"),
    [
        ("assert False, 'by itself'", "lambda: None", {"failed": 1}, "INCONCLUSIVE"),
        ("pytest.skip('by itself')", "lambda: None", {"skipped": 1}, "INCONCLUSIVE"),
        ("pass", "lambda: pytest.fail('by itself')", {"failed": 1, "errors": 1}, "REGRESSED"),
    ],
)
def test_what_else_a_test_says_is_not_lost(slowed, then, finalizer, expected, verdict):
    slowed.write(SUITE + FAILS_LATER.format(then=then, finalizer=finalizer))
    outcome = slowed.run("-k", "test_fails", "-rs")
    outcome.counts(**expected)
    outcome.shows("*by itself*")
    [cell] = outcome.run_json["cells"]
    assert cell["verdicts"][0]["outcome"] == verdict


@pytest.mark.parametrize("strict", [False, True])
def test_one_that_is_expected_to_fail_waits_as_well(slowed, strict):
    mark = f"\n@pytest.mark.xfail(strict={strict}, reason='known')\ndef test_first_token"
    slowed.write(SUITE.replace("\ndef test_first_token", mark))
    outcome = slowed.run("-k", "first_token")
    outcome.counts(xfailed=1)
    [cell] = outcome.run_json["cells"]
    assert (len(cell["further"]), cell["verdicts"][0]["outcome"]) == (1, "EXPECTED")


def test_a_gate_in_a_fixture_does_not_wait(slowed):
    gate = 'measure(moe, LADDER[1]).gate("itl_token_ms.p50")'
    slowed.write(
        SUITE
        + f"\n@pytest.fixture\ndef gated(measure, moe):\n    {gate}\n"
        + "\ndef test_gated(gated):\n    pass\n"
    )
    outcome = slowed.run("-k", "test_gated")
    outcome.counts(errors=1)


def test_tests_that_are_run_again_by_a_plugin_do_not_wait(slowed):
    """Nor do the others, which pytest would set up for in the wrong order."""
    slowed.write(SUITE.replace("\ndef test_first", "\n@pytest.mark.flaky\ndef test_first"))
    outcome = slowed.run("-W", "ignore::pytest.PytestUnknownMarkWarning")
    outcome.counts(failed=3)
    assert "in doubt" not in outcome.text


def test_a_loop_that_never_comes_to_them_fails_the_session(slowed):
    add_to_conftest(slowed, LOOP)
    outcome = slowed.run("-k", "first_token")
    assert outcome.code == pytest.ExitCode.TESTS_FAILED
    outcome.shows("left open: *")
    assert not outcome.run_json["finished"]


def test_a_ctrl_c_leaves_what_was_measured_before(slowed):
    add_to_conftest(slowed, INTERRUPTED)
    outcome = slowed.run_process()
    assert outcome.code == pytest.ExitCode.INTERRUPTED
    outcome.shows("  itl_token_ms.p50 *INCONCLUSIVE", "left open: *ladder*", "*Keyboard*")
    assert len(outcome.run_json["cells"]) == 3


def test_a_ctrl_c_later_in_a_test_that_waits_leaves_it_too(slowed):
    """It has no report then."""
    slowed.write(SUITE + FAILS_LATER.format(then="raise KeyboardInterrupt", finalizer="list"))
    outcome = slowed.run_process("-k", "test_fails")
    assert outcome.code == pytest.ExitCode.INTERRUPTED
    outcome.shows("  itl_token_ms.p50 *INCONCLUSIVE", "left open: *test_fails*")
    assert len(outcome.run_json["cells"]) == 1


def test_one_that_is_left_open_has_each_of_its_cells_once(slowed):
    """One of them was decided at once."""
    gate = 'cell.gate("ttft_ms.p50")\n    cell.gate("itl_token_ms.p50")\n'
    both = f"\ndef test_both(measure, moe):\n    cell = measure(moe, LADDER[1])\n    {gate}"
    slowed.write(SUITE + both + "\ndef test_ends(serve, moe):\n    pytest.exit('now')\n")
    outcome = slowed.run_process("-k", "both or ends")
    outcomes = [cell["verdicts"][0]["outcome"] for cell in outcome.run_json["cells"]]
    assert len(outcomes) == 2
    assert "INCONCLUSIVE" in outcomes


def test_a_killed_session_keeps_them_too(slowed):
    dies = "\ndef test_dies(serve, moe):\n    import os\n    os._exit(9)\n"
    slowed.write(SUITE + dies)
    outcome = slowed.run_process()
    assert len(outcome.run_json["cells"]) >= 1
    assert not outcome.run_json["finished"]


def test_what_fails_at_once_ends_a_session_with_x_as_ever(slowed):
    """With the teardown of its module, which pytest then tells too."""
    slowed.write("""
import pytest

@pytest.fixture(scope="module")
def broken():
    yield
    raise RuntimeError("in the module's teardown")

def test_fails(measure, moe, broken):
    assert False, "at once"

def test_next(measure, moe, broken):
    pass
""")
    outcome = slowed.run("-x")
    outcome.counts(failed=1, errors=1)
    outcome.shows("*at once*", "*in the module's teardown*")


LOOKS = """
import pytest

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.when == "call":
        print("called with", ", ".join(sorted(item.funcargs)))
    return report
"""


def test_plugins_that_look_at_the_test_for_its_report_find_what_it_was_called_with(slowed):
    """As pytest-benchmark does."""
    add_to_conftest(slowed, LOOKS)
    outcome = slowed.run("-k", "first_token", "-s")
    outcome.counts(failed=1)
    outcome.shows("*called with measure, moe*", "*called with measure, moe*")


TWO_GATES = """
def test_both(measure, moe):
    for cell in measure.ladder(moe, LADDER).values():
        cell.gate("itl_token_ms.p50")
"""


def test_a_failure_does_not_hide_behind_a_regression_that_is_known(slowed):
    slowed.write(SUITE + TWO_GATES)
    [path] = (slowed.root / "baselines").rglob("*c1-isl4*.json")
    document = json.loads(path.read_text())
    known = {"metric": "itl_token_ms.p50", "reason": "why", "issue": "https://github.com/a/b/1"}
    document["known"] = [known | {"expires": "2999-12-31", "extent": 2.5}]
    path.write_text(json.dumps(document))
    outcome = slowed.run("-k", "both")
    outcome.counts(failed=1)
    outcome.shows("1 REGRESSED, 1 EXPECTED")


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "MoeperfError('no server')"])
def test_what_was_measured_before_a_start_that_failed_is_told_once(slowed, error):
    """The second further start, as the first one is not shared."""
    slowed.write(SUITE + TWO_GATES)
    add_to_conftest(slowed, FAILS_THE_SECOND_TIME.format(error=error))
    outcome = slowed.run_process("-k", "both")
    cells = outcome.run_json["cells"]
    assert sorted(cell["verdicts"][0]["outcome"] for cell in cells) == ["INCONCLUSIVE", "REGRESSED"]


SUBTESTS = """
def test_parts(measure, moe, subtests):
    with subtests.test("timed"):
        measure(moe, LADDER[1]).gate("itl_token_ms.p50")
    with subtests.test("left out"):
        pytest.skip("not here")
"""


@pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="pytest before 9 has no subtests")
def test_a_subtest_that_is_skipped_leaves_the_others_their_verdicts(slowed):
    slowed.write(SUITE + SUBTESTS)
    outcome = slowed.run("-k", "parts")
    assert outcome.code == pytest.ExitCode.TESTS_FAILED
    assert len(outcome.run_json["cells"]) == 1
    outcome.shows("1 REGRESSED")


def test_a_teardown_that_fails_when_nothing_comes_after_is_told(slowed):
    """What is kept for the next test is torn down where a session ends before it."""
    broken = """
@pytest.fixture(scope="module", autouse=True)
def broken():
    yield
    raise RuntimeError("in the module's teardown")
"""
    slowed.write(SUITE + broken + OF_ANOTHER_SERVER)
    outcome = slowed.run("-x")
    outcome.counts(failed=1, skipped=2, errors=1)
    outcome.shows("*in the module's teardown*", "3 REGRESSED*")
