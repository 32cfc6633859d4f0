"""Servers that are real processes with a fake engine inside."""

import json

import pytest

from pytest_moeperf.hardware import Hardware
from pytest_moeperf.models import ModelDirectory, catalogue
from pytest_moeperf.records import EngineInstall, ServerSpec
from pytest_moeperf.testing import SCRIPT_VARIABLE, make_fake_interpreter


@pytest.fixture(scope="session")
def fake_install(tmp_path_factory):
    python = make_fake_interpreter(tmp_path_factory.mktemp("engine") / "venv")
    return EngineInstall(engine="vllm", distribution="vllm", version="0.32.0", python=python)


@pytest.fixture
def make_spec(fake_install):
    """Builds a server spec whose engine follows the given script."""

    def make(*, flags=(), env=(), **script):
        scripted = (SCRIPT_VARIABLE, json.dumps(script))
        return ServerSpec(
            model="mini-moe", max_model_len=2048, flags=flags, env=(scripted, *env)
        ).on(fake_install)

    return make


@pytest.fixture
def model(tmp_path):
    """A model directory that only a fake engine can load."""
    path = tmp_path / "mini-moe"
    path.mkdir()
    return ModelDirectory(
        name="mini-moe",
        path=path,
        architecture=catalogue()["mini-moe"].architecture,
        context_tokens=2048,
        vocab_size=4096,
        first_id=3,
        digest="0123",
    )


@pytest.fixture
def machine():
    return Hardware(name="cpu", cpu_model="Test CPU", cpu_cores=2, core_ids=(0, 1), memory_gib=16.0)
