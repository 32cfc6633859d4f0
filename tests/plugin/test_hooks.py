"""pytest_moeperf_servers and pytest_moeperf_values: the names that tests ask for."""

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


SEVERAL = """\
from pytest_moeperf import ClosedLoop, ServerSpec

def pytest_moeperf_servers(hardware):
    short = ServerSpec({model!r}, max_model_len=64)
    return {{
        "model": (ServerSpec({model!r}), ServerSpec({model!r}, tensor_parallel_size=2)),
        "moe": [short],
        "none": [],
    }}

def pytest_moeperf_values(hardware):
    load = ClosedLoop(concurrency=1, isl=4, osl=8, requests=2)
    return {{"batch": [1, 2], "load": [load], "where": [hardware]}}
"""


@pytest.fixture
def several(suite):
    suite.pytester.makeconftest(SEVERAL.format(model=str(suite.model)))
    return suite


def ids(outcome):
    return [line.partition("::")[2] for line in outcome.text.splitlines() if "::" in line]


def test_a_name_of_several_servers_runs_the_test_on_each(several):
    several.write("def test_all(measure, model):\n    pass\n")
    outcome = several.run("--collect-only", "-q")
    assert ids(outcome) == ["test_all[vllm-tiny-moe]", "test_all[vllm-tiny-moe-tp2]"]


def test_a_sequence_of_one_server_is_that_server(several):
    several.write("def test_one(measure, moe):\n    assert moe.spec.max_model_len == 64\n")
    outcome = several.run("-v")
    outcome.counts(passed=1)
    outcome.shows("*::test_one[[]vllm] PASSED*")


def test_an_empty_sequence_skips_with_the_reason(several):
    several.write("def test_none(measure, none):\n    pass\n")
    outcome = several.run("-rs")
    outcome.counts(skipped=1)
    outcome.shows("SKIPPED*: no server 'none' on cpu")


def test_values_are_parameters_with_readable_ids(several):
    several.write("def test_values(measure, moe, where, batch, load):\n    pass\n")
    outcome = several.run("--collect-only", "-q")
    assert ids(outcome) == [
        f"test_values[vllm-cpu-{batch}-closed-c1-isl4-osl8-n2]" for batch in (1, 2)
    ]


def test_values_are_for_measuring_tests_alone(several):
    several.write("def test_other(batch):\n    pass\n")
    outcome = several.run()
    outcome.counts(errors=1)
    outcome.shows("*fixture 'batch' not found")
