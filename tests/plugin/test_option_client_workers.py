"""--client-workers: how many processes send the load."""

import pytest

from pytest_moeperf import driver

SUITE = """
from pytest_moeperf import ClosedLoop

LOAD = ClosedLoop(concurrency=1, isl=4, osl=8, requests=2)

def test_single_stream(measure, moe):
    measure(moe, LOAD).gate("ttft_ms.p50")
"""


@pytest.mark.parametrize(("typed", "workers"), [((), None), (("--client-workers", "2"), 2)])
def test_the_load_comes_from_so_many_processes(suite, server, monkeypatch, typed, workers):
    play, asked = driver.play, []

    def note(*arguments, **options):
        asked.append(options["workers"])
        repeat = play(*arguments, **options)
        assert repeat.client.workers == (workers or 1)
        return repeat

    monkeypatch.setattr(driver, "play", note)
    suite.write(SUITE.replace("concurrency=1", "concurrency=2"))
    outcome = suite.run("--engine", f"vllm={server.url}", "--baseline", "record", *typed)
    outcome.counts(passed=1)
    assert set(asked) == {workers}


@pytest.mark.parametrize("typed", ["0", "-1", "many", "1.5"])
def test_other_than_a_number_from_1_up_is_an_error(suite, typed):
    assert suite.run("--client-workers", typed).usage_error == (
        f"ERROR: --client-workers {typed}: give a number from 1 up, or auto"
    )
