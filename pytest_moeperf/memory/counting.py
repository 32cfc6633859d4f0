"""How many weights a model has, tensor group by tensor group, and how each can be shared out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_moeperf.memory.architecture import Architecture

__all__ = [
    "GROUPS",
    "Part",
    "Split",
    "active_parameters",
    "first_parts",
    "last_parts",
    "layer_parts",
    "parameters",
    "total_parameters",
]

GROUPS = ("embeddings", "attention", "ffn", "experts", "shared_experts", "router", "norms")
"""`ffn`: blocks without experts. `shared_experts`: with their gate."""


class Split(Enum):
    """What becomes of a tensor on several GPUs."""

    TENSOR = "each GPU of tensor parallelism holds its share"
    KV_HEADS = "the same, but a key-value head stays whole and may be repeated"
    EXPERTS = "shared over all GPUs of a stage: whole experts under EP, else a slice of each"
    WHOLE = "repeated on every GPU"


@dataclass(frozen=True, slots=True)
class Part:
    """Weights of one group that are shared out and stored alike."""

    group: str
    weights: int
    split: Split
    quantized: bool = False
    """Whether a quantized checkpoint quantizes it: what multiplies tokens, but not the router."""
    absorbed: bool = False
    """Whether engines keep a second copy that is not quantized (`kv_b_proj` of MLA)."""


def parameters(arch: Architecture) -> Mapping[str, int]:
    """Count the weights by group, all of `GROUPS`.

    `embeddings` holds the input embedding and, unless tied, the output layer. Exact for the
    published checkpoints: Mixtral-8x7B sums to 46,702,792,704. Layers that predict further tokens
    for speculation (MTP of DeepSeek-V3) do not count, engines leave them out by default.
    """
    counts = Counter(dict.fromkeys(GROUPS, 0))
    last = [part for part in last_parts(arch) if not (arch.tied_embeddings and _embeds(part))]
    for part in (*first_parts(arch), *last):
        counts[part.group] += part.weights
    for layer in range(arch.layers):
        for part in layer_parts(arch, layer):
            counts[part.group] += part.weights
    return counts


def total_parameters(arch: Architecture) -> int:
    """Count every weight of the model."""
    return sum(parameters(arch).values())


def active_parameters(arch: Architecture) -> int:
    """Count the weights that one token uses: everything but the experts it is not routed to."""
    counts = parameters(arch)
    unused = counts["experts"] * (arch.experts - arch.top_k) // arch.experts if arch.experts else 0
    return sum(counts.values()) - unused


def first_parts(arch: Architecture) -> tuple[Part, ...]:
    """What comes before the layers."""
    return (Part("embeddings", arch.vocab * arch.hidden_size, Split.TENSOR),)


def last_parts(arch: Architecture) -> tuple[Part, ...]:
    """What comes after the layers; the output layer also where it is the input embedding."""
    return (
        Part("embeddings", arch.vocab * arch.hidden_size, Split.TENSOR),
        Part("norms", arch.hidden_size, Split.WHOLE),
    )


def layer_parts(arch: Architecture, layer: int) -> tuple[Part, ...]:
    """All weights of one layer."""
    attention = _latent_attention(arch) if arch.latent else _attention(arch)
    block = _mixture(arch) if arch.has_experts(layer) else _dense_block(arch)
    norms = Part("norms", 2 * arch.hidden_size, Split.WHOLE)
    return (*attention, *block, norms)


def _embeds(part: Part) -> bool:
    return part.group == "embeddings"


def _attention(arch: Architecture) -> Iterator[Part]:
    """MHA, GQA and MQA: query, key, value and output projection."""
    hidden = arch.hidden_size
    query, key = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    yield Part("attention", 2 * hidden * query, Split.TENSOR, quantized=True)
    yield Part("attention", 2 * hidden * key, Split.KV_HEADS, quantized=True)
    if arch.qkv_bias:
        yield Part("attention", query, Split.TENSOR)
        yield Part("attention", 2 * key, Split.KV_HEADS)
    if arch.output_bias:
        yield Part("attention", hidden, Split.WHOLE)
    if arch.sinks:
        yield Part("attention", arch.heads, Split.TENSOR)
    norms = {"none": 0, "per head": 2 * arch.head_dim, "whole": query + key}[arch.query_key_norm]
    yield Part("norms", norms, Split.WHOLE)


def _latent_attention(arch: Architecture) -> Iterator[Part]:
    """MLA: what compresses is repeated, what serves single heads is split."""
    latent, hidden = arch.latent, arch.hidden_size
    assert latent is not None  # noqa: S101 - the caller has looked
    query = arch.heads * (latent.nope_dim + latent.rope_dim)
    rank = latent.query_rank
    if rank is None:
        yield Part("attention", hidden * query, Split.TENSOR, quantized=True)
    else:
        yield Part("attention", hidden * rank, Split.WHOLE, quantized=True)
        yield Part("attention", rank * query, Split.TENSOR, quantized=True)
    yield Part(
        "attention", hidden * (latent.kv_rank + latent.rope_dim), Split.WHOLE, quantized=True
    )
    per_head = latent.kv_rank * (latent.nope_dim + latent.value_dim)
    yield Part("attention", arch.heads * per_head, Split.TENSOR, quantized=True, absorbed=True)
    yield Part("attention", arch.heads * latent.value_dim * hidden, Split.TENSOR, quantized=True)
    yield Part("norms", latent.kv_rank + (rank or 0), Split.WHOLE)


def _dense_block(arch: Architecture) -> Iterator[Part]:
    width = arch.dense_ffn if arch.experts else arch.ffn
    yield Part("ffn", 3 * arch.hidden_size * width, Split.TENSOR, quantized=True)
    if arch.mlp_bias:
        yield Part("ffn", 2 * width, Split.TENSOR)
        yield Part("ffn", arch.hidden_size, Split.WHOLE)


def _mixture(arch: Architecture) -> Iterator[Part]:
    """Experts of three projections (gate, up, down), the router, and what all tokens use."""
    hidden, experts = arch.hidden_size, arch.experts
    yield Part("experts", experts * 3 * hidden * arch.ffn, Split.EXPERTS, quantized=True)
    if arch.expert_bias:
        yield Part("experts", experts * (2 * arch.ffn + hidden), Split.EXPERTS)
    # One more weight an expert for a bias of the router, one for a correction of its choice.
    rows = hidden + arch.expert_bias + arch.router_correction
    yield Part("router", experts * rows, Split.WHOLE)
    if arch.shared_ffn:
        shared = 3 * hidden * arch.shared_ffn
        yield Part("shared_experts", shared, Split.TENSOR, quantized=True)
    if arch.shared_gate:
        yield Part("shared_experts", hidden, Split.WHOLE)
