"""What the actions of `moeperf baseline` have in common."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf import store
from pytest_moeperf.cli import values
from pytest_moeperf.document import printable
from pytest_moeperf.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

__all__ = ["add_folder", "add_targets", "confirmed", "selected", "today"]

ROOT = Path("baselines")


def today() -> str:
    """The day that expiries are held against: UTC, ISO 8601."""
    return dt.datetime.now(dt.UTC).date().isoformat()


def add_folder(action: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup) -> None:
    """Declare `--baseline-dir`."""
    action.add_argument(
        "--baseline-dir",
        type=values.folder,
        default=ROOT,
        metavar="DIR",
        help="where baselines are stored (default: baselines)",
    )


def add_targets(action: argparse.ArgumentParser, *, default: str = "all") -> None:
    """Declare the baselines that an action is about; `default` says what none means."""
    action.add_argument(
        "targets",
        nargs="*",
        type=values.text,
        metavar="PATH|CELL",
        help=f"a file, a folder, or a cell or the beginning of its name (default: {default})",
    )


def selected(root: Path, targets: Sequence[str]) -> Iterator[Path]:
    """The files that `targets` name; UsageError for one that names none."""
    for target in targets or [str(root)]:
        path = Path(target)
        if path.is_dir():
            yield from store.find(path)
        elif path.exists():
            yield path
        else:
            yield from _of_cell(root, target)


def _of_cell(root: Path, name: str) -> Sequence[Path]:
    if not root.is_dir():
        raise UsageError(
            f"{name!r} is neither a path nor a cell: there is no folder {printable(str(root))}; "
            "give the one that holds baselines as --baseline-dir"
        )
    # By path and not by content, so that one bad file does not hide the others.
    found = [
        path
        for path in store.find(root)
        for parts in (path.relative_to(root).with_suffix("").parts,)
        if any("/".join(parts[first:]).startswith(name) for first in (0, 2))
    ]
    if not found:
        raise UsageError(
            f"{name!r} is neither a path nor a cell in {printable(str(root))}; "
            f"`moeperf baseline show {printable(str(root))}` lists the cells"
        )
    return found


def confirmed(question: str, *, yes: bool) -> bool:
    """Ask before anything is written; without a terminal only `--yes` is an answer."""
    if yes:
        return True
    if not sys.stdin.isatty():
        print(f"{question} Nothing was written: there is no terminal to ask on; add --yes")
        return False
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() in {"y", "yes"}:
        return True
    print("nothing was written")
    return False
