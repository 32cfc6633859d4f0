"""pytest_moeperf_servers: the names that tests ask for."""

import pytest


def test_a_name_without_a_server_skips_with_the_reason(suite):
    suite.write("def test_absent(measure, absent):\n    measure(absent, None)\n")
    outcome = suite.run("-rs")
    outcome.counts(skipped=1)
    outcome.shows("SKIPPED [[]1] serving/test_load.py*: no server 'absent' on cpu")
    assert outcome.logs == []


def test_a_name_that_no_hook_knows_is_an_unknown_fixture(suite):
    suite.write("def test_unknown(measure, mixtral):\n    pass\n")
    outcome = suite.run()
    outcome.counts(errors=1)
    outcome.shows("*fixture 'mixtral' not found")


@pytest.mark.parametrize("body", ["return None", "return {}"])
def test_a_hook_that_knows_no_server_leaves_other_tests_alone(suite, body):
    suite.pytester.makeconftest(f"def pytest_moeperf_servers(hardware):\n    {body}\n")
    suite.write("def test_other():\n    pass\n")
    suite.run().counts(passed=1)


def test_the_hook_is_told_the_hardware(suite, server):
    suite.pytester.makeconftest(
        "from pytest_moeperf import ServerSpec\n"
        "def pytest_moeperf_servers(hardware):\n"
        f"    return {{hardware: ServerSpec({str(suite.model)!r})}}\n"
    )
    suite.write("def test_name(serve, cpu):\n    assert serve(cpu).alive\n")
    suite.run("--engine", f"vllm={server.url}").counts(passed=1)


def test_names_may_be_asked_for_beside_other_parameters_and_fixtures(suite, server):
    suite.write(
        "import pytest\n\n"
        "@pytest.mark.parametrize('batch', [1, 2])\n"
        "def test_both(measure, moe, dense, batch, tmp_path):\n"
        "    assert (moe.name, dense.name) == ('moe', 'dense')\n"
    )
    outcome = suite.run("--engine", f"vllm={server.url}", "-v")
    outcome.counts(passed=2)
    outcome.shows("*::test_both[[]vllm-1] PASSED*", "*::test_both[[]vllm-2] PASSED*")
