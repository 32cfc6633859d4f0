"""Baselines on disk: read, queue what is recorded, write once.

A file is replaced as a whole or not at all, and a flush first stages every file and only then
replaces the first one, so a full disk leaves all old files as they were.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import secrets
import stat
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from pytest_moeperf.baseline import Baseline, Gate, Recording, decode, encode
from pytest_moeperf.document import printable
from pytest_moeperf.errors import BaselineError, StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = [
    "Baseline",
    "BaselineWriter",
    "Change",
    "Gate",
    "Recording",
    "append_text",
    "baseline_path",
    "ensure_writable",
    "find",
    "load",
    "load_placed",
    "read",
    "schema",
    "write_text_atomic",
]

_MAX_BYTES = 4 * 1024 * 1024
"""Ten starts of a hundred metrics and ten repeats are below 200 kB."""
_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", re.ASCII)
_PLACED_DEPTH = 3
"""Hardware, engine, and a cell of at least one folder and a file."""


def baseline_path(root: Path, *, hardware: str, engine: str, cell: str) -> Path:
    """`<root>/<hardware>/<engine>/<cell>.json`; UsageError for a name that is no plain path."""
    parts = (hardware, engine, *cell.split("/"))
    for part in parts:
        if not _COMPONENT.fullmatch(part):
            raise UsageError(
                f"{part!r} in {'/'.join(parts)!r} cannot name a baseline: use letters, digits "
                "and . _ = + - and begin with a letter or digit"
            )
    return root.joinpath(*parts[:-1], f"{parts[-1]}.json")


@functools.cache
def schema(name: str) -> Mapping[str, Any]:
    """A JSON Schema that ships with the package: `baseline-1` or `run-1`."""
    text = resources.files("pytest_moeperf").joinpath("schemas", f"{name}.json").read_text("utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def read(path: Path) -> Baseline | None:
    """The baseline in a file; None where there is none. BaselineError for any other content."""
    text = _read_text(path)
    if text is None:
        return None
    return decode(text, source=printable(str(path)), schema=schema("baseline-1"))


def load(path: Path, *, cell: str) -> Baseline | None:
    """`read`, and BaselineError where the file holds another cell than `cell`."""
    baseline = read(path)
    if baseline is not None and baseline.cell != cell:
        raise BaselineError(
            f"{printable(str(path))}: holds the cell {printable(baseline.cell)}, not {cell}; "
            "its path must be its cell"
        )
    return baseline


def load_placed(root: Path, path: Path) -> Baseline:
    """The baseline at `path`, which must be where its content says that it belongs."""
    shown = printable(str(path))
    parts = path.relative_to(root).with_suffix("").parts
    if len(parts) <= _PLACED_DEPTH:
        raise BaselineError(f"{shown}: not at <hardware>/<engine>/<suite>/<cell>.json")
    hardware, engine, *cell = parts
    baseline = load(path, cell="/".join(cell))
    if baseline is None:
        raise BaselineError(f"{shown}: a link to nothing")
    stated = (baseline.fingerprint.hardware, baseline.fingerprint.engine)
    if stated != (hardware, engine):
        raise BaselineError(
            f"{shown}: was recorded on {'/'.join(stated)}; its path must say the same"
        )
    return baseline


def find(root: Path) -> tuple[Path, ...]:
    """Every baseline file below `root`, sorted; UsageError where there is no such folder."""
    if not root.is_dir():
        raise UsageError(f"no folder {printable(str(root))}: give the one that holds baselines")
    return tuple(sorted(root.rglob("*.json")))


def _read_text(path: Path) -> str | None:
    shown = printable(str(path))
    try:
        # A pull request can add a link to a device or a pipe; neither may be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BaselineError(f"{shown}: not a file")
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {shown}: {_reason(error)}") from error
    if len(content) > _MAX_BYTES:
        raise BaselineError(f"{shown}: larger than {_MAX_BYTES // 1024**2} MiB, not a baseline")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BaselineError(f"{shown}: not JSON: byte {error.start} is not UTF-8") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One baseline file that a flush writes."""

    path: Path
    cell: str
    starts_before: int
    """0 for a new file."""
    starts: int
    before: str | None
    """The old text in canonical form; None for a new file."""
    after: str

    @property
    def label(self) -> str:
        """`new, 1 start: <path>` or `2 → 3 starts: <path>`."""
        plural = "" if self.starts == 1 else "s"
        if self.before is None:
            return f"new, {self.starts} start{plural}: {self.path}"
        return f"{self.starts_before} → {self.starts} start{plural}: {self.path}"


