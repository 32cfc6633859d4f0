"""Servers that are real processes with a fake engine inside, and packages to install."""

import base64
import hashlib
import json
import os
import zipfile

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
    (path / "model.safetensors").touch()
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


@pytest.fixture(scope="session")
def uv_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("uv-cache")


@pytest.fixture
def cache(tmp_path, monkeypatch, uv_cache):
    """An empty user cache, and pip configured with one directory of wheels and no network."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(uv_cache))
    monkeypatch.setenv("MOEPERF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def wheels(cache, tmp_path):
    return tmp_path / "wheels"


@pytest.fixture
def make_wheel(wheels):
    """Builds the wheel of a distribution with one package, where pip finds it."""

    def make(distribution, version, *, package):
        name = distribution.replace("-", "_")
        path = wheels / f"{name}-{version}-py3-none-any.whl"
        info = f"{name}-{version}.dist-info"
        files = {
            f"{package}/__init__.py": f"__version__ = {version!r}\n",
            f"{info}/METADATA": (
                f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
            ),
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(
            f"{name},sha256={_record_digest(text)},{len(text)}\n" for name, text in files.items()
        )
        with zipfile.ZipFile(path, "w") as wheel:
            for name, text in (files | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}).items():
                # A fixed date: the same version always has the same hash.
                wheel.writestr(zipfile.ZipInfo(name), text)
        return path

    return make


def _record_digest(text):
    raw = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
