"""`moeperf baseline prune` and `anchor`: change what is stored without measuring."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_moeperf import store
from pytest_moeperf.cli import baseline_options
from pytest_moeperf.cli.baseline_options import add_folder, add_targets, confirmed, selected
from pytest_moeperf.document import parse, printable, validate
from pytest_moeperf.errors import BaselineError, UsageError
from pytest_moeperf.report import baselines as report
from pytest_moeperf.review import what_changed
from pytest_moeperf.wording import counted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_moeperf.baseline import Baseline
    from pytest_moeperf.waiver import Waiver

__all__ = ["configure"]


def configure(actions: Any) -> None:
    """`prune` and `anchor`, which ask before they write."""
    prune = actions.add_parser(
        "prune", help="remove what has expired, and with --run what no test measures any more"
    )
    prune.add_argument(
        "--run",
        dest="report",
        type=Path,
        metavar="RUN_JSON",
        help="report of a run of the whole suite: what it did not measure is removed as well",
    )
    prune.set_defaults(act=_prune)
    anchor = actions.add_parser(
        "anchor", help="keep the present figures as the fixed reference that shows slow decay"
    )
    add_targets(anchor)
    anchor.add_argument(
        "--reason", required=True, metavar="TEXT", help="what they are, such as a release"
    )
    anchor.set_defaults(act=_anchor)
    for action in (prune, anchor):
        add_folder(action)
        action.add_argument("--yes", action="store_true", help="write without asking")


@dataclass(slots=True)
class _Pruning:
    """What goes, and why; one line for each."""

    lines: list[str] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)
    kept: list[Baseline] = field(default_factory=list)
    """Changed ones."""
    waivers: tuple[Waiver, ...] = ()


def _prune(args: argparse.Namespace) -> int:
    root, day = args.baseline_dir, baseline_options.today()
    store.find(root)  # before the lock would make the folder
    measured = _measured(args.report) if args.report else None
    planned = _pruning(root, measured, day)
    for line in planned.lines:
        print(line)
    if not planned.lines:
        print("nothing to prune")
        return 0
    if not confirmed(f"Prune these {len(planned.lines)}?", yes=args.yes):
        return 1
    with store.locked(root):
        # Anew: another session may have recorded meanwhile, which renews what had expired.
        planned = _pruning(root, measured, day)
        store.write_baselines(root, planned.kept)
        store.write_waivers(root, planned.waivers)
        store.remove(root, planned.removed)
    print(f"pruned {len(planned.lines)}")
    return 0


def _pruning(root: Path, measured: Mapping[str, str] | None, day: str) -> _Pruning:
    planned = _Pruning()
    for path in store.find(root):
        baseline = store.load_placed(root, path)
        if why := _why_remove(baseline, measured, day):
            planned.lines.append(f"remove {printable(str(path))}: {why}")
            planned.removed.append(path)
            continue
        known = tuple(each for each in baseline.known if each.expires >= day)
        if known != baseline.known:
            planned.kept.append(replace(baseline, known=known))
            planned.lines.extend(
                f"forget the known regression of {each.metric} in {printable(str(path))}: "
                f"expired on {each.expires}"
                for each in baseline.known
                if each.expires < day
            )
    waivers = store.read_waivers(root)
    planned.waivers = tuple(each for each in waivers if each.expires >= day)
    planned.lines.extend(
        f"forget the waiver of {each.owner} for {each.baseline}: expired on {each.expires}"
        for each in waivers
        if each.expires < day
    )
    return planned


def _why_remove(baseline: Baseline, measured: Mapping[str, str] | None, day: str) -> str:
    if baseline.expired(day):
        return f"expired on {baseline.expires}"
    if measured is None:
        return ""
    engine = baseline.place.removesuffix(baseline.cell)
    if not any(place.startswith(engine) for place in measured):
        return ""  # the run was on other hardware, or of another engine
    workload = measured.get(baseline.place)
    if workload is None:
        return "no test measures it any more"
    if workload != baseline.fingerprint.workload:
        return f"of the workload {baseline.fingerprint.workload}; it is {workload} now"
    return ""


def _measured(path: Path) -> dict[str, str]:
    """The workload of every cell that a run measured, by the place of its baseline."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--run {printable(str(path))}: cannot be read: {error.strerror}"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--run {printable(str(path))}: is not text; give the run.json of a session"
        ) from error
    document = parse(text, source=printable(str(path)))
    validate(document, store.schema("run-2"), source=printable(str(path)))
    if not document["finished"]:
        raise BaselineError(
            f"{printable(str(path))}: this run was not finished, so it does not tell which cells "
            "are measured no more; give that of a whole run"
        )
    prints = [(cell["cell"], cell["fingerprint"]) for cell in document["cells"]]
    found = {
        f"{each['hardware']}/{each['engine']}/{cell}": str(each["workload"])
        for cell, each in prints
        if each is not None
    }
    if not found:
        raise BaselineError(f"{printable(str(path))}: this run measured nothing")
    return found


def _anchor(args: argparse.Namespace) -> int:
    if not args.reason.strip():
        raise UsageError("--reason is empty: say what the figures are, for who reads the diff")
    root, day = args.baseline_dir, baseline_options.today()
    paths = list(selected(root, args.targets))
    old, new = _anchored(root, paths, args.reason)
    changes = what_changed(old, new, today=day)
    print(report.text(changes, unchanged=len(new) - len(changes)), end="")
    if not changes or not confirmed(f"Anchor {counted(len(changes), 'baseline')}?", yes=args.yes):
        return 0 if not changes else 1
    with store.locked(root):
        _, new = _anchored(root, paths, args.reason)
        store.write_baselines(root, new.values())
    return 0


def _anchored(
    root: Path, paths: Sequence[Path], reason: str
) -> tuple[dict[str, Baseline], dict[str, Baseline]]:
    old = dict(_placed(root, paths))
    return old, {place: baseline.anchored(reason) for place, baseline in old.items()}


def _placed(root: Path, paths: Sequence[Path]) -> Iterator[tuple[str, Baseline]]:
    for path in paths:
        if not path.is_relative_to(root):
            raise UsageError(f"{printable(str(path))} is not below {printable(str(root))}")
        baseline = store.load_placed(root, path)
        yield baseline.place, baseline