class BaselineWriter:
    """Queues recordings; nothing is written before `flush`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._queue: list[Recording] = []
        self._joined: dict[Path, Baseline] = {}

    def add(self, recording: Recording) -> None:
        """Queue a start; UsageError at once where it cannot join the cell's baseline."""
        for repeat in recording.start.repeats:
            if not repeat.valid:
                codes = ", ".join(finding.code for finding in repeat.findings)
                raise UsageError(
                    f"cannot record {recording.cell}: the repeat with seed {repeat.seed} is "
                    f"invalid ({codes}); measure again"
                )
        path = self._path(recording)
        base = self._joined.get(path) or load(path, cell=recording.cell)
        self._joined[path] = _join(base, recording, path)
        self._queue.append(recording)

    def changes(self) -> tuple[Change, ...]:
        """What `flush` would write now, sorted by path."""
        # From the files as they are now: another session may have added a start meanwhile.
        stored: dict[Path, Baseline | None] = {}
        joined: dict[Path, Baseline] = {}
        for recording in self._queue:
            path = self._path(recording)
            if path not in stored:
                stored[path] = load(path, cell=recording.cell)
            joined[path] = _join(joined.get(path) or stored[path], recording, path)
        return tuple(_change(path, stored[path], joined[path]) for path in sorted(joined))

    def flush(self) -> tuple[Change, ...]:
        """Write all files or, where one cannot be staged, none; StorageError says why."""
        changes = self.changes()
        _write_all({change.path: change.after for change in changes}, below=self.root)
        self._queue.clear()
        self._joined.clear()
        return changes

    def _path(self, recording: Recording) -> Path:
        return baseline_path(
            self.root,
            hardware=recording.fingerprint.hardware,
            engine=recording.fingerprint.engine,
            cell=recording.cell,
        )


def _join(base: Baseline | None, recording: Recording, path: Path) -> Baseline:
    if base is None:
        return Baseline.begun(recording)
    return base.extended(recording, source=printable(str(path)))


def _change(path: Path, before: Baseline | None, after: Baseline) -> Change:
    text = encode(after)
    # What cannot be read back must not replace what can.
    decode(text, source=printable(str(path)), schema=schema("baseline-1"))
    return Change(
        path=path,
        cell=after.cell,
        starts_before=len(before.starts) if before else 0,
        starts=len(after.starts),
        before=encode(before) if before else None,
        after=text,
    )


def write_text_atomic(path: Path, text: str) -> None:
    """Replace the file as a whole, folders made as needed; StorageError leaves the old one."""
    _write_all({path: text})


def append_text(path: Path, text: str) -> None:
    """Add to a file that others write to as well, such as a CI job's summary."""
    with _explained(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def ensure_writable(folder: Path) -> None:
    """Raise StorageError now rather than after the measurement; leaves an empty folder at most."""
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _staged(folder / "probe", "").unlink()


def _write_all(texts: Mapping[Path, str], *, below: Path | None = None) -> None:
    staged: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            with _explained(path):
                _check_inside(path, below)
                path.parent.mkdir(parents=True, exist_ok=True)
                staged[path] = _staged(path, text)
        for path in texts:
            with _explained(path):
                staged[path].replace(path)
                del staged[path]
    finally:
        for leftover in staged.values():
            leftover.unlink(missing_ok=True)


def _check_inside(path: Path, root: Path | None) -> None:
    # A pull request can add a folder that is a link to elsewhere.
    if root is not None and not path.parent.resolve().is_relative_to(root.resolve()):
        raise StorageError(
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


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {printable(str(path))}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
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
