"""An environment from a lock: every package from where pip would look, checked by its hash."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pytest_moeperf.errors import InstallError, StorageError
from pytest_moeperf.installs.child import ToolError
from pytest_moeperf.installs.environment import FATAL, Recipe, Uv
from pytest_moeperf.installs.sources import pip_sources, uv_environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_moeperf.installs.lockfile import EngineLock
    from pytest_moeperf.installs.sources import PackageSources

__all__ = ["further_indexes", "lock_recipe", "unobtainable"]


def lock_recipe(lock: EngineLock) -> Recipe:
    """Describe the environment that has all packages of `lock`, and nothing else."""

    def populate(target: Path, uv: Uv) -> None:
        lock.check_platform()
        _create(lock, target, uv)
        _install(lock, target, uv)

    return Recipe(
        engine=lock.engine,
        distribution=lock.distribution,
        version=lock.version,
        device=lock.device,
        lock_sha256=lock.sha256,
        directory_name=lock.environment_name,
        populate=populate,
    )


def further_indexes(lock: EngineLock, sources: PackageSources) -> Iterator[str | None]:
    """What to look in beside `sources`, one try each: first nothing, then the lock's own index."""
    yield None
    if lock.fallback_index and not sources.offline:
        yield lock.fallback_index


def unobtainable(lock: EngineLock, failures: list[ToolError]) -> InstallError:
    """Tell what each try of `further_indexes` met, and what can be done."""
    said = (
        f"{lock.label}: not all of its packages can be had. "
        f"With what pip is configured with: {failures[0]}."
    )
    if len(failures) > 1:
        said += f" With {lock.fallback_index} besides: {failures[-1]}."
    return InstallError(
        f"{said} Check the network, or name a place that has the missing package by "
        "PIP_FIND_LINKS=DIR or PIP_EXTRA_INDEX_URL=URL, or use a Python that has the engine "
        f"by --engine {lock.engine}@/path/to/python"
    )


def _create(lock: EngineLock, target: Path, uv: Uv) -> None:
    same = ".".join(map(str, sys.version_info[:2])) == lock.python
    python = sys.executable if same else lock.python
    try:
        uv(
            *("venv", "--no-project", "--python", python, str(target)),
            environ=uv_environment(pip_sources()),
        )
    except ToolError as failure:
        raise InstallError(
            f"{lock.label}: no environment with Python {lock.python}: {failure}"
        ) from failure


def _install(lock: EngineLock, target: Path, uv: Uv) -> None:
    sources = pip_sources()
    failures: list[ToolError] = []
    for index in further_indexes(lock, sources):
        try:
            return uv(
                *("pip", "install", "--python", str(target / "bin" / "python")),
                # Engines start twice as slowly without, wherever bytecode is not written.
                "--compile-bytecode",
                *("--no-deps", "--require-hashes", "--requirements", str(lock.path)),
                # Every index may serve every package: the hashes decide what is accepted.
                *("--index-strategy", "unsafe-best-match"),
                *(["--no-index"] if sources.offline else []),
                environ=uv_environment(sources, further_index=index),
            )
        except ToolError as failure:
            failures.append(failure)
            if any(text in str(failure) for text in FATAL):
                raise StorageError(f"{target}: {failure}") from failure
    raise unobtainable(lock, failures) from failures[-1]
