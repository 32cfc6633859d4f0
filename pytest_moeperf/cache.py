"""The user cache that engine environments and generated models live in."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.errors import StorageError
from pytest_moeperf.files import lock_if_free

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["cache_root", "exclusive", "exclusive_if_free"]

_POLL_S = 0.1


def cache_root() -> Path:
    """Return the directory given by `MOEPERF_CACHE`, or else the user's cache directory."""
    if given := os.environ.get("MOEPERF_CACHE"):
        return Path(given).expanduser().absolute()
    from platformdirs import user_cache_path  # noqa: PLC0415 - not needed to load the plugin

    return user_cache_path("pytest-moeperf")


@contextmanager
def exclusive(path: Path, *, on_wait: Callable[[float], None] | None = None) -> Iterator[int]:
    """Hold the lock file `path`, and yield its descriptor.

    A child process that inherits the descriptor keeps the lock until it ends too: what an
    orphan still writes to is never taken for free. `on_wait` gets the seconds waited so far.

    Raises:
        StorageError: The lock file cannot be written.
    """
    with _opened(path) as descriptor:
        started = time.monotonic()
        while not lock_if_free(descriptor):
            if on_wait is not None:
                on_wait(time.monotonic() - started)
            time.sleep(_POLL_S)
        yield descriptor


@contextmanager
def exclusive_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` if nobody else does, and yield whether."""
    with _opened(path) as descriptor:
        yield lock_if_free(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {error.strerror}; MOEPERF_CACHE sets another place"
        ) from error
    try:
        yield descriptor
    finally:
        # Closing frees the lock only when no child holds it; LOCK_UN would free it under them.
        os.close(descriptor)
