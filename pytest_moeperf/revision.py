"""The baselines of another time or place: a folder, or a commit of the repository."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf import store
from pytest_moeperf.document import printable
from pytest_moeperf.errors import StorageError, UsageError
from pytest_moeperf.waiver import decode_waivers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_moeperf.baseline import Baseline
    from pytest_moeperf.waiver import Waiver

__all__ = ["Shelf", "read_folder", "read_shelf"]

_GIT = "git:"
_NO_COMMIT = "no such commit here; fetch it first (`git fetch origin`)"
_NO_COMMIT_YET = "this repository has no commit yet; commit first, or give a folder"
_TIMEOUT_S = 60.0
_FILES = frozenset({"100644", "100755"})
"""Modes of regular files; a link in a pull request is not followed."""


@dataclass(slots=True)
class Shelf:
    """All baselines of one revision."""

    label: str
    baselines: dict[str, Baseline] = field(default_factory=dict)
    """By place: `<hardware>/<engine>/<cell>`."""
    waivers: tuple[Waiver, ...] = ()
    unreadable: list[str] = field(default_factory=list)
    """One line for each file that is no baseline in its place."""


def read_shelf(where: str, root: Path, *, since_fork: bool = False) -> Shelf:
    """Read `git:REF`, which has its baselines where `root` is, or a folder.

    With `since_fork` a commit stands for where the present one branched off it, so that what
    others merged meanwhile is not held against this change.
    """
    if not where.removeprefix(_GIT).strip():
        raise UsageError(f"{where!r} names no folder or commit; give one, such as git:origin/main")
    if where.startswith(_GIT):
        return _read_commit(where.removeprefix(_GIT), root, since_fork=since_fork)
    folder = Path(where)
    if not folder.is_dir():
        raise UsageError(
            f"{where!r} is no folder of baselines; give one, or a commit such as git:origin/main"
        )
    return read_folder(folder)


def read_folder(folder: Path) -> Shelf:
    """Read a folder of baselines as it is now; UsageError where there is none."""
    shelf = Shelf(printable(str(folder)))
    for path in store.find(folder):
        try:
            baseline = store.load_placed(folder, path)
        except StorageError as error:
            shelf.unreadable.append(str(error))
        else:
            shelf.baselines[baseline.place] = baseline
    try:
        shelf.waivers = store.read_waivers(folder)
    except StorageError as error:
        shelf.unreadable.append(str(error))
    return shelf


def _read_commit(ref: str, root: Path, *, since_fork: bool) -> Shelf:
    git = _Git.around(root, ref)
    commit = git.fork_point if since_fork else git.commit
    shelf = Shelf(f"{_GIT}{printable(ref)}")
    for path, blob in git.files(commit):
        if path != store.WAIVERS and not path.endswith(".json"):
            continue
        source = f"{shelf.label}:{printable(git.prefix + path)}"
        try:
            text = git.text(blob, source=source)
            if path == store.WAIVERS:
                schema = store.schema("waivers-1")
                shelf.waivers = decode_waivers(text, source=source, schema=schema)
                continue
            baseline = store.decoded(text, source=source)
        except StorageError as error:
            shelf.unreadable.append(str(error))
            continue
        if f"{baseline.place}.json" == path:
            shelf.baselines[baseline.place] = baseline
        else:
            shelf.unreadable.append(f"{source}: holds {baseline.place}; its path must say the same")
    return shelf


@dataclass(frozen=True, slots=True)
class _Git:
    """The repository that a folder is in, or was in, seen from one commit."""

    folder: Path
    prefix: str
    """Path of the baselines inside the repository; empty or with a slash at the end."""
    commit: str

    @classmethod
    def around(cls, root: Path, ref: str) -> _Git:
        folder = root.absolute()
        inner: list[str] = []
        while not folder.is_dir():  # the change may have removed it
            inner.insert(0, folder.name)
            folder = folder.parent
        above = cls(folder, "", "")
        prefix = above.run("rev-parse", "--show-prefix", what=f"git:{ref}").strip("\n")
        commit = above.run(
            *("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"),
            what=f"git:{ref}",
            refusal=_NO_COMMIT if above.has_commits else _NO_COMMIT_YET,
        ).strip()
        return cls(folder, prefix + "".join(f"{part}/" for part in inner), commit)

    @property
    def has_commits(self) -> bool:
        """Whether anything is checked out: a new repository has nothing to compare with."""
        return self._ran("rev-parse", "--verify", "--quiet", "HEAD").returncode == 0

    @property
    def fork_point(self) -> str:
        """The last commit that this one has in common with the branch that is checked out."""
        ran = self._ran("merge-base", self.commit, "HEAD")
        # A shallow clone has none: then the commit itself, which can only be the stricter one.
        return ran.stdout.decode().strip() or self.commit

    def files(self, commit: str) -> Iterator[tuple[str, str]]:
        """Path below the prefix and id of every regular file."""
        listed = self.run(
            *("ls-tree", "-r", "-z", "--full-tree", commit, "--"),
            *([self.prefix] if self.prefix else []),
            what=f"git:{commit}",
        )
        for entry in filter(None, listed.split("\0")):
            facts, _, path = entry.partition("\t")
            mode, kind, blob = facts.split()
            if kind == "blob" and mode in _FILES:
                yield path.removeprefix(self.prefix), blob

    def text(self, blob: str, *, source: str) -> str:
        """The content of a file."""
        return self.run("cat-file", "blob", blob, what=source)

    def run(self, *words: str, what: str, refusal: str = "") -> str:
        """What git prints; UsageError where it fails."""
        ran = self._ran(*words)
        if ran.returncode:
            said = ran.stderr.decode(errors="replace").strip().partition("\n")[0]
            raise UsageError(f"{printable(what)}: {refusal or printable(said) or 'git failed'}")
        try:
            return ran.stdout.decode()
        except UnicodeDecodeError as error:
            raise StorageError(f"{printable(what)}: byte {error.start} is not UTF-8") from error

    def _ran(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                ["git", "-C", str(self.folder), *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise UsageError(f"git cannot be run: {error}") from error
