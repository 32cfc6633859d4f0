"""--against: an old engine, measured in turns with the new one, says which of the two is slow."""

import re
from fnmatch import fnmatch

import pytest

from pytest_moeperf.testing import make_fake_interpreter, write_script

SUITE = """\
from pytest_moeperf import ClosedLoop

def test_single_stream(measure, moe):
    cell = measure(moe, ClosedLoop(concurrency=1, isl=4, osl=4, requests=1))
    cell.gate("itl_token_ms.p50")
"""
FINE, SLOW = {"ttft_ms": 20, "itl_ms": 40}, {"ttft_ms": 20, "itl_ms": 120}


@pytest.fixture(scope="session")
def old_python(tmp_path_factory):
    return make_fake_interpreter(tmp_path_factory.mktemp("old") / "venv", version="0.31.0")


@pytest.fixture(scope="session")
def new_python(tmp_path_factory):
    return make_fake_interpreter(tmp_path_factory.mktemp("new") / "venv", version="0.32.0")


@pytest.fixture
def arms(suite, old_python, new_python):
    """Sets what both engines do, and tells what was judged and shown."""
    suite.write(SUITE)

    def check(*arguments, old, new):
        write_script(old_python, version="0.31.0", **old)
        write_script(new_python, **new)
        return suite.run(
            *("--engine", f"vllm@{new_python}", "--against", f"vllm@{old_python}", *arguments)
        )

    return check


@pytest.fixture
def recorded(record, arms, new_python):
    """A baseline of the fine engine."""
    write_script(new_python, **FINE)
    record("--engine", f"vllm@{new_python}", passed=1)


@pytest.mark.usefixtures("recorded")
def test_a_clean_cell_takes_one_start_and_never_the_old_engine(arms):
    outcome = arms(old=SLOW, new=FINE)
    outcome.counts(passed=1)
    assert len(outcome.logs) == 1
    outcome.shows("moeperf: cpu (*), vllm==0.32.0 against vllm==0.31.0")


@pytest.mark.usefixtures("recorded")
def test_a_slower_engine_is_named_by_the_a_b(arms, suite, old_python):
    outcome = arms(old=FINE, new=SLOW)
    outcome.counts(failed=1)
    outcome.shows(
        "  … start 2 of up to 2 for serving.load: starting tiny-moe",
        "  … A/B pair 1 of up to 5 for serving.load, old engine: starting tiny-moe",
        "  … A/B pair 1 of up to 5 for serving.load, new engine: starting tiny-moe",
        "  REGRESSED itl_token_ms.p50: * ms*",
        "    change +* % (+* … +*), p = *; A/B with vllm==0.31.0, 3 starts each",
        f"  next: pytest * --against vllm@{old_python}   (measure again)",
        "1 REGRESSED",
    )
    [cell] = outcome.run_json["cells"]
    assert cell["against"] == "vllm==0.31.0"
    assert [start["engine_version"] for start in cell["old"]] == ["0.31.0"] * 3
    assert [start["engine_version"] for start in cell["new"]] == ["0.32.0"] * 3
    [verdict] = cell["verdicts"]
    assert (verdict["outcome"], verdict["paired"], verdict["starts"]) == ("REGRESSED", True, 3)
    assert verdict["p"] <= verdict["p_limit"]
    low, high = verdict["interval"]
    assert low <= verdict["effect"] <= high < 0


@pytest.mark.usefixtures("recorded")
def test_without_it_a_failure_names_the_engine_to_ask(suite, old_python):
    write_script(old_python, version="0.31.0", **SLOW)
    outcome = suite.run("--engine", f"vllm@{old_python}")
    outcome.counts(failed=1)
    outcome.shows("  next: pytest * --against vllm==0.32.0   (is it the engine or the machine?)")


@pytest.mark.usefixtures("recorded")
def test_a_machine_on_which_both_are_slow_is_to_blame_itself(arms):
    outcome = arms("-rs", old=SLOW, new=SLOW)
    outcome.counts(skipped=1)
    outcome.shows("SKIPPED *ENV_DRIFT*")


def test_without_a_baseline_the_a_b_judges_alone(arms):
    outcome = arms(old=FINE, new=SLOW)
    outcome.counts(failed=1)
    outcome.shows("  REGRESSED itl_token_ms.p50*", "*A/B with vllm==0.31.0, 3 starts each*")
    assert len(outcome.logs) == 1 + 3 + 3


def test_the_arms_take_turns_and_the_next_test_uses_the_server_that_they_left(arms, suite):
    suite.write(SUITE + "\ndef test_next(serve, moe):\n    assert serve(moe).alive\n")
    outcome = arms(old=FINE, new=FINE)
    outcome.counts(passed=2)
    logs = sorted(outcome.logs, key=lambda log: int(log.name.split("-")[2]))
    versions = [re.search(r"version (\S+)", log.read_text())[1] for log in logs]
    assert versions[0] == "0.32.0"
    assert versions[1:] == ["0.31.0", "0.32.0", "0.32.0", "0.31.0", "0.31.0", "0.32.0"]


@pytest.mark.usefixtures("recorded")
def test_an_old_engine_that_does_not_start_leaves_the_verdict_to_the_baseline(arms):
    outcome = arms(old={"start_exit_code": 1}, new=SLOW)
    outcome.counts(failed=1)
    outcome.shows("*unpaired*no A/B, because vllm@* failed: *")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--against", "vllm", "--baseline", "record"),
            "--against vllm: --baseline record judges nothing; leave out one of the two",
        ),
        (
            ("--against", "vllm=http://far:8000"),
            "--against vllm=http://far:8000: both engines are started anew several times, *",
        ),
        (
            ("--engine", "vllm=http://far:8000", "--against", "vllm"),
            "--against vllm: both engines are started * vllm=http://far:8000 is a server that *",
        ),
        (("--against", "vlm"), "engine 'vlm': no engine has that name; known are *"),
    ],
)
def test_what_cannot_be_is_an_error_of_one_line(suite, arguments, message):
    outcome = suite.run(*arguments)
    assert fnmatch(outcome.usage_error, f"ERROR: {message}")
