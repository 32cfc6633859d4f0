"""Compares load clients beside a server that logs its true send times.

    python -m benchmarks.client --peers vllm,aiperf,guidellm --write-docs

Peers are installed into environments of their own below the cache directory; they are large.
"""

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.client import table, trial
from benchmarks.client.clients import PEERS, Moeperf, UnavailableError
from pytest_moeperf.pool import MachineLease
from pytest_moeperf.probe import cpu_model
from pytest_moeperf.selftest import cores_here

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "accuracy.md"
STREAMS = (32, 100, 256, 512)
MODES = ("spread", "step")
LATE_MS, TRIES = 1.0, 3
"""A run whose server was disturbed so much is repeated, and the least disturbed one counts."""


def main():
    args = parser().parse_args()
    skipped = []
    clients = prepared(args.peers, skipped)
    lease = MachineLease()
    lease.acquire(on_progress=lambda phase, detail: note(f"{phase}: {detail}"))
    cores = cores_here()
    # What this process does meanwhile may delay the server, whose log tells it, not the client.
    os.sched_setaffinity(0, {cores.server})
    loads = [(streams, mode) for streams in args.streams for mode in MODES]
    trials = [
        each
        for load in loads
        for _ in range(args.repeats)
        for client in clients
        if (each := one(client, load, args.waves, cores, skipped)) is not None
    ]
    about = description(clients, trials, cores, args, skipped)
    text = table.markdown(trials, about=about)
    print(text)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    document = {"about": about, "trials": [asdict(each) for each in trials]}
    args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if args.write_docs:
        written = table.updated(DOCUMENT.read_text(encoding="utf-8"), text)
        DOCUMENT.write_text(written, encoding="utf-8")
    return 1 if skipped else 0


def parser():
    made = argparse.ArgumentParser(prog="python -m benchmarks.client", description=__doc__)
    add = made.add_argument
    add("--peers", type=peers, default=(), help=f"others to compare, of {','.join(PEERS)}")
    add("--streams", type=numbers, default=STREAMS, metavar="N,N", help="loads to play")
    add("--waves", type=int, default=7, help="requests of each stream, one after the other")
    add("--repeats", type=int, default=3, help="runs that the medians are taken of")
    add("--json", type=Path, default=ROOT / ".benchmarks" / "clients.json", help="every figure")
    add("--write-docs", action="store_true", help="put the table into docs/accuracy.md")
    return made


def peers(text):
    names = tuple(text.split(","))
    if unknown := set(names) - PEERS.keys():
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: valid are {', '.join(PEERS)}")
    return names


def numbers(text):
    return tuple(int(part) for part in text.split(","))


def prepared(names, skipped):
    """Ours and the peers that are there or could be installed."""
    clients = []
    for client in (Moeperf(), *(PEERS[name]() for name in names)):
        try:
            client.prepare()
        except UnavailableError as error:
            skipped.append(f"{client.name}: {error}")
            note(skipped[-1])
        else:
            clients.append(client)
    return clients


def one(client, load, waves, cores, skipped):
    """One trial; None where the client is not asked for so much, or gave no result."""
    streams, mode = load
    if client.most_streams is not None and streams > client.most_streams:
        return None
    tried = []
    try:
        while len(tried) < TRIES and not (tried and tried[-1].server_lateness_ms_p99 <= LATE_MS):
            tried.append(trial.run(client, mode=mode, streams=streams, waves=waves, cores=cores))
    except UnavailableError as error:
        skipped.append(f"{client.name}, {streams} streams, {mode}: {error}")
        note(skipped[-1])
        return None
    made = min(tried, key=lambda each: each.server_lateness_ms_p99)
    note(
        f"{client.name}, {streams} streams, {mode}: {made.cpu_ms_per_1000:.1f} ms per 1,000, "
        f"ITL p99 {made.itl_ms_p99}, "
        f"server late by {[round(each.server_lateness_ms_p99, 2) for each in tried]} ms"
    )
    return made


def description(clients, trials, cores, args, skipped):
    """What the table was measured with, as lines of one paragraph."""
    worst_ms = max((each.server_lateness_ms_p99 for each in trials), default=0.0)
    lines = [
        *figures(args),
        *machine(cores),
        f"Clients: {', '.join(f'{client.name} {client.version}' for client in clients)}.",
        f"The server was up to {worst_ms:.2f} ms late against its schedule (p99, worst run); the",
        "truth is what it sent, not what it was to send.",
    ]
    limited = [client for client in clients if client.most_streams is not None]
    if limited:
        names = " and ".join(client.name for client in limited)
        lines += [
            f"{names}: ITL is a mean of each request, and so is the truth beside it; not tried",
            f"above {limited[0].most_streams} streams.",
        ]
    lines.extend(f"Not measured: {reason}." for reason in skipped)
    return lines


def figures(args):
    yield f"Medians of {args.repeats} runs, each of {args.waves} requests a stream with"
    yield f"{trial.CHUNKS} chunks; reported, and in brackets the truth."


def machine(cores):
    shared = " (the same: this machine has one)" if cores.shared else ""
    yield f"Measured on {datetime.now(UTC):%d %B %Y}: {cpu_model()},"
    yield f"client on core {cores.client}, server on core {cores.server}{shared};"
    yield f"Linux {platform.release()}, Python {platform.python_version()}."


def note(text):
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
