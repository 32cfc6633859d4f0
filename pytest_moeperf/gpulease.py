"""Which GPUs belong to whom: locks that all sessions of a machine see, one a GPU."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.errors import StorageError
from pytest_moeperf.files import lock_if_free

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["GpuLease", "holder", "lease_folder"]

FOLDER_MODE, FILE_MODE = 0o1777, 0o666
"""Every user of the machine must be able to take a lock; none may remove another's."""


def lease_folder() -> Path:
    """The folder that all sessions of the machine share."""
    return Path(tempfile.gettempdir()) / "moeperf-gpus"


class GpuLease:
    """The right to use some GPUs, all of them or none.

    It belongs to everything that inherits its descriptors: handed to the guardian of a server, it
    lasts until that server is gone, even when the session is killed. The kernel ends it with them.
    """

    def __init__(self, uuids: Iterable[str], descriptors: Iterable[int]) -> None:
        """Own these open descriptors; `take` makes one."""
        self.uuids = tuple(uuids)
        self.descriptors = tuple(descriptors)

    @classmethod
    def take(cls, uuids: Iterable[str], *, folder: Path | None = None) -> GpuLease | None:
        """Take all of these GPUs at once; None if somebody has one of them.

        Raises:
            StorageError: The folder of the locks cannot be written.
        """
        wanted = tuple(uuids)
        place = lease_folder() if folder is None else folder
        with contextlib.ExitStack() as undo:
            descriptors = []
            for uuid in wanted:
                descriptor = _opened(place / f"{uuid}.lock")
                undo.callback(os.close, descriptor)
                if not lock_if_free(descriptor):
                    return None
                descriptors.append(descriptor)
            for descriptor in descriptors:
                _note(descriptor)
            undo.pop_all()
        return cls(wanted, descriptors)

    def release(self) -> None:
        """Give up what this process holds; a guardian that lives still keeps its part."""
        # Closed, never unlocked: that would take it from the guardian, too.
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = ()


def holder(uuid: str, *, folder: Path | None = None) -> int | None:
    """The session that took a GPU last, by its process; None if that is not known."""
    path = (lease_folder() if folder is None else folder) / f"{uuid}.lock"
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):
        return None


def _opened(path: Path) -> int:
    try:
        _make_folder(path.parent)
        # Without O_CREAT first: where anyone may write, Linux refuses it for another's file.
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, FILE_MODE)
            os.fchmod(descriptor, FILE_MODE)  # whatever the umask took away
            return descriptor
        return os.open(path, flags)
    except OSError as error:
        raise StorageError(f"{path}: the GPU cannot be locked: {error.strerror}") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir()
    except FileExistsError:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise
    else:
        folder.chmod(FOLDER_MODE)


def _note(descriptor: int) -> None:
    """Say who has it; only to be shown to those who wait."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode("ascii"), 0)
