"""`moeperf baseline refresh`: measure a new reference, show what it changes, then store it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_moeperf import files, store
from pytest_moeperf.admission import refusals
from pytest_moeperf.baseline import MAX_STARTS
from pytest_moeperf.cli import baseline_options
from pytest_moeperf.cli.baseline_options import add_folder, confirmed
from pytest_moeperf.cli.baseline_review import waiver_advice
from pytest_moeperf.document import printable
from pytest_moeperf.errors import StorageError, UsageError
from pytest_moeperf.refresh import Candidate, Plan
from pytest_moeperf.report import baselines as report
from pytest_moeperf.review import what_changed
from pytest_moeperf.revision import Shelf, read_folder
from pytest_moeperf.wording import counted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from pytest_moeperf.baseline import Baseline

__all__ = ["configure"]

_CANDIDATE = Path(".moeperf", "candidate")
_MARKDOWN = Path(".moeperf", "refresh.md")


def configure(actions: Any) -> None:
    """`refresh`, which asks before it stores what it measured."""
    action = actions.add_parser(
        "refresh", help="measure new figures, show what they change, and store them"
    )
    action.add_argument(
        "--reason", required=True, metavar="TEXT", help="why the figures change; stored with them"
    )
    action.add_argument("--gpu", metavar="CLASS", help="as for pytest: cpu, h200, …")
    action.add_argument(
        "--engine", action="append", default=[], metavar="SPEC", help="as for pytest, repeatable"
    )
    action.add_argument(
        "--pytest-args",
        default="",
        metavar="WORDS",
        help="further options of pytest in one string: --pytest-args='--repeats 5'",
    )
    action.add_argument("-k", dest="keyword", metavar="EXPRESSION", help="only these tests")
    action.add_argument(
        "--starts",
        type=int,
        default=5,
        metavar="N",
        help="server starts that a reference needs (default: 5)",
    )
    action.add_argument(
        "--sessions",
        type=int,
        default=1,
        metavar="N",
        help="spread the starts over so many calls, on different days, of this same command "
        "(default: 1)",
    )
    action.add_argument("--restart", action="store_true", help="forget what earlier calls measured")
    action.add_argument("--yes", action="store_true", help="store without asking")
    add_folder(action)
    action.add_argument(
        "suite",
        nargs="*",
        default=["suites"],
        metavar="SUITE",
        help="what pytest runs (default: suites)",
    )
    action.set_defaults(act=_refresh)


def _refresh(args: argparse.Namespace) -> int:
    plan, candidate = _plan(args), Candidate(_CANDIDATE)
    if not args.reason.strip():
        raise UsageError("--reason is empty: say why the figures change, for who reads the diff")
    if args.restart:
        candidate.discard()
    # Rather than after an hour on a GPU.
    files.ensure_writable(args.baseline_dir)
    try:
        failed = candidate.measure(plan, lambda phase: print(f"refresh: {phase}", flush=True))
    except KeyboardInterrupt:
        print(
            f"\nrefresh: what was measured stays in {_CANDIDATE}; the same command goes on from "
            "there",
            flush=True,
        )
        raise
    if failed:
        print(f"refresh: tests failed in {failed} of the runs above: look at them before you store")
    measured = candidate.read()
    fewest = min(len(each.starts) for each in measured.values())
    if fewest < plan.starts:
        print(
            f"refresh: {fewest} of {plan.starts} starts are measured and kept in {_CANDIDATE}; "
            "type the same command again, best on another day"
        )
        return 0
    return _store(args, plan, candidate, measured)


def _plan(args: argparse.Namespace) -> Plan:
    if not 1 <= args.starts <= MAX_STARTS:
        raise UsageError(f"--starts {args.starts}: give 1 to {MAX_STARTS}")
    if not 1 <= args.sessions <= args.starts:
        raise UsageError(f"--sessions {args.sessions}: give 1 to {args.starts}, the starts")
    words = list(args.suite)
    words += ["--gpu", args.gpu] if args.gpu else []
    for engine in args.engine:
        words += ["--engine", engine]
    words += ["-k", args.keyword] if args.keyword else []
    return Plan(
        pytest_arguments=(*words, *_split(args.pytest_args)),
        typed=("moeperf", "baseline", "refresh", *words, *_typed(args)),
        starts=args.starts,
        sessions=args.sessions,
    )


def _typed(args: argparse.Namespace) -> list[str]:
    """All that is not told to pytest as it was typed."""
    words = [f"--pytest-args={args.pytest_args}"] if args.pytest_args else []
    words += ["--starts", str(args.starts), "--sessions", str(args.sessions)]
    return [*words, "--baseline-dir", str(args.baseline_dir), "--reason", args.reason]


def _split(typed: str) -> list[str]:
    try:
        return shlex.split(typed)
    except ValueError as error:
        raise UsageError(
            f"--pytest-args {typed!r}: {str(error).lower()}; write words as for a shell, "
            "such as --pytest-args='-k \"a or b\"'"
        ) from None


def _store(
    args: argparse.Namespace, plan: Plan, candidate: Candidate, measured: Mapping[str, Baseline]
) -> int:
    """Show what the admitted candidates change, ask, and write them all at once."""
    root = args.baseline_dir
    shelf = read_folder(root) if root.is_dir() else Shelf(str(root))
    old = {place: each for place, each in shelf.baselines.items() if place in measured}
    refused = {place: refusals(each, starts=plan.starts) for place, each in measured.items()}
    new = {
        place: each.succeeding(old.get(place), reason=args.reason)
        for place, each in measured.items()
        if not refused[place]
    }
    _show(args, {place: old[place] for place in old.keys() & new.keys()}, new, shelf)
    for place, why in refused.items():
        for clause in why:
            print(f"refused: {printable(place)}: {clause}")
    if not new or not confirmed(f"Store {counted(len(new), 'baseline')}?", yes=args.yes):
        print(f"what was measured stays in {_CANDIDATE}; the same command asks again")
        return 1
    with store.locked(root):
        now = read_folder(root).baselines
        if changed := [place for place in new if now.get(place) != old.get(place)]:
            raise StorageError(
                f"{changed[0]} was changed by somebody else meanwhile: nothing was written; "
                "the same command shows the difference anew"
            )
        store.write_baselines(root, new.values())
    if any(refused.values()):
        store.remove(candidate.baselines, [candidate.baselines / f"{place}.json" for place in new])
        return 1
    candidate.discard()
    return 0


def _show(
    args: argparse.Namespace, old: Mapping[str, Baseline], new: Mapping[str, Baseline], now: Shelf
) -> None:
    changes = what_changed(old, new, today=baseline_options.today())
    unchanged = len(new) - len(changes)
    print(report.text(changes, unchanged=unchanged), end="")
    files.write_text_atomic(_MARKDOWN, report.markdown(changes, unchanged=unchanged))
    print(f"for the pull request: {_MARKDOWN}")
    if lowered := [lowering for change in changes for lowering in change.lowerings]:
        for line in waiver_advice(lowered, now, root=args.baseline_dir, than="what is stored"):
            print(line)
