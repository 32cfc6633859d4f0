"""--client-workers: how many processes send the load."""

import pytest

from pytest_moeperf import driver


@pytest.mark.parametrize(("typed", "workers"), [((), None), (("--client-workers", "2"), 2)])
def test_the_load_comes_from_so_many_processes(suite, server, monkeypatch, typed, workers):
    play, asked = driver.play, []

    def note(*arguments, **options):
        asked.append(options["workers"])
        repeat = play(*arguments, **options)
        assert repeat.client.workers == (workers or 1)
        return repeat

    monkeypatch.setattr(driver, "play", note)
    outcome = suite.run("--engine", f"vllm={server.url}", "--baseline", "record", *typed)
    outcome.counts(passed=1)
    assert set(asked) == {workers}


@pytest.mark.parametrize("typed", ["0", "-1", "many", "1.5"])
def test_other_than_a_number_from_1_up_is_an_error(suite, typed):
    assert suite.run("--client-workers", typed).usage_error == (
        f"ERROR: --client-workers {typed}: give a number from 1 up, or auto"
    )
