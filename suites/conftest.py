"""The servers and the load that the suites measure, by class of hardware."""

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_moeperf import Burst, ClosedLoop, OpenLoop, ServerSpec, ShareGPT

MIXTRAL = ServerSpec("mixtral-8x7b", max_model_len=4096)
LLAMA = ServerSpec("llama-3.1-8b", max_model_len=4096)
MIXTRAL_TP2, LLAMA_TP2 = (replace(spec, tensor_parallel_size=2) for spec in (MIXTRAL, LLAMA))
MIXTRAL_EP2 = replace(MIXTRAL_TP2, expert_parallel=True)
QWEN_EP2 = ServerSpec(
    "qwen3-30b-a3b", max_model_len=4096, tensor_parallel_size=2, expert_parallel=True
)
MIXTRAL_EP4 = replace(MIXTRAL, tensor_parallel_size=4, expert_parallel=True)
ROUTING = "VLLM_MOE_ROUTING_SIMULATION_STRATEGY"
"""Makes vLLM draw experts in place of its router; other engines know no such thing."""
FEW_LAYERS = replace(MIXTRAL, overrides=(("num_hidden_layers", 4),))
"""So that one GPU has room for many experts."""
TRAINED, COLLAPSED = ServerSpec("tiny-moe-balanced"), ServerSpec("tiny-moe-collapsed")


def sized(spec, field, size):
    return replace(spec, overrides=(*spec.overrides, (field, size)))


ON_GPUS = {
    "model": (MIXTRAL, LLAMA, MIXTRAL_TP2, LLAMA_TP2, MIXTRAL_EP2),
    "mixture": (MIXTRAL, MIXTRAL_TP2, MIXTRAL_EP2),
    "plain": (LLAMA, LLAMA_TP2),
    "online": (MIXTRAL, LLAMA, MIXTRAL_TP2),
    "moe": MIXTRAL,
    "dense": LLAMA,
    "moe_tp2": MIXTRAL_TP2,
    "dense_tp2": LLAMA_TP2,
    "moe_ep2": MIXTRAL_EP2,
    "trained": (TRAINED, MIXTRAL),
    "specialised": TRAINED,
    "collapsed": COLLAPSED,
    "balancing": replace(QWEN_EP2, flags=("--enable-eplb",)),
    "unbalancing": QWEN_EP2,
    "skewed": replace(MIXTRAL_EP4, env=((ROUTING, "normal_routing"),)),
    "unskewed": replace(MIXTRAL_EP4, env=((ROUTING, "uniform_random"),)),
    "one_expert": sized(MIXTRAL, "num_experts_per_tok", 1),
    "eight_experts": FEW_LAYERS,
    "more_experts": tuple(sized(FEW_LAYERS, "num_local_experts", n) for n in (16, 32)),
    "narrower": tuple(sized(MIXTRAL, "intermediate_size", n) for n in (3584, 7168)),
}
ON_CPU = dict.fromkeys(ON_GPUS) | {
    "model": ServerSpec("mini-moe"),
    "mixture": ServerSpec("mini-moe"),
    "online": ServerSpec("mini-moe"),
    "moe": ServerSpec("mini-moe"),
    "dense": ServerSpec("mini-dense"),
    "trained": TRAINED,
    "specialised": TRAINED,
    "collapsed": COLLAPSED,
}
"""`model` is each that there is, `mixture` each with experts, `plain` each without, `online` those
that arrivals are timed on, which takes long; a single name is for comparisons. `dense` has the
size that one token of `moe` activates, or nearly. `specialised` has learned three kinds of text
alone, so that its experts are those of a kind; Mixtral's are not. Tests of what is None are
skipped."""


def pytest_moeperf_servers(hardware):
    return ON_CPU if hardware == "cpu" else ON_GPUS


def pytest_moeperf_values(hardware):
    if hardware == "cpu":
        return {"batch": [1, 2, 4, 8, 16], "rate": [2, 8], "flat_batch": [4]}
    return {"batch": [1, 2, 4, 8, 16, 32, 64], "rate": [1, 2, 4, 8], "flat_batch": [8, 64]}


@pytest.fixture(scope="session")
def single(gpu):
    """One request at a time."""
    if gpu.name == "cpu":
        return ClosedLoop(concurrency=1, isl=32, osl=48, requests=4)
    return ClosedLoop(concurrency=1, isl=32, osl=64, requests=8)


@pytest.fixture(scope="session")
def burst(gpu):
    """All requests at once; on GPUs as many and as long as in published figures."""
    if gpu.name == "cpu":
        return Burst(requests=16, isl=64, osl=32)
    return Burst(requests=100, isl=79, osl=128)


@pytest.fixture(scope="session")
def chats():
    """All requests at once, as many and as long as in published figures of dense models."""
    return Burst(requests=150, isl=70, osl=127)


@pytest.fixture(scope="session")
def arrivals(gpu):
    """Poisson arrivals by their rate, for a few seconds each."""
    requests, isl, osl = {1: 5, 2: 8, 4: 12, 8: 24}, 79, 128
    if gpu.name == "cpu":
        requests, isl, osl = {2: 6, 8: 16}, 32, 16
    return {
        rate: OpenLoop(request_rate=rate, requests=count, isl=isl, osl=osl)
        for rate, count in requests.items()
    }


@pytest.fixture(scope="session")
def ladder(gpu):
    """Streams that decode together, by their number.

    On GPUs few streams get more requests: which experts they read together is a matter of luck.
    """
    batches = pytest_moeperf_values(gpu.name)["batch"]
    requests = {batch: max(4, batch) for batch in batches}
    if gpu.name != "cpu":
        requests |= {2: 16, 4: 16, 8: 32}
    return {
        batch: ClosedLoop(concurrency=batch, isl=32, osl=32, requests=requests[batch])
        for batch in batches
    }


@pytest.fixture(scope="session")
def domains():
    """Prompts of three kinds that no model was trained on, by kind, to count experts with."""
    folder = Path(__file__).parent / "moe" / "prompts"
    return {
        kind: Burst(requests=64, isl=128, osl=4, prompts=ShareGPT(str(folder / f"{kind}.json")))
        for kind in ("arithmetic", "code", "prose")
    }
