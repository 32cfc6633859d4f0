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


def test_a_misspelt_field_is_an_error_in_one_line(suite):
    suite.pytester.makeconftest(
        "from pytest_moeperf import ServerSpec\n"
        "def pytest_moeperf_servers(hardware):\n"
        '    return {"moe": ServerSpec("mini-moe", tensor_paralel_size=2)}\n'
    )
    assert suite.run().usage_error == (
        "ERROR: a ServerSpec got an unexpected keyword argument 'tensor_paralel_size'; its fields "
        "are model, tensor_parallel_size, dtype, max_model_len, flags, env, expert_parallel, "
        "overrides, load_format, counts_experts"
    )


def test_any_other_type_error_of_the_hook_is_pytests_to_tell(suite):
    suite.pytester.makeconftest(
        "def pytest_moeperf_servers(hardware):\n    return {'moe': hardware + 1}\n"
    )
    outcome = suite.run()
    outcome.counts(errors=1)
    outcome.shows("*TypeError: can only concatenate str*")


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


SERVERS = "pytest_moeperf_servers"
SPEC = "from pytest_moeperf import ServerSpec\n"
MALFORMED = [
    ("return ['moe']", f"{SERVERS} returned a value of type list: give a mapping, as in "),
    ("return {'moe'}", f"{SERVERS} returned a value of type set: give a mapping, as in "),
    ("return 'moe'", f"{SERVERS} returned 'moe': give a mapping, as in "),
    ("yield {}", f"{SERVERS} returned a value of type generator: give a mapping, as in "),
    (
        "return {'moe': 'mini-moe'}",
        f"{SERVERS} returned 'mini-moe' for 'moe': give a ServerSpec, a list of them, or None ",
    ),
    (
        "return {'moe': [ServerSpec('m', env={'HF_TOKEN': 'hf_secret'}), None]}",
        f"{SERVERS} returned None for 'moe': give a ServerSpec, ",
    ),
    (
        "return {'moe': {ServerSpec('m')}}",
        f"{SERVERS} returned a value of type set for 'moe': give a ServerSpec, ",
    ),
    (
        "return {'moe': (ServerSpec(name) for name in 'ab')}",
        f"{SERVERS} returned a value of type generator for 'moe': give a ServerSpec, ",
    ),
    (
        "return {'moe': ServerSpec('m', flags='--nope 4')}",
        "flags = '--nope 4' in a ServerSpec: give word by word, as in ('--nope', '4')",
    ),
    (
        "return {'moe': ServerSpec('m', tensor_parallel_size=0)}",
        "tensor_parallel_size = 0 in a ServerSpec: it must be a whole number above 0",
    ),
]


@pytest.mark.parametrize(("body", "told"), MALFORMED, ids=[body for body, _ in MALFORMED])
def test_an_answer_that_names_no_servers_is_an_error_before_anything_starts(suite, body, told):
    suite.pytester.makeconftest(f"{SPEC}\ndef {SERVERS}(hardware):\n    {body}\n")
    outcome = suite.run()
    assert outcome.usage_error.startswith(f"ERROR: {told}")
    assert "hf_secret" not in outcome.text + outcome.errors
    assert outcome.logs == []


VALUES = "pytest_moeperf_values"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return ['batch']", f"{VALUES} returned a value of type list: give a mapping, as in "),
        ("return {'batch': 8}", f"{VALUES} returned 8 for 'batch': give a list of values"),
        ("return {'batch': '18'}", f"{VALUES} returned '18' for 'batch': give a list of values"),
        (
            "return {'load': [Burst(requests=2, isl=0, osl=1)]}",
            "isl = 0 in a workload: it must be a whole number above 0",
        ),
    ],
)
def test_an_answer_that_names_no_values_is_an_error_before_anything_starts(suite, body, told):
    conftest = suite.root / "conftest.py"
    conftest.write_text(
        f"from pytest_moeperf import Burst\n{conftest.read_text()}\n"
        f"def {VALUES}(hardware):\n    {body}\n"
    )
    assert suite.run().usage_error.startswith(f"ERROR: {told}")


def test_an_xdist_worker_tells_of_such_an_answer_without_a_traceback(suite):
    suite.pytester.makeconftest(f"def {SERVERS}(hardware):\n    return ['moe']\n")
    outcome = suite.run_process("-n", "1")
    assert outcome.code != 0
    outcome.shows(f"{SERVERS} returned a value of type list: give a mapping, as in *")
    assert "Traceback" not in outcome.text


LOADS = "ClosedLoop(concurrency=1, isl=4, osl=8, requests=2)"
NEITHER = "was given for a server: give what an argument with a name of pytest_moeperf_servers "


@pytest.mark.parametrize(
    ("fixture", "call", "told"),
    [
        ("measure", f"measure('moe', {LOADS})", f"'moe' {NEITHER}"),
        ("measure", f"measure(moe.spec, {LOADS})", f"a value of type ServerSpec {NEITHER}"),
        ("measure", f"measure.together(moe, 'dense', {LOADS})", f"'dense' {NEITHER}"),
        ("measure", "measure.startup(None)", f"None {NEITHER}"),
        ("measure", "measure.architecture('moe')", f"'moe' {NEITHER}"),
        ("serve", "serve('moe')", f"'moe' {NEITHER}"),
        ("experts", f"experts('moe', {LOADS})", f"'moe' {NEITHER}"),
        ("experts", "experts.architecture('moe')", f"'moe' {NEITHER}"),
        (
            "measure",
            f"measure({{'vllm': moe}}, {LOADS})",
            "servers by engine (vllm) were given for a server: choose one, as in moe['vllm']",
        ),
    ],
)
def test_what_is_no_server_is_an_error_in_one_line(suite, fixture, call, told):
    suite.write(
        f"from pytest_moeperf import ClosedLoop\n\ndef test_misuse({fixture}, moe):\n    {call}\n"
    )
    outcome = suite.run()
    outcome.counts(failed=1)
    assert any(line.startswith(told) for line in outcome.text.splitlines())
    assert "pytest_moeperf/" not in outcome.text
    assert outcome.logs == []


def test_a_workload_that_cannot_be_is_told_where_it_is_written(suite):
    suite.write(
        "from pytest_moeperf import ClosedLoop\n\n"
        "LOAD = ClosedLoop(concurrency='1', isl=4, osl=8, requests=2)\n\n"
        "def test_load(measure, moe):\n    measure(moe, LOAD)\n"
    )
    outcome = suite.run()
    outcome.counts(errors=1)
    outcome.shows(
        "serving/test_load.py:3: in <module>",
        "    LOAD = ClosedLoop(concurrency='1', isl=4, osl=8, requests=2)",
        "E   *UsageError: concurrency = '1' in a workload: it must be a whole number above 0",
    )
    assert "pytest_moeperf/" not in outcome.text
