"""--weights: what published models are loaded with."""

import json

import pytest

from pytest_moeperf.models import catalogue

CONFTEST = """\
from pytest_moeperf import ServerSpec

def pytest_moeperf_servers(hardware):
    return {"moe": ServerSpec("mixtral-8x7b", max_model_len=64)}
"""
TEST = "def test_format(serve, moe):\n    print('format', serve(moe).spec.load_format)\n"


@pytest.fixture
def published(suite, monkeypatch):
    """A suite for a published model, and the place of its download."""
    monkeypatch.setattr("pytest_moeperf.pool._available_gib", lambda: 200.0)
    monkeypatch.setenv("HF_HUB_CACHE", str(suite.root / "hub"))
    suite.pytester.makeconftest(CONFTEST)
    suite.write(TEST)
    entry = catalogue()["mixtral-8x7b"]
    return suite.root / "hub" / "models--mistralai--Mixtral-8x7B-v0.1/snapshots" / entry.revision


@pytest.fixture
def downloaded(published, suite):
    published.mkdir(parents=True)
    (published / "config.json").write_text(json.dumps(catalogue()["mixtral-8x7b"].config))
    weights = suite.model / "model.safetensors"
    (published / weights.name).write_bytes(weights.read_bytes())
    return published


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("typed", [(), ("--weights", "auto"), ("--weights", "dummy")])
def test_without_a_copy_the_engine_makes_them_up(suite, typed):
    outcome = suite.run(*typed, "-s")
    outcome.counts(passed=1)
    outcome.shows("*format dummy*")


@pytest.mark.usefixtures("downloaded")
@pytest.mark.parametrize(
    ("typed", "told"),
    [((), "auto"), (("--weights", "real"), "auto"), (("--weights=dummy",), "dummy")],
)
def test_a_copy_is_loaded_unless_dummies_were_asked_for(suite, typed, told):
    outcome = suite.run(*typed, "-s")
    outcome.counts(passed=1)
    outcome.shows(f"*format {told}*")


@pytest.mark.usefixtures("published")
def test_real_ones_that_are_not_there_are_told_with_what_to_do(suite):
    outcome = suite.run("--weights", "real")
    outcome.counts(failed=1)
    outcome.shows(
        "--weights real: no complete copy of mixtral-8x7b: *; fetch mistralai/Mixtral-8x7B-v0.1 at "
        "revision *, or use --weights dummy"
    )


def test_models_that_are_made_here_or_given_by_path_are_what_they_are(suite):
    suite.write(TEST)
    outcome = suite.run("--weights", "dummy", "-s")
    outcome.counts(passed=1)
    outcome.shows("*format auto*")


BY_SPEC = """\
from pytest_moeperf import ServerSpec

def pytest_moeperf_servers(hardware):
    return {{"moe": ServerSpec({model!r}, load_format="dummy"), "real": ServerSpec({model!r})}}
"""

MODELS = """\
def test_models(measure, moe, real):
    from pytest_moeperf import Burst
    for server in (moe, real):
        cell = measure(server, Burst(requests=1, isl=4, osl=4))
        print("model", cell.measured.result.fingerprint.model)
"""


def test_a_spec_may_ask_for_dummies_which_are_another_model(suite):
    suite.pytester.makeconftest(BY_SPEC.format(model=str(suite.model)))
    suite.write(MODELS)
    outcome = suite.run("-s")
    outcome.counts(passed=1)
    outcome.shows("*model tiny-moe@dummy-*", "*model tiny-moe@[!d]*")


@pytest.mark.parametrize("settings", ["load_format='dummy'", "overrides=(('hidden_size', 128),)"])
def test_a_path_or_a_model_that_is_made_here_may_go_without_its_weights(suite, settings):
    servers = (
        f"{{'moe': ServerSpec('mini-moe', {settings}), 'dense': ServerSpec(PATH, {settings})}}"
    )
    suite.pytester.makeconftest(
        f"from pytest_moeperf import ServerSpec\n\nPATH = {str(suite.model)!r}\n\n"
        f"def pytest_moeperf_servers(hardware):\n    return {servers}\n"
    )
    suite.write(MODELS.replace("real", "dense"))
    outcome = suite.run("-s")
    outcome.counts(passed=1)
    outcome.shows("*model mini-moe@dummy-*", "*model tiny-moe@dummy-*")


def test_another_word_is_refused(suite):
    outcome = suite.run("--weights", "random")
    assert "argument --weights: invalid choice: 'random'" in outcome.errors
