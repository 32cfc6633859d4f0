"""`moeperf baseline show`: which baselines are stored, and what each holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pytest_moeperf import store
from pytest_moeperf.baseline import NEVER, level
from pytest_moeperf.cli.baseline_options import add_folder, add_targets, selected, today
from pytest_moeperf.cli.baseline_overview import measured_on, overview
from pytest_moeperf.document import printable, render
from pytest_moeperf.metrics import quantity
from pytest_moeperf.record_form import read_routing, routing_document
from pytest_moeperf.wording import counted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_moeperf.baseline import Baseline

__all__ = ["configure"]


def configure(actions: Any) -> None:
    """`show`: with a target or `--all` what each baseline holds, else a line for each server."""
    show = actions.add_parser("show", help="list the servers measured, or what baselines hold")
    add_targets(show, default="a line for each server")
    show.add_argument(
        "--all", action="store_true", help="every metric, not only the gates (JSON always has them)"
    )
    add_folder(show)
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(act=_show)


def _show(args: argparse.Namespace) -> int:
    summaries = [
        _summary(path, baseline, every=args.all or args.json)
        for path in selected(args.baseline_dir, args.targets)
        if (baseline := store.read(path)) is not None
    ]
    if args.json:
        print(render(summaries), end="")
    elif not summaries:
        print(f"no baselines in {printable(str(args.baseline_dir))}")
    elif args.targets or args.all:
        print("\n\n".join("\n".join(_lines(summary)) for summary in summaries))
    else:
        print("\n".join(overview(summaries, today=today())))
    return 0


def _summary(path: Path, baseline: Baseline, *, every: bool) -> dict[str, Any]:
    gates = sorted(baseline.gates)
    others = sorted(set(baseline.metrics) - set(gates)) if every else []
    fingerprint = baseline.fingerprint
    anchor = baseline.anchor
    return {
        "anchor": {"engine": anchor.engine.label, "reason": anchor.reason} if anchor else None,
        "cell": baseline.cell,
        "distribution": baseline.engine.distribution,
        "engine": fingerprint.engine,
        "engine_version": baseline.engine_version,
        "expires": baseline.expires,
        "hardware": fingerprint.hardware,
        "known": [asdict(known) for known in baseline.known],
        "machine": ", ".join(
            f"{number}x {gpu}" for gpu, number in Counter(fingerprint.gpus).items()
        )
        or (
            f"{fingerprint.cpu_cores} cores of {fingerprint.cpu_model}"
            if fingerprint.cpu_model is not None
            else "any machine"
        ),
        "metrics": [_metric(baseline, metric) for metric in (*gates, *others)],
        "model": fingerprint.model,
        "path": str(path),
        "reason": baseline.reason,
        "routing": None if baseline.routing is None else routing_document(baseline.routing),
        "recorded_at": [start.recorded_at for start in baseline.starts],
        "server": fingerprint.server,
        "sessions": len({start.session_id for start in baseline.starts}),
    }


def _metric(baseline: Baseline, metric: str) -> dict[str, Any]:
    starts = baseline.repeats(metric)
    values = [value for start in starts for value in start]
    gate = baseline.gates.get(metric)
    anchor = level(baseline.anchor.starts, metric) if baseline.anchor else None
    return {
        "anchor": anchor,
        "direction": gate.direction if gate else None,
        "expected": level(baseline.starts, metric),
        "maximum": max(values, default=None),
        "metric": metric,
        "minimum": min(values, default=None),
        "tolerance": gate.tolerance if gate else None,
        "unit": gate.unit if gate else "",
    }


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    times = summary["recorded_at"]
    yield summary["cell"]
    yield f"  {measured_on(summary)}; {summary['server']}"
    counts = f"{counted(len(times), 'start')} of {counted(summary['sessions'], 'session')}"
    span = " to ".join(dict.fromkeys((times[0], times[-1])))
    expires = summary["expires"].replace(NEVER, "never")
    yield f"  {counts}, {span}, expires {expires}: {summary['path']}"
    if summary["reason"]:
        yield f"  reason: {summary['reason']}"
    if summary["anchor"]:
        yield f"  anchor: {summary['anchor']['engine']}: {summary['anchor']['reason']}"
    for known in summary["known"]:
        yield (
            f"  known: {known['metric']} may be {100 * known['extent']:.3g} % worse until "
            f"{known['expires']}: {known['reason']} ({known['issue']})"
        )
    if summary["routing"]:
        from pytest_moeperf.report import heatmap  # noqa: PLC0415 - numpy, only for counts

        routing = read_routing(summary["routing"])
        yield f"  experts of its prompts: {heatmap.summary(routing)}"
    width = max((len(metric["metric"]) for metric in summary["metrics"]), default=0)
    for metric in summary["metrics"]:
        bounds = f"{quantity(metric['minimum'])} to {quantity(metric['maximum'])}"
        yield (
            f"    {metric['metric']:<{width}}  {quantity(metric['expected'], metric['unit']):>14}  "
            f"({bounds})  {_bar(metric)}"
        ).rstrip()


def _bar(metric: dict[str, Any]) -> str:
    anchor = f"  anchor: {quantity(metric['anchor'])}" if metric["anchor"] is not None else ""
    if metric["tolerance"] is None:
        return anchor.strip()
    sign = "+" if metric["direction"] == "lower" else "-"
    return f"gate: {sign}{metric['tolerance']:.1%}{anchor}"
