"""Files that are written as a whole or not at all, and errors that say why not."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.document import printable
from pytest_moeperf.errors import UnwritableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "append_text",
    "ensure_file_writable",
    "ensure_writable",
    "lock_if_free",
    "locked",
    "reason_of",
    "write_all",
    "write_text_atomic",
]

_UNFINISHED = re.compile(r"[.].+[.]json[.][0-9a-f]{8}[.]tmp")
"""Names of files that `_staged` writes; below a locked folder they are rests of a crash."""
_WITHOUT_LOCKS = frozenset({errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL})
"""How a network file system says that it cannot lock a folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one who changes what is below `folder`; waits for another process.

    The folder itself is locked, so that no lock file ends up in a repository. What a process
    left that was killed while it wrote is removed.
    """
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _explained(folder):
            if _lock(descriptor):
                for leftover in folder.rglob(".*.tmp"):
                    if _UNFINISHED.fullmatch(leftover.name):
                        leftover.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Wait for the lock; False where there are none, which loses a start only to a race."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        return False
    return True


def lock_if_free(descriptor: int) -> bool:
    """Lock an open file; False, at once, where somebody else holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_text_atomic(path: Path, text: str) -> None:
    """Replace the file as a whole, folders made as needed; UnwritableError leaves the old one."""
    write_all({path: text})


def append_text(path: Path, text: str) -> None:
    """Add to a file that others write to as well, such as a CI job's summary."""
    with _explained(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def ensure_writable(folder: Path) -> None:
    """Raise UnwritableError now, not after the measurement; leaves an empty folder at most."""
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _staged(folder / "probe", "").unlink(missing_ok=True)


def ensure_file_writable(path: Path) -> None:
    """`ensure_writable` for one file, which may be a pipe or a device."""
    with _explained(path):
        place = _place(path, below=None)
        if place is None and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if place is not None:
        ensure_writable(place.parent)


def write_all(texts: Mapping[Path, str], *, below: Path | None = None) -> None:
    """Prepare every file, then replace each; UnwritableError leaves what was not replaced.

    A link stays, and the file that it leads to is replaced; a pipe or a device gets the text. With
    `below`, a link to a file is replaced, and nothing is written through one that leads out of it.
    """
    places: dict[Path, Path | None] = {}
    staged: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            with _explained(path):
                _check_inside(path, below)
                places[path] = place = _place(path, below=below)
                if place is not None:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    staged[path] = _staged(place, text)
        for path, place in places.items():
            with _explained(path):
                if place is None:
                    _pour(path, texts[path])
                else:
                    staged[path].replace(place)
                    del staged[path]
        for folder in {place.parent for place in places.values() if place is not None}:
            _sync(folder)
    finally:
        for leftover in staged.values():
            leftover.unlink(missing_ok=True)


def _place(path: Path, *, below: Path | None) -> Path | None:
    """The file to replace; None where `path` is written as it is, which must never be replaced."""
    place = path if below is not None else Path(os.path.realpath(path))
    try:
        found = path.lstat() if below is not None else path.stat()
    except FileNotFoundError:
        return place
    mode = found.st_mode
    if stat.S_ISLNK(mode):
        return place
    if stat.S_ISREG(mode):
        # A file that was removed while it is open has no name: /dev/stdout may lead to one.
        return place if place.exists() and place.samefile(path) else None
    if below is None and (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise UnwritableError(f"cannot write {printable(str(path))}: it is not a file")


def _pour(path: Path, text: str) -> None:
    """Write to what is there, without O_CREAT: it may have gone meanwhile."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
        file.write(text.encode())


def _check_inside(path: Path, root: Path | None) -> None:
    # A pull request can add a folder that is a link to elsewhere.
    if root is not None and not path.parent.resolve().is_relative_to(root.resolve()):
        raise UnwritableError(
            f"cannot write {printable(str(path))}: a link leads out of {printable(str(root))}"
        )


def _staged(path: Path, text: str) -> Path:
    """A sibling of `path` with the text safely on disk; removed again if that fails."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # Not tempfile: its files are private, and these are for everyone whom the umask allows.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(text.encode())
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync(folder: Path) -> None:
    """Let new names survive a loss of power, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnwritableError(f"cannot write {printable(str(path))}: {reason_of(error)}") from error


def reason_of(error: OSError) -> str:
    """What a reader can do something about, in a few words."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "the disk is full; free some space and run again"
        case errno.EACCES | errno.EPERM:
            return "no permission"
        case errno.EROFS:
            return "the file system is read-only"
        case errno.ENOTDIR | errno.EEXIST:
            return "a file is in the place of one of its folders"
        case _:
            return error.strerror or type(error).__name__
