"""Making a bundle: the wheels of a lock are downloaded for another machine, and checked."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from pytest_moeperf.errors import InstallError, StorageError, UsageError
from pytest_moeperf.installs.bundle import Bundle, Wheel, write_bundle
from pytest_moeperf.installs.child import ToolError
from pytest_moeperf.installs.environment import FATAL
from pytest_moeperf.installs.locked import further_indexes, unobtainable
from pytest_moeperf.installs.piptool import download_wheels
from pytest_moeperf.installs.sources import pip_environment, pip_sources

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_moeperf.installs.bundle import Selection
    from pytest_moeperf.installs.child import Progress
    from pytest_moeperf.installs.lockfile import EngineLock, Pin

__all__ = ["make_bundle"]


def make_bundle(
    lock: EngineLock, selection: Selection, *, out: Path, on_progress: Progress
) -> Bundle:
    """Fill the directory `out`, which must not be there yet, or leave it untouched.

    Raises:
        UsageError: There is something at `out` already.
        InstallError: A wheel could not be had, or is not what the lock pins.
        StorageError: The disk is full, or not writable.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {str(out)!r}: there is something already; name a new directory")
    try:
        with _unfinished(out) as directory:
            _download(lock, selection.packed, directory, on_progress)
            bundle = _describe(lock, selection, directory)
            write_bundle(bundle, directory)
            # An empty directory gives way, anything else is in the way.
            directory.rename(out)
    except OSError as error:
        raise StorageError(f"{out}: {error.strerror or error}") from error
    return bundle


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """A directory beside `out`, on the same disk; removed unless it was renamed."""
    directory = out.parent / f".{out.name}-{secrets.token_hex(4)}"
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _download(
    lock: EngineLock, pins: tuple[Pin, ...], directory: Path, on_progress: Progress
) -> None:
    started = time.monotonic()

    def report(collected: int) -> None:
        # Tens, so that a log gets ten lines and not hundreds.
        count = f"{collected // 10 * 10} of {len(pins)}"
        on_progress(f"downloading packages, {count}", time.monotonic() - started)

    sources = pip_sources()
    failures: list[ToolError] = []
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch, "wanted.txt")
        wanted.write_text("".join(f"{pin.requirement}\n" for pin in pins), encoding="utf-8")
        for index in further_indexes(lock, sources):
            try:
                return download_wheels(
                    wanted,
                    directory,
                    python=lock.python,
                    glibc=lock.glibc,
                    environ=pip_environment(sources, further_index=index),
                    on_collected=report,
                )
            except ToolError as failure:
                failures.append(failure)
                if any(text in str(failure) for text in FATAL):
                    raise StorageError(f"{directory.parent}: {failure}") from failure
    raise unobtainable(lock, failures) from failures[-1]


def _describe(lock: EngineLock, selection: Selection, directory: Path) -> Bundle:
    """Describe what was downloaded, which must be one accepted file for each pin."""
    wheels = {wheel.name: wheel for wheel in map(_wheel, sorted(directory.iterdir()))}
    for pin in selection.packed:
        wheel = wheels.get(pin.name)
        if wheel is None or wheel.sha256 not in pin.sha256:
            raise InstallError(f"{lock.label}: {pin.name}=={pin.version} was not downloaded")
    return Bundle(
        engine=lock.engine,
        distribution=lock.distribution,
        version=lock.version,
        device=lock.device,
        python=lock.python,
        platform=lock.platform,
        glibc=lock.glibc,
        lock_sha256=lock.sha256,
        wheels=tuple(wheels[pin.name] for pin in selection.packed),
        on_host=selection.on_host,
        left_out=selection.left_out,
    )


def _wheel(path: Path) -> Wheel:
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
    except InvalidWheelFilename as error:
        raise InstallError(f"{path.name}: {error}") from error
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Wheel(
        name=canonicalize_name(name),
        version=str(version),
        file=path.name,
        sha256=sha256,
        size_bytes=path.stat().st_size,
    )
