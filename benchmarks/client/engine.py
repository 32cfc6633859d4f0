"""Compares `moeperf load` with `vllm bench serve` on a real engine, both at once.

    python -m benchmarks.client.engine

The engine is vLLM on the CPU with mini-moe. No log tells the truth here: what counts is that two
clients that share no code see the same. An engine on a CPU is up to a fifth faster or slower from
one half minute to the next, so the two play at the same time: it sends the tokens of both in the
same steps. The engine has one core and the clients another, so that neither slows it down.
"""

import argparse
import operator
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.client.clients import Load, Moeperf, Vllm
from pytest_moeperf import ServerSpec
from pytest_moeperf.measurement import Rules
from pytest_moeperf.run import Run, Settings
from pytest_moeperf.selftest import cores_here, pinned

OUTPUT_TOKENS = 48
TIMEOUT_S = 300.0
BEGUN = "Starting main benchmark run"
"""What `vllm bench serve` prints just before its first request that counts."""
FIGURES = {
    "chunks_per_s": ("throughput, tok/s", 1),
    "ttft_ms_p50": ("TTFT p50, ms", 2),
    "itl_ms_p50": ("ITL p50, ms", 2),
    "itl_ms_p99": ("ITL p99, ms", 2),
}


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client.engine", description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="plays of both clients")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32])
    args = parser.parse_args()
    cores = cores_here()
    os.sched_setaffinity(0, {cores.server})
    with tempfile.TemporaryDirectory(prefix="moeperf-engine-") as folder:
        run = Run(settings(Path(folder)), lambda phase, detail: note(f"{phase} {detail}"))
        try:
            server = run.serve(ServerSpec("mini-moe").on(run.resolver.engine("vllm")))
            for streams in args.streams:
                print(
                    table(streams, together(server, streams, args.turns, cores.client)), flush=True
                )
        finally:
            run.pool.close()
    return 0


def settings(folder):
    return Settings(
        gpu="cpu",
        rules=Rules(),
        server_timeout_s=600.0,
        port=None,
        out_dir=folder,
    )


def together(server, streams, turns, core):
    """What each client reported in each turn; the first turn warms the engine up."""
    clients = [Moeperf(), Vllm()]
    for client in clients:
        client.prepare()
    reported = {client.name: [] for client in clients}
    for turn in range(turns + 1):
        with pinned(core):
            results = play(*clients, server, streams)
        for client, result in zip(clients, results, strict=True):
            note(f"turn {turn}, {streams} streams, {client.name}: {result}")
            if turn:
                reported[client.name].append(result)
    return reported


def play(ours, theirs, server, streams):
    """One play of each client; ours begins when the other, which takes long to start, does."""
    with tempfile.TemporaryDirectory(prefix="moeperf-bench-") as folder:
        load = Load(
            url=server.url,
            streams=streams,
            waves=24 if streams == 1 else 3,
            output_tokens=OUTPUT_TOKENS,
            folder=Path(folder),
            model=server.model,
        )
        with started(theirs, load) as slow:
            said = iter(slow.stdout.readline, "")
            if not any(BEGUN in line for line in said):
                raise SystemExit(f"{theirs.name} did not begin: {slow.stderr.read()[-2000:]}")
            with started(ours, load) as fast:
                return tuple(
                    finished(client, load, process)
                    for client, process in ((ours, fast), (theirs, slow))
                )


def started(client, load):
    return subprocess.Popen(
        [str(word) for word in client.command(load)],
        cwd=load.folder,
        env={**os.environ, **client.env, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(client, load, process):
    output, errors = process.communicate(timeout=TIMEOUT_S)
    if process.returncode not in client.exit_codes:
        raise SystemExit(f"{client.name} failed: {errors[-2000:]}")
    return client.read(load, output)


def table(streams, reported):
    """Medians over the turns; the ratio is taken in each turn, in which both saw the same."""
    ours, theirs = reported.values()
    head = "| streams | figure | moeperf load | vllm bench serve | ours ÷ theirs |"
    lines = [head, "|---:|---|---:|---:|---:|"]
    for name, (label, decimals) in FIGURES.items():
        if not (known(ours, name) and known(theirs, name)):
            continue
        left, right = ([getattr(each, name) for each in side] for side in (ours, theirs))
        ratio = statistics.median(map(operator.truediv, left, right))
        lines.append(
            f"| {streams} | {label} | {statistics.median(left):.{decimals}f} | "
            f"{statistics.median(right):.{decimals}f} | {ratio:.3f} |"
        )
    return "\n".join(lines)


def known(side, name):
    return all(getattr(each, name) is not None for each in side)


def note(text):
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
