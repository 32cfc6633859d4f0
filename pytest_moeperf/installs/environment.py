"""Engine environments on disk: built once, from a lock or a bundle, finished or not there at all.

An environment counts as finished when its marker file is there, which is written last. What has
no marker is the rest of an interrupted build or removal; the next build deletes it.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pytest_moeperf.cache import cache_root, exclusive, exclusive_if_free
from pytest_moeperf.errors import InstallError, StorageError, UsageError
from pytest_moeperf.installs.interpreter import probe_interpreter
from pytest_moeperf.installs.uvtool import run_uv
from pytest_moeperf.records import EngineInstall

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_moeperf.installs.child import Progress

__all__ = [
    "FATAL",
    "Environment",
    "Recipe",
    "Uv",
    "build_environment",
    "engines_directory",
    "read_environment",
    "remove_environment",
]

_MARKER = "moeperf-engine.json"
_MARKER_SCHEMA = 1
FATAL = ("No space left on device", "Permission denied", "Read-only file system")
"""Failures that another package source would not mend."""


class Uv(Protocol):
    """Runs uv on the environment that is being built; ToolError where it fails."""

    def __call__(self, *arguments: str, environ: Mapping[str, str]) -> None:
        """Run it with these arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an environment is to be, and how it becomes that."""

    engine: str
    distribution: str
    version: str
    device: str
    lock_sha256: str
    directory_name: str
    """Of the environment; what differs in content must differ here."""
    populate: Callable[[Path, Uv], None]
    """Makes the environment at a path where nothing is; raises an InstallError or StorageError."""
    host: Path | None = None
    """The interpreter whose packages it sees behind its own; None where it has all it needs."""

    @property
    def label(self) -> str:
        """`vllm==0.24.0`."""
        return f"{self.distribution}=={self.version}"


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
    """Of its own files."""
    host: Path | None = None
    """As in its recipe."""


def engines_directory() -> Path:
    """Return the directory that has one subdirectory per environment."""
    return cache_root() / "engines"


def read_environment(path: Path) -> Environment | None:
    """Read a finished environment; None for anything else, also where a Python of it is gone."""
    python = path / "bin" / "python"
    try:
        marker = json.loads((path / _MARKER).read_text(encoding="utf-8"))
        host = Path(marker["host"]) if marker.get("host") else None
        pythons = [python, host] if host else [python]
        if marker["schema"] != _MARKER_SCHEMA or not all(os.access(p, os.X_OK) for p in pythons):
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
            host=host,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def build_environment(recipe: Recipe, *, directory: Path, on_progress: Progress) -> Environment:
    """Return the environment of `recipe` below `directory`, and build it if it is not there.

    Raises:
        InstallError: The packages could not be had, or are for another machine.
        StorageError: The disk is full, or not writable.
    """
    target = directory / recipe.directory_name
    if found := read_environment(target):
        return found
    started = time.monotonic()

    def report(phase: str | None) -> None:
        on_progress(phase or "resolving packages", time.monotonic() - started)

    def waiting(elapsed_s: float) -> None:
        on_progress("waiting for another process that builds or removes it", elapsed_s)

    with exclusive(_lock_file(target), on_wait=waiting) as held:
        if found := read_environment(target):
            return found
        try:
            _sweep(directory, keep=target)
            _discard(target)

            def uv(*arguments: str, environ: Mapping[str, str]) -> None:
                # Not the caller's directory: settings of a project there would have a say.
                run_uv(
                    arguments, cwd=directory, environ=environ, held_lock=held, on_progress=report
                )

            recipe.populate(target, uv)
            return _finish(recipe, target)
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


def _finish(recipe: Recipe, target: Path) -> Environment:
    try:
        found = probe_interpreter(target / "bin" / "python", recipe.engine)
    except UsageError as error:
        raise InstallError(f"{recipe.label}: the environment does not work: {error}") from error
    if (found.distribution, found.version) != (recipe.distribution, recipe.version):
        raise InstallError(f"{recipe.label}: this installs {found.label} instead")
    marker = {
        "schema": _MARKER_SCHEMA,
        "engine": recipe.engine,
        "distribution": recipe.distribution,
        "version": recipe.version,
        "device": recipe.device,
        "lock_sha256": recipe.lock_sha256,
        "built_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "size_bytes": _size_bytes(target),
        **({"host": str(recipe.host)} if recipe.host else {}),
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
