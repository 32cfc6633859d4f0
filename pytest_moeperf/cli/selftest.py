"""`moeperf load --selftest`: how many chunks per second the load client can be trusted with."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing
from typing import TYPE_CHECKING

from pytest_moeperf import selftest, validity
from pytest_moeperf.probe import BusyWatch, usable_cores

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pytest_moeperf.selftest import Cores, Step

__all__ = ["run_selftest", "summary"]

CHUNKS_OF_A_COST = 1000
HEADER = (
    (
        "",
        "",
        "throughput",
        "TTFT p50",
        "ITL p50",
        "ITL p99",
        "CPU ms per",
        "of its",
        "read lag",
        "",
    ),
    ("chunks/s", "sent", "error", "error", "error", "error", "1,000", "core", "p99", "verdict"),
)
WIDTHS = (9, 8, 12, 11, 9, 9, 12, 8, 10)


def run_selftest(args: argparse.Namespace, *, rates: Sequence[int] = (), chunks: int = 0) -> int:
    """Play, print, and return 0 if the client carried at least the smallest load.

    `rates` in chunks per second and `chunks` of a stream replace the usual ones.
    """
    # The load client is loaded by those who send load, not by every `moeperf` command.
    cores, watch = selftest.cores_here(), BusyWatch()
    steps: list[Step] = []
    if not args.json:
        print(_opening(cores), _row(HEADER[0]), _row(HEADER[1]), sep="\n")
    with closing(selftest.run(rates or selftest.RATES, chunks=chunks or selftest.CHUNKS)) as run:
        for step in run:
            steps.append(step)
            if not args.json:
                print(_row(_cells(step)), flush=True)
            if step.mode == selftest.MODES[-1] and _limit(steps) != step.rate:
                break  # Higher rates would fail as well.
    busy = _busy(watch)
    if args.json:
        print(json.dumps(_document(steps, cores) | {"busy_machine": busy}, indent=1))
    else:
        print(*([f"Not a quiet machine: {busy}"] if busy else []), summary(steps), sep="\n")
    return 0 if _limit(steps) else 1


def _busy(watch: BusyWatch) -> str | None:
    """What others took of the machine, if it was enough to disturb."""
    others = watch.bystanders()
    found = validity.busy_machine(
        foreign_cores=others.cores,
        stolen_cores=others.stolen_cores,
        usable_cores=usable_cores(),
        names=others.names,
    )
    return found.message if found is not None else None


def summary(steps: Sequence[Step]) -> str:
    """The last line: what this host measures, and what stopped it from more."""
    limit, rates = _limit(steps), sorted({step.rate for step in steps})
    if limit is None:
        who = "one worker" if any(step.client_limited for step in steps) else "the scripted server"
        return f"This host measures less than {rates[0]:,} chunks/s: {who} could not keep up"
    above = [step for step in steps if step.rate > limit and not step.ok]
    if not above:
        reason = "more was not tried"
    elif any(step.client_limited for step in above if step.rate == above[0].rate):
        reason = f"at {above[0].rate:,} the client is the limit"
    else:
        reason = f"at {above[0].rate:,} the scripted server is the limit, so it may be more"
    return f"This host measures up to {limit:,} chunks/s with one worker ({reason})"


def _limit(steps: Sequence[Step]) -> int | None:
    """The highest rate at which every mode was seen as it was."""
    failed = {step.rate for step in steps if not step.ok}
    return max({step.rate for step in steps} - failed, default=None)


def _opening(cores: Cores) -> str:
    if cores.shared:
        return (
            "One core only: the client shares it with the scripted server, so that the limit "
            "found here is below the client's own"
        )
    return f"Client on core {cores.client}, scripted server on core {cores.server}"


def _cells(step: Step) -> tuple[str, ...]:
    accuracy, client = step.accuracy, step.client
    cpu = share = lag = "–"
    if client is not None:
        cpu = f"{_cpu_ms_per_1000(step):.1f}"
        share = f"{client.cpu_share:.0%}"
        if client.read_lag_ms_p99 is not None:
            lag = f"{client.read_lag_ms_p99:.2f} ms"
    return (
        f"{step.rate:,}",
        step.mode,
        f"{accuracy.chunks_per_s.relative:+.2%}",
        f"{accuracy.ttft_ms_p50.error:+.2f} ms",
        f"{accuracy.itl_ms_p50.relative:+.2%}",
        f"{accuracy.itl_ms_p99.relative:+.2%}",
        cpu,
        share,
        lag,
        step.verdict,
    )


def _cpu_ms_per_1000(step: Step) -> float | None:
    if step.client is None:
        return None
    return step.client.cpu_s * 1e3 / step.accuracy.chunks_sent * CHUNKS_OF_A_COST


def _row(cells: Sequence[str]) -> str:
    *figures, verdict = cells
    padded = (f"{cell:>{width}}" for cell, width in zip(figures, WIDTHS, strict=True))
    return f"{''.join(padded)}  {verdict}".rstrip()


def _document(steps: Sequence[Step], cores: Cores) -> dict[str, object]:
    return {
        "client_core": cores.client,
        "server_core": cores.server,
        "chunks_per_s_limit": _limit(steps),
        "steps": [
            {
                "mode": step.mode,
                "chunks_per_s": step.rate,
                "verdict": step.verdict,
                "ok": step.ok,
                "findings": list(step.findings),
                "cpu_ms_per_1000_chunks": _cpu_ms_per_1000(step),
                "accuracy": dataclasses.asdict(step.accuracy),
                "client": None if step.client is None else dataclasses.asdict(step.client),
            }
            for step in steps
        ],
    }
