"""What pyproject.toml promises: packages that are used, and Pythons that CI runs."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NEEDED = {canonicalize_name(Requirement(each).name) for each in PROJECT["dependencies"]}
STARTED = {"pip"}
"""Not imported, but run as a program."""
ENGINES_BRING = {"sglang", "torch", "transformers", "vllm"}


@cache
def imported():
    """Top names of what the package imports, inside functions too."""
    nodes = [
        node
        for path in (ROOT / "pytest_moeperf").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
    ]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {module.partition(".")[0] for module in modules}


@cache
def brought():
    """The distributions that bring a module, by its name; it takes a second to look."""
    return {
        module: {canonicalize_name(name) for name in names}
        for module, names in packages_distributions().items()
    }


def test_users_get_no_package_that_is_not_used():
    used = {name for module in imported() for name in brought().get(module, ())}
    assert NEEDED - used == STARTED


def test_users_get_every_package_that_is_used():
    ours = {"pytest_moeperf", "moeperf_probe"}
    foreign = imported() - sys.stdlib_module_names - ENGINES_BRING - ours
    assert [module for module in foreign if not NEEDED & brought().get(module, set())] == []


def test_ci_runs_every_python_that_is_promised():
    prefix = "Programming Language :: Python :: "
    promised = {
        each.removeprefix(prefix) for each in PROJECT["classifiers"] if each.startswith(prefix)
    }
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    assert set(re.findall(r'python.*: "(3\.\d+)"', workflow)) == promised
