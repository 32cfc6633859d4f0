"""Compares `moeperf load` with `vllm bench serve` on a real engine, in turns.

    python -m benchmarks.client.engine

The engine is vLLM on the CPU with mini-moe. No log tells the truth here: what counts is that two
clients that share no code see the same, so each figure is a median of many turns.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.client.clients import Load, Moeperf, Vllm
from pytest_moeperf import ServerSpec
from pytest_moeperf.measurement import Rules
from pytest_moeperf.run import Run, Settings

OUTPUT_TOKENS = 48
TIMEOUT_S = 300.0
FIGURES = {
    "chunks_per_s": ("throughput, tok/s", 1),
    "ttft_ms_p50": ("TTFT p50, ms", 2),
    "itl_ms_p50": ("ITL p50, ms", 2),
    "itl_ms_p99": ("ITL p99, ms", 2),
}


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client.engine", description=__doc__)
    parser.add_argument("--turns", type=int, default=8, help="plays of each client")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="moeperf-engine-") as folder:
        run = Run(settings(Path(folder)), lambda phase, detail: note(f"{phase} {detail}"))
        try:
            server = run.serve(ServerSpec("mini-moe").on(run.engine("vllm")))
            for streams in args.streams:
                print(table(streams, in_turns(server, streams, args.turns)), flush=True)
        finally:
            run.pool.close()
    return 0


def settings(folder):
    return Settings(
        gpu="cpu",
        rules=Rules(),
        server_timeout_s=600.0,
        port=None,
        baseline_dir=folder,
        out_dir=folder,
        record=False,
        tool_version="benchmark",
    )


def in_turns(server, streams, turns):
    """What each client reported in each turn; one play of each before counts for nothing."""
    clients = [Moeperf(), Vllm()]
    reported = {client.name: [] for client in clients}
    for client in clients:
        client.prepare()
    for turn in range(turns + 1):
        for client in clients if turn % 2 else reversed(clients):
            result = play(client, server, streams)
            note(f"turn {turn}, {streams} streams, {client.name}: {result}")
            if turn:
                reported[client.name].append(result)
    return reported


def play(client, server, streams):
    with tempfile.TemporaryDirectory(prefix="moeperf-bench-") as folder:
        load = Load(
            url=server.url,
            streams=streams,
            waves=12 if streams == 1 else 2,
            output_tokens=OUTPUT_TOKENS,
            folder=Path(folder),
            model=server.model,
        )
        done = subprocess.run(
            [str(word) for word in client.command(load)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        if done.returncode not in client.exit_codes:
            raise SystemExit(f"{client.name} failed: {done.stderr[-2000:]}")
        return client.read(load, done.stdout)


def table(streams, reported):
    """Medians over the turns, and how far ours is from theirs."""
    ours, theirs = reported.values()
    head = "| streams | figure | moeperf load | vllm bench serve | ours ÷ theirs |"
    lines = [head, "|---:|---|---:|---:|---:|"]
    for name, (label, decimals) in FIGURES.items():
        left, right = (
            statistics.median(getattr(each, name) for each in side) if known(side, name) else None
            for side in (ours, theirs)
        )
        if left is None or right is None:
            continue
        lines.append(
            f"| {streams} | {label} | {left:.{decimals}f} | {right:.{decimals}f} | "
            f"{left / right:.3f} |"
        )
    return "\n".join(lines)


def known(side, name):
    return all(getattr(each, name) is not None for each in side)


def note(text):
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
