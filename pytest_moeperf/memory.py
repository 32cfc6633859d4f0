"""How many parameters a model has and how many tokens fit its KV cache, from its config alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from pytest_moeperf.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Architecture",
    "active_parameters",
    "kv_bytes_per_token",
    "kv_tokens",
    "parameters",
    "total_parameters",
    "weight_bytes",
]

QueryKeyNorm = Literal["none", "per head", "whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """How one `model_type` spells what the others spell differently."""

    ffn: str = "intermediate_size"
    experts: str | None = None
    query_key_norm: QueryKeyNorm = "none"


_FAMILIES: Final[Mapping[str, _Family]] = {
    "llama": _Family(),
    "mistral": _Family(),
    "mixtral": _Family(experts="num_local_experts"),
    "olmoe": _Family(experts="num_experts", query_key_norm="whole"),
    "qwen3": _Family(query_key_norm="per head"),
    "qwen3_moe": _Family(
        ffn="moe_intermediate_size", experts="num_experts", query_key_norm="per head"
    ),
}

_DTYPE_BYTES: Final[Mapping[str, int]] = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The sizes of a decoder-only transformer that decide memory and traffic."""

    model_type: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    """Intermediate size of one expert, or of the whole block of a dense model."""
    experts: int
    """Experts in a layer; 0 in a dense model."""
    top_k: int
    """Experts that one token uses; 0 in a dense model."""
    vocab: int
    tied_embeddings: bool
    """Whether the output layer shares the embedding's weights."""
    dtype_bytes: int
    """Bytes of one weight as stored."""
    query_key_norm: QueryKeyNorm = "none"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """Read a Hugging Face `config.json`; raises ModelError naming the field that is wrong."""
        model_type = config.get("model_type")
        family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
        if model_type is None or family is None:
            known = ", ".join(sorted(_FAMILIES))
            raise ModelError(f"model_type {model_type!r} in config.json is not one of: {known}")
        _refuse_uneven_layers(config)
        heads = _positive(config, "num_attention_heads")
        hidden_size = _positive(config, "hidden_size")
        return cls(
            model_type=model_type,
            hidden_size=hidden_size,
            layers=_positive(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=_positive(config, "num_key_value_heads", default=heads),
            head_dim=_positive(config, "head_dim", default=hidden_size // heads),
            ffn=_positive(config, family.ffn),
            experts=_positive(config, family.experts) if family.experts else 0,
            top_k=_positive(config, "num_experts_per_tok") if family.experts else 0,
            vocab=_positive(config, "vocab_size"),
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            dtype_bytes=_dtype_bytes(config),
            query_key_norm=family.query_key_norm,
        )


def parameters(arch: Architecture) -> Mapping[str, int]:
    """Count the weights by group: embeddings, attention, ffn, experts, router, norms.

    `embeddings` holds the input embedding and, unless tied, the output layer. Exact for the
    published checkpoints: Mixtral-8x7B sums to 46,702,792,704.
    """
    hidden, layers = arch.hidden_size, arch.layers
    query, key = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    query_key_norm = {"none": 0, "per head": 2 * arch.head_dim, "whole": query + key}
    block = 3 * hidden * arch.ffn  # gate, up and down projection
    return {
        "embeddings": arch.vocab * hidden * (1 if arch.tied_embeddings else 2),
        "attention": layers * 2 * hidden * (query + key),
        "ffn": 0 if arch.experts else layers * block,
        "experts": layers * arch.experts * block,
        "router": layers * arch.experts * hidden,
        "norms": layers * (2 * hidden + query_key_norm[arch.query_key_norm]) + hidden,
    }


def total_parameters(arch: Architecture) -> int:
    """Count every weight of the model."""
    return sum(parameters(arch).values())


def active_parameters(arch: Architecture) -> int:
    """Count the weights that one token uses: everything but the experts it is not routed to."""
    counts = parameters(arch)
    unused = counts["experts"] * (arch.experts - arch.top_k) // arch.experts if arch.experts else 0
    return sum(counts.values()) - unused


def weight_bytes(arch: Architecture, *, tensor_parallel_size: int = 1) -> int:
    """Size of all weights as stored, in bytes; under tensor parallelism those of one GPU.

    Each GPU holds its share of the matrices, and routers and norms whole. Key-value heads cannot be
    split: with more GPUs than heads, several hold the same one. Experts take the same room whether
    each is split or, under expert parallelism, each stays whole on one GPU.
    """
    counts = parameters(arch)
    whole = counts["router"] + counts["norms"]
    hidden_to_kv = 2 * arch.layers * arch.hidden_size * arch.head_dim
    split = sum(counts.values()) - whole - hidden_to_kv * arch.kv_heads
    share = -(-split // tensor_parallel_size)
    kept = share + hidden_to_kv * _kv_heads(arch, tensor_parallel_size) + whole
    return kept * arch.dtype_bytes


def kv_bytes_per_token(
    arch: Architecture, dtype_bytes: int = 2, *, tensor_parallel_size: int = 1
) -> int:
    """Bytes of keys and values that one token leaves in all layers of one GPU (MHA and GQA)."""
    heads = _kv_heads(arch, tensor_parallel_size)
    return 2 * arch.layers * heads * arch.head_dim * dtype_bytes


def _kv_heads(arch: Architecture, tensor_parallel_size: int) -> int:
    """Key-value heads that each GPU has."""
    return max(1, arch.kv_heads // tensor_parallel_size)


def kv_tokens(
    kv_bytes: int,
    arch: Architecture,
    *,
    block_size: int,
    dtype_bytes: int = 2,
    context_tokens: int | None = None,
    tensor_parallel_size: int = 1,
) -> int:
    """Tokens that a KV cache of `kv_bytes` a GPU holds, in whole blocks of `block_size` tokens.

    With `context_tokens` the answer is the one that vLLM ≥ 0.30 logs as `KV cache size`: requests
    of that full length that fit at once, times the length (`get_kv_cache_capacity` in
    `vllm/v1/core/kv_cache_utils.py`). The two differ where a context is not a multiple of the
    block size, because the end of each request's last block stays empty.
    """
    token_bytes = kv_bytes_per_token(arch, dtype_bytes, tensor_parallel_size=tensor_parallel_size)
    blocks = kv_bytes // (block_size * token_bytes)
    if context_tokens is None:
        return blocks * block_size
    blocks_per_request = -(-context_tokens // block_size)
    return blocks * context_tokens // blocks_per_request


def _positive(config: Mapping[str, Any], field: str, *, default: int | None = None) -> int:
    value = config.get(field)
    if value is None and default is not None:
        return default
    if value is None:
        raise ModelError(f"config.json lacks {field}")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{field} in config.json is {value!r}, not a positive whole number")
    return value


def _dtype_bytes(config: Mapping[str, Any]) -> int:
    # transformers 5 writes `dtype` where 4 wrote `torch_dtype`.
    name = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if name not in _DTYPE_BYTES:
        known = ", ".join(_DTYPE_BYTES)
        raise ModelError(f"dtype {name!r} in config.json is not one of: {known}")
    return _DTYPE_BYTES[name]


def _refuse_uneven_layers(config: Mapping[str, Any]) -> None:
    """Counts here assume that all layers are alike and projections have no bias."""
    usual: Mapping[str, tuple[Any, ...]] = {
        "attention_bias": (None, False),
        "mlp_bias": (None, False),
        "decoder_sparse_step": (None, 1),
        "mlp_only_layers": (None, []),
    }
    for field, values in usual.items():
        if config.get(field) not in values:
            raise ModelError(f"{field} = {config[field]!r} in config.json is not supported")
