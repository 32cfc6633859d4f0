"""Engine environments on disk: built once from a lock, finished or not there at all.

An environment counts as finished when its marker file is there, which is written last. What has
no marker is the rest of an interrupted build or removal; the next build deletes it.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.cache import cache_root, exclusive, exclusive_if_free
from pytest_moeperf.errors import InstallError, StorageError, UsageError
from pytest_moeperf.installs.interpreter import probe_interpreter
from pytest_moeperf.installs.sources import pip_sources, uv_environment
from pytest_moeperf.installs.uvtool import Progress, UvError, run_uv
from pytest_moeperf.records import EngineInstall

if TYPE_CHECKING:
    from pytest_moeperf.installs.lockfile import EngineLock

__all__ = [
    "Environment",
    "build_environment",
    "engines_directory",
    "read_environment",
    "remove_environment",
]

_MARKER = "moeperf-engine.json"
_MARKER_SCHEMA = 1
_FATAL = ("No space left on device", "Permission denied", "Read-only file system")
"""Failures that another package source would not mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """One finished engine environment."""

    install: EngineInstall
    path: Path
    device: str
    """`cpu` or `cuda`."""
    lock_sha256: str
    built_at: str
    """UTC, ISO 8601."""
    size_bytes: int


def engines_directory() -> Path:
    """Return the directory that has one subdirectory per environment."""
    return cache_root() / "engines"


def read_environment(path: Path) -> Environment | None:
    """Read a finished environment; None for anything else, also where its Python is gone."""
    python = path / "bin" / "python"
    try:
        marker = json.loads((path / _MARKER).read_text(encoding="utf-8"))
        if marker["schema"] != _MARKER_SCHEMA or not os.access(python, os.X_OK):
            return None
        return Environment(
            install=EngineInstall(
                engine=marker["engine"],
                distribution=marker["distribution"],
                version=marker["version"],
                python=python,
            ),
            path=path,
            device=marker["device"],
            lock_sha256=marker["lock_sha256"],
            built_at=marker["built_at"],
            size_bytes=marker["size_bytes"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def build_environment(lock: EngineLock, *, directory: Path, on_progress: Progress) -> Environment:
    """Return the environment of `lock` below `directory`, and build it if it is not there.

    Raises:
        InstallError: The packages could not be had, or are for another machine.
        StorageError: The disk is full, or not writable.
    """
    target = directory / lock.environment_name
    if found := read_environment(target):
        return found
    lock.check_platform()

    def waiting(elapsed_s: float) -> None:
        on_progress("waiting for another process that builds or removes it", elapsed_s)

    with exclusive(_lock_file(target), on_wait=waiting) as held:
        if found := read_environment(target):
            return found
        try:
            _sweep(directory, keep=target)
            _discard(target)
            _populate(lock, target, held_lock=held, on_progress=on_progress)
            return _finish(lock, target)
        except BaseException as error:
            # Whatever resists removal has no marker and is swept by the next build.
            shutil.rmtree(target, ignore_errors=True)
            if isinstance(error, OSError):
                raise StorageError(f"{target}: {error.strerror or error}") from error
            raise


def remove_environment(environment: Environment) -> None:
    """Delete an environment; interrupted, it is unfinished and the next build deletes the rest.

    Raises:
        StorageError: It belongs to someone else.
    """
    with exclusive(_lock_file(environment.path)):
        try:
            _discard(environment.path)
        except OSError as error:
            raise StorageError(f"{environment.path}: {error.strerror or error}") from error


def _lock_file(target: Path) -> Path:
    # Beside the environment, and never deleted: another process may be waiting for this file.
    return target.parent / f".{target.name}.lock"


def _populate(lock: EngineLock, target: Path, *, held_lock: int, on_progress: Progress) -> None:
    started = time.monotonic()
    sources = pip_sources()

    def report(phase: str | None) -> None:
        on_progress(phase or "resolving packages", time.monotonic() - started)

    def uv(*arguments: str, further_index: str | None = None) -> None:
        run_uv(
            arguments,
            # Not the caller's directory: settings of a project there would have a say.
            cwd=target.parent,
            environ=uv_environment(sources, further_index=further_index),
            held_lock=held_lock,
            on_progress=report,
        )

    same = ".".join(map(str, sys.version_info[:2])) == lock.python
    try:
        uv("venv", "--no-project", "--python", sys.executable if same else lock.python, str(target))
    except UvError as failure:
        raise InstallError(
            f"{lock.label}: no environment with Python {lock.python}: {failure}"
        ) from failure
    install = (
        *("pip", "install", "--python", str(target / "bin" / "python")),
        # Engines start twice as slowly without, on every start where bytecode is not written.
        "--compile-bytecode",
        *("--no-deps", "--require-hashes", "--requirements", str(lock.path)),
        # Every index may serve every package: the hashes decide what is accepted.
        *("--index-strategy", "unsafe-best-match"),
        *(["--no-index"] if sources.offline else []),
    )
    failures: list[UvError] = []
    for index in dict.fromkeys((None, None if sources.offline else lock.fallback_index)):
        try:
            return uv(*install, further_index=index)
        except UvError as failure:
            failures.append(failure)
            if any(text in str(failure) for text in _FATAL):
                raise StorageError(f"{target}: {failure}") from failure
    raise InstallError(_explain(lock, failures)) from failures[-1]


def _explain(lock: EngineLock, failures: list[UvError]) -> str:
    said = f"{lock.label} could not be built. With what pip is configured with: {failures[0]}."
    if len(failures) > 1:
        said += f" With {lock.fallback_index} besides: {failures[-1]}."
    return (
        f"{said} Check the network, or name a place that has the missing package by "
        "PIP_FIND_LINKS=DIR or PIP_EXTRA_INDEX_URL=URL, or use a Python that has the engine "
        f"by --engine {lock.engine}@/path/to/python"
    )


def _finish(lock: EngineLock, target: Path) -> Environment:
    try:
        found = probe_interpreter(target / "bin" / "python", lock.engine)
    except UsageError as error:
        raise InstallError(f"{lock.label}: the environment does not work: {error}") from error
    if (found.distribution, found.version) != (lock.distribution, lock.version):
        raise InstallError(f"{lock.label}: {lock.path} installs {found.label} instead")
    marker = {
        "schema": _MARKER_SCHEMA,
        "engine": lock.engine,
        "distribution": lock.distribution,
        "version": lock.version,
        "device": lock.device,
        "lock_sha256": lock.sha256,
        "built_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "size_bytes": _size_bytes(target),
    }
    unfinished = target / f"{_MARKER}.tmp"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(marker, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(target / _MARKER)
    environment = read_environment(target)
    if environment is None:
        raise InstallError(f"{target}: the finished environment cannot be read back")
    return environment


def _size_bytes(path: Path) -> int:
    return sum(
        (Path(parent) / name).lstat().st_size
        for parent, _, names in os.walk(path)
        for name in names
    )


def _sweep(directory: Path, *, keep: Path) -> None:
    """Delete the rests of interrupted builds and removals that no process works on."""
    for path in directory.iterdir():
        if path == keep or not path.is_dir() or (path / _MARKER).exists():
            continue
        with exclusive_if_free(_lock_file(path)) as free:
            if free and not (path / _MARKER).exists():
                _discard(path)


def _discard(path: Path) -> None:
    if path.exists():
        # First, so that a half-deleted environment does not count as finished.
        (path / _MARKER).unlink(missing_ok=True)
        shutil.rmtree(path)
