"""`moeperf baseline`: read what is stored, and check it before it is trusted."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_moeperf import store
from pytest_moeperf.document import printable, render
from pytest_moeperf.errors import StorageError, UsageError
from pytest_moeperf.metrics import quantity

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from pytest_moeperf.baseline import Baseline

__all__ = ["HELP", "configure", "run"]

HELP = "Show and check stored baselines"

_ROOT = Path("baselines")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions `show` and `check`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="list baselines with what they hold")
    show.add_argument(
        "targets",
        nargs="*",
        metavar="PATH|CELL",
        help="a file, a folder, or a cell or the beginning of its name (default: all)",
    )
    show.add_argument(
        "--all", action="store_true", help="every metric, not only the gates (JSON always has them)"
    )
    show.add_argument(
        "--baseline-dir",
        type=Path,
        default=_ROOT,
        metavar="DIR",
        help="where baselines are stored (default: baselines)",
    )
    check = actions.add_parser("check", help="validate every file; exit code 1 if one is bad")
    check.add_argument(
        "baseline_dir",
        nargs="?",
        type=Path,
        default=_ROOT,
        metavar="DIR",
        help="where baselines are stored (default: baselines)",
    )
    for action in (show, check):
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Do the action: 0 fine, 1 when `check` found a bad file."""
    return _check(args) if args.action == "check" else _show(args)


def _check(args: argparse.Namespace) -> int:
    paths = store.find(args.baseline_dir)
    problems: list[str] = []
    for path in paths:
        try:
            store.load_placed(args.baseline_dir, path)
        except StorageError as error:
            problems.append(str(error))
    if args.json:
        print(render({"checked": len(paths), "problems": problems}), end="")
    else:
        for problem in problems:
            print(problem)
        print(f"{len(paths)} checked, {len(problems)} bad")
    return 1 if problems else 0


def _show(args: argparse.Namespace) -> int:
    summaries = [
        _summary(path, baseline, every=args.all or args.json)
        for path in _selected(args.baseline_dir, args.targets)
        if (baseline := store.read(path)) is not None
    ]
    if args.json:
        print(render(summaries), end="")
    elif summaries:
        print("\n\n".join("\n".join(_lines(summary)) for summary in summaries))
    else:
        print(f"no baselines in {printable(str(args.baseline_dir))}")
    return 0


def _selected(root: Path, targets: Sequence[str]) -> Iterator[Path]:
    for target in targets or [str(root)]:
        path = Path(target)
        if path.is_dir():
            yield from store.find(path)
        elif path.exists():
            yield path
        else:
            yield from _of_cell(root, target)


def _of_cell(root: Path, name: str) -> Sequence[Path]:
    # By path and not by content, so that one bad file does not hide the others.
    found = [
        path
        for path in store.find(root)
        if "/".join(path.relative_to(root).with_suffix("").parts[2:]).startswith(name)
    ]
    if not found:
        raise UsageError(
            f"{name!r} is neither a path nor a cell in {printable(str(root))}; "
            "`moeperf baseline show` lists the cells"
        )
    return found


def _summary(path: Path, baseline: Baseline, *, every: bool) -> dict[str, Any]:
    gates = sorted(baseline.gates)
    others = sorted(set(baseline.metrics) - set(gates)) if every else []
    fingerprint = baseline.fingerprint
    return {
        "cell": baseline.cell,
        "engine": fingerprint.engine,
        "engine_version": baseline.engine_version,
        "hardware": fingerprint.hardware,
        "machine": ", ".join(fingerprint.gpus)
        or f"{fingerprint.cpu_cores} cores of {fingerprint.cpu_model}",
        "metrics": [_metric(baseline, metric) for metric in (*gates, *others)],
        "path": str(path),
        "reason": baseline.reason,
        "recorded_at": [start.recorded_at for start in baseline.starts],
    }


def _metric(baseline: Baseline, metric: str) -> dict[str, Any]:
    starts = baseline.repeats(metric)
    values = [value for start in starts for value in start]
    gate = baseline.gates.get(metric)
    return {
        "direction": gate.direction if gate else None,
        "maximum": max(values, default=None),
        # As the judge does: a start counts once, however many repeats it has.
        "median": statistics.median(map(statistics.median, starts)) if starts else None,
        "metric": metric,
        "minimum": min(values, default=None),
        "tolerance": gate.tolerance if gate else None,
        "unit": gate.unit if gate else "",
    }


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    times = summary["recorded_at"]
    count = f"{len(times)} start{'s' if len(times) > 1 else ''}"
    yield summary["cell"]
    yield (
        f"  {summary['engine']} {summary['engine_version'] or '(version not known)'} "
        f"on {summary['hardware']}: {summary['machine']}"
    )
    yield f"  {count}, {' to '.join(dict.fromkeys((times[0], times[-1])))}: {summary['path']}"
    if summary["reason"]:
        yield f"  reason: {summary['reason']}"
    width = max((len(metric["metric"]) for metric in summary["metrics"]), default=0)
    for metric in summary["metrics"]:
        bounds = f"{quantity(metric['minimum'])} to {quantity(metric['maximum'])}"
        yield (
            f"    {metric['metric']:<{width}}  {quantity(metric['median'], metric['unit']):>14}  "
            f"({bounds})  {_bar(metric)}"
        ).rstrip()


def _bar(metric: dict[str, Any]) -> str:
    if metric["tolerance"] is None:
        return ""
    sign = "+" if metric["direction"] == "lower" else "-"
    return f"gate: {sign}{metric['tolerance']:.1%}"
