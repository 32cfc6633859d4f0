"""Hooks that a suite's conftest.py may implement, and what is taken for an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pytest

from pytest_moeperf.checks import shown
from pytest_moeperf.errors import UsageError
from pytest_moeperf.records import ServerSpec


@pytest.hookspec(firstresult=True)
def pytest_moeperf_servers(
    hardware: str,
) -> Mapping[str, ServerSpec | Sequence[ServerSpec] | None] | None:
    """Name the servers that tests may ask for, on one class of hardware.

    Every name becomes a fixture: a test with the argument `moe` runs once per `--engine`, with
    the spec under that name, and once per spec where there are several. Map a name to None where
    the hardware has no such server: tests that ask for it are skipped with that reason.

    Args:
        hardware: Class of the machine, such as `cpu` or `h200`.
    """


@pytest.hookspec(firstresult=True)
def pytest_moeperf_values(hardware: str) -> Mapping[str, Sequence[object]] | None:
    """Name what else measuring tests may ask for on one class of hardware, such as workloads.

    Every name becomes a parameter: a test with the argument `burst` runs once per value under
    that name.

    Args:
        hardware: Class of the machine, such as `cpu` or `h200`.
    """


def answered_servers(answer: object) -> dict[str, Sequence[ServerSpec]]:
    """Specs by name, none where the hardware has no such server; raise UsageError."""
    hook, example = "pytest_moeperf_servers", '{"moe": ServerSpec("mini-moe")}'
    return {name: _specs(name, specs) for name, specs in _named(hook, answer, example)}


def _specs(name: str, specs: object) -> Sequence[ServerSpec]:
    if specs is None:
        return ()
    several = specs if isinstance(specs, Sequence) and not isinstance(specs, str) else (specs,)
    found = [each for each in several if isinstance(each, ServerSpec)]
    if len(found) < len(several):
        wrong = next(each for each in several if not isinstance(each, ServerSpec))
        raise UsageError(
            f"pytest_moeperf_servers returned {shown(wrong)} for {name!r}: give a ServerSpec, "
            "a list of them, or None where there is no such server"
        )
    return found


def answered_values(answer: object) -> dict[str, Iterable[object]]:
    """Values by name; raise UsageError."""
    hook, example = "pytest_moeperf_values", '{"batch": [1, 8]}'
    return {name: _values(name, values) for name, values in _named(hook, answer, example)}


def _values(name: str, values: object) -> Iterable[object]:
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise UsageError(
            f"pytest_moeperf_values returned {shown(values)} for {name!r}: give a list of values"
        )
    return values


def _named(hook: str, answer: object, example: str) -> Iterable[tuple[str, object]]:
    if answer is None:
        return ()
    if not isinstance(answer, Mapping):
        raise UsageError(f"{hook} returned {shown(answer)}: give a mapping, as in {example}")
    return answer.items()
