"""Baselines on disk: read, queue what is recorded, write once.

A file is replaced as a whole or not at all, and a flush first stages every file and only then
replaces the first one, so a full disk leaves all old files as they were. Who writes holds the
lock of the folder and reads the files anew, so that two sessions lose nothing of each other.
"""

from __future__ import annotations

import functools
import json
import os
import stat
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_moeperf.baseline import Baseline
from pytest_moeperf.baseline_format import decode, encode
from pytest_moeperf.document import printable
from pytest_moeperf.errors import BaselineError, StorageError, UnwritableError, UsageError
from pytest_moeperf.files import (
    locked,
    reason_of,
    write_all,
)
from pytest_moeperf.identity import PLAIN_NAME
from pytest_moeperf.waiver import Waiver, decode_waivers, encode_waivers
from pytest_moeperf.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_moeperf.baseline import Recording

__all__ = [
    "WAIVERS",
    "BaselineWriter",
    "Change",
    "baseline_path",
    "decoded",
    "find",
    "load",
    "load_placed",
    "locked",
    "read",
    "read_waivers",
    "remove",
    "schema",
    "write_baselines",
    "write_waivers",
]

WAIVERS = "waivers.json"
"""The one file below a folder of baselines that is none."""

_MAX_BYTES = 4 * 1024 * 1024
"""Ten starts of a hundred metrics and ten repeats are below 200 kB."""
_PLACED_DEPTH = 3
"""Hardware, engine, and a cell of at least one folder and a file."""


def baseline_path(root: Path, *, hardware: str, engine: str, cell: str) -> Path:
    """`<root>/<hardware>/<engine>/<cell>.json`; UsageError for a name that is no plain path."""
    parts = (hardware, engine, *cell.split("/"))
    for part in parts:
        if not PLAIN_NAME.fullmatch(part):
            raise UsageError(
                f"{part!r} in {'/'.join(parts)!r} cannot name a baseline: use letters, digits "
                "and . _ = + - and begin with a letter or digit"
            )
    return root.joinpath(*parts[:-1], f"{parts[-1]}.json")


@functools.cache
def schema(name: str) -> Mapping[str, Any]:
    """A JSON Schema that ships with the package: `baseline-2`, `waivers-1` or `run-2`."""
    text = resources.files("pytest_moeperf").joinpath("schemas", f"{name}.json").read_text("utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def decoded(text: str, *, source: str) -> Baseline:
    """The baseline in a text of any format so far; BaselineError begins with `source`."""
    schemas = {version: schema(f"baseline-{version}") for version in (1, 2)}
    return decode(text, source=source, schemas=schemas)


def read(path: Path) -> Baseline | None:
    """The baseline in a file; None where there is none. BaselineError for any other content."""
    text = _read_text(path)
    if text is None:
        return None
    return decoded(text, source=printable(str(path)))


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
    """Every baseline file below `root`, sorted; UsageError where there is no such folder.

    StorageError where a folder cannot be read: what is in it would count as not there.
    """
    try:
        if not root.is_dir():
            raise UsageError(f"no folder {printable(str(root))}: give the one that holds baselines")
        names = [
            Path(folder, name)
            for folder, folders, files in os.walk(root, onerror=_raise)
            for name in (*folders, *files)
        ]
    except OSError as error:
        raise StorageError(
            f"cannot read {printable(str(error.filename))}: {reason_of(error)}"
        ) from error
    return tuple(
        sorted(path for path in names if path.name.endswith(".json") and path != root / WAIVERS)
    )


def _raise(error: OSError) -> None:
    raise error


def read_waivers(root: Path) -> tuple[Waiver, ...]:
    """What `waivers.json` excuses; nothing where there is no such file."""
    text = _read_text(root / WAIVERS)
    if text is None:
        return ()
    source = printable(str(root / WAIVERS))
    return decode_waivers(text, source=source, schema=schema("waivers-1"))


def write_waivers(root: Path, waivers: Sequence[Waiver]) -> None:
    """Replace `waivers.json`; without any it is removed."""
    if waivers:
        write_all({root / WAIVERS: encode_waivers(waivers)}, below=root)
    else:
        remove(root, [root / WAIVERS])


def write_baselines(root: Path, baselines: Iterable[Baseline]) -> None:
    """Write each to its place, all or, where one cannot be staged, none."""
    texts = {}
    for baseline in baselines:
        path = baseline_path(
            root,
            hardware=baseline.fingerprint.hardware,
            engine=baseline.fingerprint.engine,
            cell=baseline.cell,
        )
        texts[path] = _checked_text(baseline, path)
    write_all(texts, below=root)


def remove(root: Path, paths: Iterable[Path]) -> None:
    """Delete files below `root`, and the folders that they leave empty."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
            folder = path.parent
            while folder != root and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent
        except OSError as error:
            raise UnwritableError(
                f"cannot remove {printable(str(path))}: {reason_of(error)}"
            ) from error


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
        raise StorageError(f"cannot read {shown}: {reason_of(error)}") from error
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
        if self.before is None:
            return f"new, {counted(self.starts, 'start')}: {self.path}"
        return f"{self.starts_before} → {counted(self.starts, 'start')}: {self.path}"


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

    def flush(self) -> tuple[Change, ...]:
        """Write all files or, where one cannot be staged, none; StorageError says why."""
        if not self._queue:
            return ()
        with locked(self.root):
            changes = self._changes()
            write_all({change.path: change.after for change in changes}, below=self.root)
        self._queue.clear()
        self._joined.clear()
        return changes

    def _changes(self) -> tuple[Change, ...]:
        """What is to be written now, sorted by path."""
        # From the files as they are now: another session may have added a start meanwhile.
        stored: dict[Path, Baseline | None] = {}
        joined: dict[Path, Baseline] = {}
        for recording in self._queue:
            path = self._path(recording)
            if path not in stored:
                stored[path] = load(path, cell=recording.cell)
            joined[path] = _join(joined.get(path) or stored[path], recording, path)
        return tuple(_change(path, stored[path], joined[path]) for path in sorted(joined))

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
    text = _checked_text(after, path)
    return Change(
        path=path,
        cell=after.cell,
        starts_before=len(before.starts) if before else 0,
        starts=len(after.starts),
        before=encode(before) if before else None,
        after=text,
    )


def _checked_text(baseline: Baseline, path: Path) -> str:
    """The text of a file: what cannot be read back must not replace what can."""
    text = encode(baseline)
    decoded(text, source=printable(str(path)))
    return text
