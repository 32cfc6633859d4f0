"""`moeperf baseline check` and `diff`: what a change of baselines means, before it is merged."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pytest_moeperf.cli import baseline_options, values
from pytest_moeperf.cli.baseline_options import add_folder
from pytest_moeperf.document import printable, render
from pytest_moeperf.report import baselines as report
from pytest_moeperf.review import due, unexcused, what_changed
from pytest_moeperf.revision import read_folder, read_shelf
from pytest_moeperf.store import WAIVERS
from pytest_moeperf.waiver import encode_waivers

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_moeperf.review import CellChange, Lowering
    from pytest_moeperf.revision import Shelf

__all__ = ["configure", "waiver_advice"]

_WHERE = "a folder of baselines, or a commit such as git:origin/main"


def configure(actions: Any) -> None:
    """`check` fails where a bar is lowered unexplained; `diff` shows a reviewer every change."""
    check = actions.add_parser(
        "check", help="validate every file, and let no bar be lowered unexplained; 1 if one is"
    )
    where = check.add_mutually_exclusive_group()
    where.add_argument(
        "folder",
        nargs="?",
        type=values.folder,
        metavar="DIR",
        help="the same as --baseline-dir DIR",
    )
    add_folder(where)
    check.add_argument(
        "--against",
        type=values.text,
        metavar="WHERE",
        help=f"what the baselines were before this change: {_WHERE}; of a commit, what it has "
        "in common with the present one",
    )
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(act=_check)
    diff = actions.add_parser("diff", help="show what changed as a table")
    diff.add_argument(
        "old",
        nargs="?",
        type=values.text,
        default="git:HEAD",
        metavar="OLD",
        help=f"{_WHERE} (default: git:HEAD)",
    )
    diff.add_argument(
        "new",
        nargs="?",
        type=values.text,
        metavar="NEW",
        help="the same (default: what is there now)",
    )
    diff.add_argument("--markdown", action="store_true", help="print Markdown for a pull request")
    add_folder(diff)
    diff.set_defaults(act=_diff)


def _check(args: argparse.Namespace) -> int:
    args.baseline_dir = args.folder or args.baseline_dir
    root, day = args.baseline_dir, baseline_options.today()
    now = read_folder(root)
    lowered: tuple[Lowering, ...] = ()
    if args.against:
        before = read_shelf(args.against, root, since_fork=True)
        changes = what_changed(before.baselines, now.baselines, today=day)
        lowered = unexcused(
            (lowering for change in changes for lowering in change.lowerings),
            waivers=now.waivers,
            earlier=before.waivers,
            today=day,
        )
    waiting = list(due(now.baselines.values(), now.waivers, today=day))
    if args.json:
        findings = {
            "checked": len(now.baselines) + len(now.unreadable),
            "due": waiting,
            "lowered": [asdict(each) for each in lowered],
            "problems": now.unreadable,
        }
        print(render(findings), end="")
    else:
        for line in _report(now, lowered, waiting, args):
            print(line)
    return 1 if now.unreadable or lowered else 0


def _report(
    now: Shelf, lowered: Sequence[Lowering], waiting: Sequence[str], args: argparse.Namespace
) -> Iterator[str]:
    yield from now.unreadable
    yield from (f"due: {line}" for line in waiting)
    for each in lowered:
        subject = f"{each.metric}: " if each.metric else ""
        yield f"{each.baseline}: lowered ({each.rule}): {subject}{each.message}"
    if lowered:
        yield from waiver_advice(lowered, now, root=args.baseline_dir, than=args.against)
    bad = len(now.unreadable)
    count = f"{len(now.baselines) + bad} checked, {bad} bad"
    yield f"{count}, {len(lowered)} lowered" if args.against else count


def waiver_advice(
    lowered: Sequence[Lowering], now: Shelf, *, root: Path, than: str
) -> Iterator[str]:
    """How to say in the same change that lowered bars are meant: the whole file to write."""
    bars = "1 bar is" if len(lowered) == 1 else f"{len(lowered)} bars are"
    path = printable(str(root / WAIVERS))
    yield f"{bars} lower than in {than}. If that is meant, let {path} in the same change be:"
    wanted = [each.waiver(baseline_options.today()) for each in lowered]
    yield from encode_waivers([*now.waivers, *wanted]).splitlines()


def _diff(args: argparse.Namespace) -> int:
    root = args.baseline_dir
    old = read_shelf(args.old, root)
    new = read_shelf(args.new, root) if args.new else read_folder(root)
    changes = what_changed(old.baselines, new.baselines, today=baseline_options.today())
    form = report.markdown if args.markdown else report.text
    print(form(changes, unchanged=_unchanged(new, changes)), end="")
    for line in (*old.unreadable, *new.unreadable):
        print(f"not compared: {line}")
    return 0


def _unchanged(new: Shelf, changes: Sequence[CellChange]) -> int:
    return len(new.baselines) - sum(change.new is not None for change in changes)
