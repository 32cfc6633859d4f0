from types import SimpleNamespace

import pytest

from pytest_moeperf.measurement import Rules
from pytest_moeperf.records import EngineInstall, ServerSpec
from pytest_moeperf.run import Run, Settings

SPEC = ServerSpec("tiny")


@pytest.fixture
def run(tmp_path):
    settings = Settings(
        gpu="cpu",
        rules=Rules(repeats=1),
        server_timeout_s=1.0,
        port=None,
        out_dir=tmp_path,
    )
    made = Run(settings, lambda _phase, _detail: None)
    made._models["tiny"] = SimpleNamespace(name="tiny", digest="d")
    return made


def fingerprint(run, url):
    return run._fingerprint(SPEC, EngineInstall(engine="vllm", url=url), "burst")


@pytest.mark.parametrize(
    "url", [None, "http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000/v"]
)
def test_a_server_of_this_machine_has_its_fingerprint(run, url):
    assert fingerprint(run, url).cpu_model == run.hardware.cpu_model


def test_a_server_elsewhere_is_never_taken_for_this_machine(run):
    far = fingerprint(run, "http://far:8000")
    assert far.cpu_model == "not known, at far"
    assert far == fingerprint(run, "http://far:9000")
    assert far != fingerprint(run, "http://further:8000")
