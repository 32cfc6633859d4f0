"""--max-starts: how many fresh starts of the tested engine one cell may take."""

import pytest

SUITE = """\
from pytest_moeperf import ClosedLoop

def test_single_stream(measure, moe):
    cell = measure(moe, ClosedLoop(concurrency=1, isl=4, osl=4, requests=1))
    cell.gate("itl_token_ms.p50")
"""

RATIO = """
def test_ratio(measure, moe, dense):
    cell = measure(moe, ClosedLoop(concurrency=1, isl=4, osl=4, requests=1))
    cell.over(cell, "itl_token_ms.p50").within(2, 3, why="a cell is as fast as itself")
"""


@pytest.fixture
def slowed(suite, record):
    """An engine that is three times as slow as its baseline."""
    suite.write(SUITE)
    suite.script(ttft_ms=20, itl_ms=20)
    record(passed=1)
    suite.script(ttft_ms=20, itl_ms=60)
    return suite


def test_a_doubtful_cell_is_measured_on_a_second_server_before_it_fails(slowed):
    outcome = slowed.run()
    outcome.counts(failed=1)
    outcome.shows(
        "  … start 2 of up to 2 for serving.load: starting tiny-moe",
        "  REGRESSED itl_token_ms.p50: * ms*",
        "    change +* % (*), p = *; unpaired, 2 starts",
    )
    assert len(outcome.logs) == 2
    [cell] = outcome.run_json["cells"]
    assert len(cell["further"]) == 1
    assert cell["further"][0]["start_id"] != cell["start"]["start_id"]


def test_with_xdist_it_is_the_same(slowed):
    outcome = slowed.run_process("-n", 2)
    outcome.counts(failed=1)
    assert len(outcome.logs) == 2
    assert len(outcome.run_json["cells"][0]["further"]) == 1


def test_a_ratio_of_a_cell_whose_server_was_replaced_is_measured_on_the_new_one(slowed):
    slowed.write(SUITE + RATIO)
    outcome = slowed.run()
    outcome.counts(failed=2)
    assert len(outcome.logs) == 2
    first, *_, ratio = outcome.run_json["cells"]
    assert ratio["verdicts"][0]["outcome"] == "REGRESSED"
    [bought] = ratio["further"]
    assert bought["start_id"] == first["further"][0]["start_id"]
    assert len(bought["repeats"]["seeds"]) == 2


def test_the_limit_leaves_open_what_more_starts_might_tell(slowed):
    outcome = slowed.run("--max-starts", 1)
    outcome.counts(passed=1)
    outcome.shows(
        "  itl_token_ms.p50 *INCONCLUSIVE", "    *; no further start within --max-starts 1"
    )
    assert len(outcome.logs) == 1
    [cell] = outcome.run_json["cells"]
    assert cell["verdicts"][0]["outcome"] == "INCONCLUSIVE"


def test_a_clean_cell_takes_one_start_whatever_the_limit(slowed):
    slowed.script(ttft_ms=20, itl_ms=20)
    outcome = slowed.run("--max-starts", 9)
    outcome.counts(passed=1)
    assert len(outcome.logs) == 1


def test_an_attached_server_is_judged_by_its_one_start(suite, make_server):
    suite.write(SUITE)
    with make_server(itl_ms=10) as fine:
        suite.run("--engine", f"vllm={fine.url}", "--baseline", "record").counts(passed=1)
    with make_server(itl_ms=30) as slow:
        outcome = suite.run("--engine", f"vllm={slow.url}")
    outcome.counts(failed=1)
    outcome.shows("  REGRESSED itl_token_ms.p50: * ms*", "    change +*; unpaired, 1 start")


def test_the_bought_start_of_a_start_up_time_is_a_start(suite):
    suite.write("def test_startup(measure, moe):\n    measure.startup(moe).gate('startup_s')\n")
    suite.run("--baseline", "record").counts(passed=1)
    suite.script(start_delay_s=2)
    outcome = suite.run()
    outcome.counts(failed=1)
    outcome.shows("    change +*; unpaired, 2 starts")


@pytest.mark.parametrize("starts", [0, -3])
def test_fewer_than_one_is_an_error(suite, starts):
    outcome = suite.run(f"--max-starts={starts}")
    assert outcome.usage_error == (
        f"ERROR: --max-starts {starts}: every cell takes 1 server start; give 1 or more"
    )


def test_what_is_no_number_is_an_error(suite):
    outcome = suite.run("--max-starts", "many")
    assert outcome.code == pytest.ExitCode.USAGE_ERROR
    assert "--max-starts: invalid int value: 'many'" in outcome.errors
