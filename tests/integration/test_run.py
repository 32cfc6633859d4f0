from types import SimpleNamespace

import pytest

from pytest_moeperf.errors import ServerStartError
from pytest_moeperf.measurement import Rules
from pytest_moeperf.records import EngineInstall, ServerSpec
from pytest_moeperf.run import Run, Settings
from pytest_moeperf.timeline import TimeSpent

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
    made._models["tiny", ()] = SimpleNamespace(name="tiny", digest="d")
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


def test_a_server_that_never_became_ready_took_its_time_all_the_same(run):
    def acquire(_spec, _model):
        raise ServerStartError("not ready", elapsed_s=12.5)

    vars(run)["pool"] = SimpleNamespace(acquire=acquire)
    for _ in range(2):  # The second one fails at once.
        with pytest.raises(ServerStartError):
            run.serve(SPEC)
    assert run.time_spent == TimeSpent(starting_s=12.5)
