"""What one GPU holds of a model: which weights, and in how many bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pytest_moeperf.memory.counting import (
    GROUPS,
    Split,
    first_parts,
    last_parts,
    layer_parts,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_moeperf.memory.architecture import Architecture
    from pytest_moeperf.memory.counting import Part

__all__ = [
    "PRECISIONS",
    "Parallelism",
    "Precision",
    "kv_heads_per_gpu",
    "rotary_bytes",
    "stage_bytes",
    "stages",
    "stored_precision",
    "unservable",
    "weight_bytes",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """How a model is spread, in vLLM's words; GPUs: tensor × pipeline × data."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    """Ranks with an attention and a cache of their own, which share the experts."""
    experts_whole: bool = False
    """Expert parallelism: experts are dealt out whole, not sliced."""

    @property
    def gpus(self) -> int:
        """How many it takes."""
        return self.tensor * self.pipeline * self.data

    @property
    def label(self) -> str:
        """`TP=2 PP=2 EP`."""
        sizes = {"TP": self.tensor, "PP": self.pipeline, "DP": self.data}
        named = [f"{name}={size}" for name, size in sizes.items() if size > 1]
        return " ".join([*(named or ["TP=1"]), *(["EP"] if self.experts_whole else [])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How the weights that a format quantizes are stored: the others keep the model's dtype."""

    name: str
    bits: int
    """Of one weight."""
    block: int = 0
    """Weights that share scales; 0 where nothing is quantized."""
    scale_bits: int = 0
    """Of a block's scales and zero points."""
    experts_alone: bool = False
    """Whether attention and shared experts are left as they are."""

    def bytes(self, weights: int) -> int:
        """Size of so many quantized weights with their scales."""
        blocks = -(-weights // self.block) if self.block else 0
        return -(-weights * self.bits // 8) + -(-blocks * self.scale_bits // 8)


PRECISIONS: Final[Mapping[str, Precision]] = {
    each.name: each
    for each in (
        Precision(name="bf16", bits=16),
        Precision(name="fp32", bits=32),
        # A float32 for 128 × 128 weights, as in the checkpoints of DeepSeek-V3.
        Precision(name="fp8", bits=8, block=128 * 128, scale_bits=32),
        # AWQ and GPTQ in groups of 128: a 16-bit scale and a 4-bit zero point.
        Precision(name="int4", bits=4, block=128, scale_bits=20),
        # OCP Microscaling: an 8-bit exponent for 32 weights; gpt-oss has its experts so.
        Precision(name="mxfp4", bits=4, block=32, scale_bits=8, experts_alone=True),
    )
}


def stored_precision(arch: Architecture) -> Precision | None:
    """How the checkpoint is stored; None where its quantization is not one of `PRECISIONS`."""
    return PRECISIONS.get(arch.quantization or _plain(arch))


def weight_bytes(arch: Architecture, *, tensor_parallel_size: int = 1) -> int:
    """Size of all weights as stored, in bytes; under tensor parallelism those of one GPU.

    Each GPU holds its share of the matrices, and routers and norms whole. Key-value heads cannot be
    split: with more GPUs than heads, several hold the same one. Experts take the same room whether
    each is split or, under expert parallelism, each stays whole on one GPU. A quantization that is
    not known counts as none, which is an upper bound.
    """
    precision = stored_precision(arch) or PRECISIONS[_plain(arch)]
    parallel = Parallelism(tensor=tensor_parallel_size)
    return sum(stage_bytes(arch, parallel, precision, stage=0).values())


def rotary_bytes(arch: Architecture) -> int:
    """Size of the sines and cosines of all positions, in bytes: whole on each GPU, no weights.

    vLLM's `RotaryEmbedding` keeps one table for all layers, in the model's dtype, as long as
    `max_position_embeddings`. It shows where the weights are shared out and the context is long:
    of Llama-3.1-8B 0.4 % at TP=2.
    """
    turned = arch.head_dim if arch.latent is None else arch.latent.rope_dim
    return arch.positions * turned * arch.dtype_bytes


def stages(layers: int, pipeline: int) -> tuple[range, ...]:
    """Layers of each pipeline stage: even, and one more for those before the last.

    `get_pp_indices` in vLLM's `distributed/utils.py`.
    """
    sizes = [layers // pipeline] * pipeline
    for index in range(2, layers % pipeline + 2):
        sizes[-index] += 1
    starts = [sum(sizes[:stage]) for stage in range(pipeline)]
    return tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))


@lru_cache(maxsize=1024)
def stage_bytes(
    arch: Architecture, parallel: Parallelism, precision: Precision, *, stage: int
) -> Mapping[str, int]:
    """Bytes of each tensor group on a GPU of a pipeline stage, all of `GROUPS`.

    A quantized format leaves embeddings, output layer, router, norms and biases in the model's
    dtype (vLLM's `--quantization fp8`, AWQ and GPTQ checkpoints).
    """
    found = Counter(dict.fromkeys(GROUPS, 0))
    for part in _stage_parts(arch, parallel, stage):
        found[part.group] += _bytes(_share(part, arch, parallel), part, arch, precision)
    return found


def unservable(arch: Architecture, parallel: Parallelism) -> str:
    """Why engines refuse to spread the model so; empty where they do not."""
    tensor, heads, kv_heads = parallel.tensor, arch.heads, arch.kv_heads
    if heads % tensor:
        return f"TP={tensor} does not divide the {heads} attention heads"
    if arch.latent is None and kv_heads % tensor and tensor % kv_heads:
        return f"TP={tensor} does not divide the {kv_heads} key-value heads, nor they it"
    if parallel.pipeline > arch.layers:
        return f"PP={parallel.pipeline} is more than the {arch.layers} layers"
    if not arch.experts:
        return "a dense model has no experts to spread" if parallel.experts_whole else ""
    over = tensor * parallel.data
    if not parallel.experts_whole and arch.ffn % over:
        return f"{over} GPUs do not divide the {arch.ffn} columns of an expert; use --ep"
    return ""


def kv_heads_per_gpu(arch: Architecture, tensor: int) -> int:
    """Key-value heads that each GPU has."""
    return max(1, arch.kv_heads // tensor)


def _plain(arch: Architecture) -> str:
    return "fp32" if arch.dtype_bytes == 4 else "bf16"  # noqa: PLR2004 - bytes


def _stage_parts(arch: Architecture, parallel: Parallelism, stage: int) -> Iterator[Part]:
    layers = stages(arch.layers, parallel.pipeline)[stage]
    first, last = stage == 0, stage == parallel.pipeline - 1
    if first:
        yield from first_parts(arch)
    for layer in layers:
        yield from layer_parts(arch, layer)
    if last:
        for part in last_parts(arch):
            # Where one GPU has both ends, a tied output layer is the embedding itself.
            shared = first and arch.tied_embeddings and part.group == "embeddings"
            yield replace(part, weights=0) if shared else part


def _share(part: Part, arch: Architecture, parallel: Parallelism) -> int:
    """Weights of the part that the fullest GPU holds."""
    match part.split:
        case Split.WHOLE:
            return part.weights
        case Split.TENSOR:
            return -(-part.weights // parallel.tensor)
        case Split.KV_HEADS:
            return part.weights // arch.kv_heads * kv_heads_per_gpu(arch, parallel.tensor)
        case Split.EXPERTS:
            ranks = parallel.tensor * parallel.data
            if not parallel.experts_whole:
                return -(-part.weights // ranks)
            return part.weights // arch.experts * -(-arch.experts // ranks)


def _bytes(weights: int, part: Part, arch: Architecture, precision: Precision) -> int:
    if precision.block == 0:  # The dtype of all weights.
        return weights * precision.bits // 8
    plain = weights * arch.dtype_bytes
    if not part.quantized or (precision.experts_alone and part.group != "experts"):
        return plain
    # Decoding multiplies by `kv_b_proj` from the other side, for which vLLM keeps it unquantized.
    return precision.bytes(weights) + (plain if part.absorbed else 0)
