"""Whether a model fits GPUs, what fills them, and what would make it fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pytest_moeperf.memory.kvcache import kv_tokens
from pytest_moeperf.memory.sharding import (
    PRECISIONS,
    Parallelism,
    Precision,
    stage_bytes,
    stages,
    unservable,
)
from pytest_moeperf.units import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_moeperf.memory.architecture import Architecture

__all__ = ["KV_BYTES", "Fit", "Request", "activation_bytes", "fit", "least_gpus", "remedies"]


KV_BYTES: Final[Mapping[str, int]] = {"bf16": 2, "fp8": 1}
"""Bytes of one cached value; the scales of FP8 caches are one a layer."""

DRIVER_GIB: Final = 0.6
"""What the driver counts as a GPU's memory and CUDA does not give: 140.4 and 139.8 on an H200."""
RUNTIME_GIB: Final = 0.6
"""CUDA context and libraries. Estimate: what vLLM 0.24.0 logs leave unexplained on one H200 is
0.6 GiB with Mixtral-8x7B and 0.4 to 0.6 with Llama-3.1-8B."""
LINKS_GIB: Final = 0.3
"""Buffers of NCCL and of the custom all-reduce. Estimate from the same logs at TP=2."""
GRAPHS_GIB: Final = 0.6
"""CUDA graphs. vLLM 0.24.0 logs 0.64 GiB for Mixtral-8x7B (0.54 estimated and reserved), 0.53 at
TP=2, 0.98 for Llama-3.1-8B, where it reserves none."""
BATCHED_TOKENS: Final = 8192
"""`max_num_batched_tokens` that vLLM serves with by default on GPUs of 70 GiB or more."""
BATCHED_SEQUENCES: Final = 1024
"""`max_num_seqs`, likewise: rows of logits."""
BLOCK_TOKENS: Final = 16
"""vLLM's block on GPUs."""
MOST_GPUS: Final = 64
MOST_TENSOR: Final = 8
"""Tensor parallelism is not searched beyond one host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to fit, and on what."""

    arch: Architecture
    gpu_gib: float
    """Memory of one GPU, as its driver counts it."""
    parallel: Parallelism
    precision: Precision
    kv_dtype: str
    """Of `KV_BYTES`."""
    context_tokens: int
    """Length that a request may have, prompt and answer."""
    concurrency: int
    """Requests of that length at once."""
    utilization: float
    """Share of CUDA's memory that the engine may use (`--gpu-memory-utilization`)."""

    @property
    def kv_bytes(self) -> int:
        """Of one cached value."""
        return KV_BYTES[self.kv_dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What one GPU of the fullest pipeline stage holds, in bytes, and what that leaves room for."""

    weights: Mapping[str, int]
    """By tensor group."""
    activations: int
    graphs: int
    runtime: int
    """CUDA context, libraries and communication."""
    kv_cache: int
    """What is left for the cache; negative by what is lacking."""
    unused: int
    """What the utilisation leaves alone, and the driver's part."""
    kv_tokens: int
    """Tokens that the cache of all GPUs holds at the asked context."""
    sequences: int
    """Most requests of that context at once, on all GPUs."""
    fits: bool

    @property
    def weight_bytes(self) -> int:
        """All groups together."""
        return sum(self.weights.values())


def fit(request: Request) -> Fit:
    """Work out every pipeline stage; the one that holds the fewest tokens decides.

    Weights are exact but for what engines pad. Activations, graphs and runtime are estimates with
    their sources in this module; they are the same in kind for vLLM and SGLang. Communication
    buffers of expert parallelism across hosts are not in them.
    """
    found = [_stage(request, stage) for stage in range(request.parallel.pipeline)]
    return min(found, key=lambda each: (each.kv_tokens, each.kv_cache))


def activation_bytes(arch: Architecture, parallel: Parallelism) -> int:
    """Peak of what a full batch computes on, beside its weights: an estimate.

    Hidden states and residual; then the larger of logits (float32) and one layer's block. A fused
    mixture keeps, for each token and chosen expert, gate and up projection (or, reused, the output)
    and the activated product (vLLM's `fused_experts`: `intermediate_cache1` to `3`).
    """
    hidden_states = 2 * BATCHED_TOKENS * arch.hidden_size
    ranks = 1 if parallel.experts_whole else parallel.tensor * parallel.data
    width = arch.ffn // ranks
    routed = arch.top_k * (max(2 * width, arch.hidden_size) + width) if arch.experts else 0
    dense = (arch.dense_ffn if arch.experts else arch.ffn) // parallel.tensor
    shared = arch.shared_ffn // parallel.tensor
    block = BATCHED_TOKENS * max(routed + 3 * shared, 3 * dense)
    logits = BATCHED_SEQUENCES * arch.vocab
    return 2 * hidden_states + max(2 * block, 4 * logits)


def least_gpus(request: Request, *, gpu_gib: float) -> Parallelism | None:
    """Return the smallest spread that fits GPUs of that size; None where 64 are too few.

    By tensor parallelism up to 8, and pipeline stages where that does not divide the model or is
    not enough. Data parallelism is left out: it repeats the attention.
    """
    spread = replace(request.parallel, pipeline=1, data=1)
    for parallel in _spreads(request.arch, spread):
        if fit(replace(request, parallel=parallel, gpu_gib=gpu_gib)).fits:
            return parallel
    return None


def remedies(request: Request) -> Iterator[str]:
    """Single changes, each of which would make the request fit; nothing where none does."""
    found = fit(request)
    if found.sequences:
        yield f"--concurrency {found.sequences}"
    if context := _longest_context(request):
        yield f"--context {context}"
    if request.kv_dtype != "fp8" and fit(replace(request, kv_dtype="fp8")).fits:
        yield "--kv-dtype fp8"
    for name in ("fp8", "int4"):
        precision = PRECISIONS[name]
        smaller = precision.bits < request.precision.bits
        if smaller and fit(replace(request, precision=precision)).fits:
            yield f"--dtype {name}"


def _stage(request: Request, stage: int) -> Fit:
    arch, parallel = request.arch, request.parallel
    usable = (request.gpu_gib - DRIVER_GIB) * GIB
    budget = int(usable * request.utilization)
    weights = stage_bytes(arch, parallel, request.precision, stage=stage)
    activations, graphs = activation_bytes(arch, parallel), int(GRAPHS_GIB * GIB)
    runtime = int((RUNTIME_GIB + (LINKS_GIB if parallel.gpus > 1 else 0)) * GIB)
    kv_cache = budget - sum(weights.values()) - activations - graphs - runtime
    tokens = parallel.data * kv_tokens(
        kv_cache,
        arch,
        block_size=BLOCK_TOKENS,
        dtype_bytes=request.kv_bytes,
        context_tokens=request.context_tokens,
        tensor_parallel_size=parallel.tensor,
        layers=stages(arch.layers, parallel.pipeline)[stage],
    )
    sequences = parallel.data * (tokens // parallel.data // request.context_tokens)
    return Fit(
        weights=weights,
        activations=activations,
        graphs=graphs,
        runtime=runtime,
        kv_cache=kv_cache,
        unused=int(request.gpu_gib * GIB) - budget,
        kv_tokens=tokens,
        sequences=sequences,
        fits=sequences >= request.concurrency,
    )


def _longest_context(request: Request) -> int:
    """Longest context below the asked one at which the concurrency fits, in whole blocks; 0: none.

    A longer context never fits where a shorter one does not.
    """
    low, high = 0, request.context_tokens // BLOCK_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        if fit(replace(request, context_tokens=middle * BLOCK_TOKENS)).fits:
            low = middle
        else:
            high = middle - 1
    return low * BLOCK_TOKENS


def _spreads(arch: Architecture, asked: Parallelism) -> Iterator[Parallelism]:
    """Ways to use 1, 2, 3 … GPUs that engines accept, most tensor parallelism first.

    Beyond one host each stage is as wide as it can be: pipelines of single GPUs are nobody's plan.
    """
    widths = range(MOST_TENSOR, 0, -1)
    able = [width for width in widths if not unservable(arch, replace(asked, tensor=width))]
    for gpus in range(1, MOST_GPUS + 1):
        for tensor in able if gpus <= MOST_TENSOR else able[:1]:
            if gpus % tensor == 0 and gpus // tensor <= arch.layers:
                yield replace(asked, tensor=tensor, pipeline=gpus // tensor)
