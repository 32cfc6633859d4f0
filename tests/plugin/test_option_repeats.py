"""--repeats: how many valid plays of a workload count."""

import pytest


@pytest.mark.parametrize("repeats", [1, 3])
def test_every_cell_has_so_many_repeats(suite, server, repeats):
    suite.write_ratio((0.9, 1.1))
    outcome = suite.run("--engine", f"vllm={server.url}", "--repeats", repeats)
    outcome.counts(passed=1)
    [cell] = outcome.judged
    assert cell["start"]["repeats"]["seeds"] == list(range(repeats))


def test_a_cell_that_two_tests_ask_for_is_measured_once(suite, server):
    suite.write_ratio((0.9, 1.1), (0.5, 2))
    before = server.requests_received
    outcome = suite.run("--engine", f"vllm={server.url}", "--repeats", 1)
    outcome.counts(passed=2)
    one, other = outcome.judged
    assert one["start"]["repeats"] == other["start"]["repeats"]
    plays = one["warmup_plays"] + 1
    assert server.requests_received - before == 2 * plays


@pytest.mark.parametrize("repeats", [0, -1])
def test_fewer_than_one_is_an_error(suite, repeats):
    outcome = suite.run(f"--repeats={repeats}")
    assert outcome.usage_error == f"ERROR: --repeats {repeats}: at least 1 repeat is needed"
