"""`moeperf calibrate`: how often the judge would be wrong on stored starts, and what it can see."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_moeperf import gate, store
from pytest_moeperf.cli.baseline_options import add_folder
from pytest_moeperf.cli.values import count, whole
from pytest_moeperf.document import printable
from pytest_moeperf.errors import UsageError
from pytest_moeperf.judge import StoredStart
from pytest_moeperf.policy import policy_for
from pytest_moeperf.wording import counted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_moeperf.baseline import Baseline
    from pytest_moeperf.calibration import History, QuietNights

__all__ = ["HELP", "configure", "run"]

HELP = "Replay the judge on stored starts: false alarms a month, smallest change caught"

NIGHTS, REPLAYS = 300, 100


@dataclass(frozen=True, slots=True)
class _Gate:
    cell: str
    metric: str
    history: History


def configure(parser: argparse.ArgumentParser) -> None:
    """Which baselines are replayed, how often, and whether with an old engine."""
    add = parser.add_argument
    add_folder(parser)
    add("--gpu", metavar="CLASS", help="only this hardware: cpu, h200, … (default: all)")
    add(
        "--nights",
        type=count,
        default=NIGHTS,
        metavar="N",
        help=f"nights without a change to replay (default: {NIGHTS})",
    )
    add(
        "--replays",
        type=count,
        default=REPLAYS,
        metavar="N",
        help=f"replays of each change that is tried (default: {REPLAYS})",
    )
    add("--unpaired", action="store_true", help="judge without an old engine (no --against)")
    add("--seed", type=whole, default=1, metavar="N", help="of the random draws (default: 1)")
    add("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Replay, print, return 0; UsageError where no gate can be replayed."""
    groups = _groups(args.baseline_dir, args.gpu)
    results = [_calibrated(hardware, engine, found, args) for (hardware, engine), found in groups]
    if not any(result["gates"] for result in results):
        raise UsageError(_nothing(results, args.baseline_dir))
    if args.json:
        print(json.dumps({"groups": results}, indent=1))
    else:
        print("\n\n".join("\n".join(_lines(result)) for result in results))
    return 0


def _groups(root: Path, wanted: str | None) -> list[tuple[tuple[str, str], list[Baseline]]]:
    """Baselines by hardware and engine: those whose noise is told together."""
    found: defaultdict[tuple[str, str], list[Baseline]] = defaultdict(list)
    for path in store.find(root):
        if (baseline := store.read(path)) is not None:
            found[baseline.fingerprint.hardware, baseline.fingerprint.engine].append(baseline)
    known = sorted({hardware for hardware, _ in found})
    chosen = [(key, found[key]) for key in sorted(found) if wanted in {None, key[0]}]
    if not chosen:
        there = f"there are some of {', '.join(known)}" if known else "record some first"
        raise UsageError(
            f"no baselines{f' of {wanted!r}' if wanted else ''} in {printable(str(root))}: {there}"
        )
    return chosen


def _nothing(results: Sequence[dict[str, Any]], root: Path) -> str:
    """Why there is nothing to replay."""
    where = printable(str(root))
    starts = [each["starts"] for result in results for each in result["too_few_starts"]]
    if not starts:
        return f"nothing can be replayed: no baseline in {where} has a gate"
    return (
        f"nothing can be replayed: of {counted(len(starts), 'gate')} in {where} none has the 3 "
        f"stored starts that are needed (most: {max(starts)}); add starts with "
        "`pytest --baseline record` or `moeperf baseline refresh`"
    )


def _calibrated(
    hardware: str, engine: str, baselines: Sequence[Baseline], args: argparse.Namespace
) -> dict[str, Any]:
    from pytest_moeperf import calibration  # noqa: PLC0415 - not for other commands

    gates = list(_gates(hardware, baselines))
    ready = [each for each in gates if each.history.replayable]
    histories = [each.history for each in ready]
    rng = random.Random(args.seed)  # noqa: S311 - statistics, not secrets
    can_pair = not args.unpaired
    quiet = calibration.false_alarms(histories, rng, nights=args.nights, can_pair=can_pair)
    caught = [
        calibration.smallest_caught(
            history, rng, gates=len(histories), replays=args.replays, can_pair=can_pair
        )
        for history in histories
    ]
    return {
        "engine": engine,
        "gates": [_document(each, quiet, index, caught[index]) for index, each in enumerate(ready)],
        "hardware": hardware,
        "nights": args.nights,
        "paired": can_pair,
        "red_nights_a_month": quiet.monthly if ready else None,
        "red_nights_a_month_at_most": quiet.monthly_at_most if ready else None,
        "too_few_starts": [
            {"cell": each.cell, "metric": each.metric, "starts": sum(each.history.layout)}
            for each in gates
            if not each.history.replayable
        ],
    }


def _gates(hardware: str, baselines: Sequence[Baseline]) -> Iterator[_Gate]:
    from pytest_moeperf.calibration import History  # noqa: PLC0415 - not for other commands

    for baseline in baselines:
        for metric in sorted(baseline.gates):
            stored = [
                StoredStart(start.session_id, values)
                for start in baseline.starts
                if (values := gate.repeats_of(start, metric))
            ]
            prior = gate.prior_for(baselines, metric, hardware=hardware)
            history = History.of(metric, stored, policy_for(hardware, metric), prior)
            yield _Gate(baseline.cell, metric, history)


def _document(each: _Gate, quiet: QuietNights, index: int, caught: float | None) -> dict[str, Any]:
    return {
        "cell": each.cell,
        "metric": each.metric,
        "red_a_month": 30 * quiet.alarms[index] / quiet.nights,
        "sessions": len(each.history.layout),
        "smallest_change_caught": caught,
        "starts": sum(each.history.layout),
        "starts_a_night": quiet.starts[index],
    }


def _lines(result: dict[str, Any]) -> Iterator[str]:
    how = "with an A/B against the old engine" if result["paired"] else "without an old engine"
    yield (
        f"{result['engine']} on {result['hardware']}, {how}: "
        f"{counted(len(result['gates']), 'gate')}, {result['nights']} nights without a change"
    )
    if not result["gates"]:
        yield "nothing can be replayed"
        yield from _unready(result["too_few_starts"])
        return
    yield (
        f"false-alarm nights a month: {result['red_nights_a_month']:.2g} "
        f"(95 %: at most {result['red_nights_a_month_at_most']:.2g})"
    )
    names = [f"{each['cell']} {each['metric']}" for each in result["gates"]]
    width = max(map(len, names))
    yield _row("", width, ("starts", "red", "90 % catch"))
    yield _row("", width, ("a night", "a month", "a change of"))
    for name, each in zip(names, result["gates"], strict=True):
        change = each["smallest_change_caught"]
        figures = (
            f"{each['starts_a_night']:.2f}",
            f"{each['red_a_month']:.2g}",
            "none" if change is None else f"{100 * change:+.1f} %",
        )
        yield _row(name, width, figures)
    yield from _unready(result["too_few_starts"])


def _unready(gates: Sequence[dict[str, Any]]) -> Iterator[str]:
    if gates:
        yield f"not replayed, as 3 stored starts are needed ({len(gates)}):"
    for each in gates:
        yield f"  {each['cell']} {each['metric']}: {each['starts']}"


def _row(name: str, width: int, figures: Sequence[str]) -> str:
    return f"{name:<{width}}" + "".join(f"{figure:>12}" for figure in figures)
