"""What every pytest session pays for the plugin, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.benchmark(group="startup")

SUITES = Path(__file__).parents[1] / "suites"
ROUNDS = 5


@pytest.fixture
def folder(tmp_path):
    """One test that knows nothing of the plugin."""
    (tmp_path / "test_plain.py").write_text("def test_plain():\n    pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def run(*arguments, cwd):
    subprocess.run([sys.executable, *arguments], cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def collect(folder, *arguments):
    run("-m", "pytest", "--collect-only", "-q", *arguments, cwd=folder)


def repeat(benchmark, function, *arguments, **named):
    benchmark.pedantic(function, arguments, named, rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("module", ["pytest", "pytest_moeperf.plugin", "pytest_moeperf.cli"])
def test_import(benchmark, folder, module):
    """The plugin imports pytest; the difference is its own."""
    repeat(benchmark, run, "-c", f"import {module}", cwd=folder)


def test_collect_without_the_plugin(benchmark, folder):
    repeat(benchmark, collect, folder, "-p", "no:moeperf")


def test_collect_with_the_plugin(benchmark, folder):
    repeat(benchmark, collect, folder)


def test_collect_the_suites(benchmark):
    repeat(benchmark, collect, SUITES.parent, SUITES.name, "--gpu", "cpu")
