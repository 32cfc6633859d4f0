"""The sizes of a model that decide its memory and traffic, read from its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from pytest_moeperf.errors import ModelError
from pytest_moeperf.memory import config as fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Architecture", "Latent"]

QueryKeyNorm = Literal["none", "per head", "whole"]

_NO = (None, False)
_EVEN: Final[dict[str, tuple[Any, ...]]] = {
    "decoder_sparse_step": (None, 1),
    "mlp_only_layers": (None, []),
    "moe_layer_freq": (None, 1),
    "first_k_dense_replace": (None, 0),
}
_NO_BIAS: Final[dict[str, tuple[Any, ...]]] = {"attention_bias": _NO, "mlp_bias": _NO}


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """Multi-head latent attention (MLA): keys and values from one small vector a token.

    DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.1.
    """

    query_rank: int | None
    """Of the compressed query; None: queries are projected directly."""
    kv_rank: int
    rope_dim: int
    """Of a head's part that carries the position; keys of all heads share it."""
    nope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The sizes of a decoder-only transformer that decide memory and traffic."""

    model_type: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    """1 under MLA: what is cached is common to all heads."""
    head_dim: int
    """Of a query; under MLA with its part that carries the position."""
    ffn: int
    """Intermediate size of one expert, or of the whole block of a dense model."""
    experts: int
    """Experts in a layer; 0 in a dense model. Shared experts do not count."""
    top_k: int
    """Experts that one token uses; 0 in a dense model."""
    vocab: int
    tied_embeddings: bool
    """Whether the output layer shares the embedding's weights."""
    dtype_bytes: int
    """Bytes of one weight that is not quantized."""
    positions: int = 0
    """Longest context that the model knows, in tokens; 0 where the config does not say."""
    quantization: str | None = None
    """How the checkpoint is quantized, if it is: `fp8`, `int4`, `mxfp4`, or its own word."""
    query_key_norm: QueryKeyNorm = "none"
    latent: Latent | None = None
    dense_layers: tuple[int, ...] = ()
    """Layers of a mixture that have a dense block in place of experts."""
    dense_ffn: int = 0
    """Intermediate size of that block."""
    shared_ffn: int = 0
    """Intermediate size of all shared experts of a layer together."""
    shared_gate: bool = False
    """Whether a gate of its own weighs the shared expert."""
    qkv_bias: bool = False
    output_bias: bool = False
    """Of the attention's output projection."""
    mlp_bias: bool = False
    """Of a dense model's blocks."""
    expert_bias: bool = False
    """Of experts and router."""
    router_correction: bool = False
    """Whether each expert has a bias that only the choice of experts sees (DeepSeek-V3)."""
    sinks: bool = False
    """Whether each head has a learned sink (gpt-oss)."""
    window: int | None = None
    """Tokens that the layers below look back on; None where there is none such."""
    window_layers: tuple[int, ...] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """Read a Hugging Face `config.json`; raises ModelError naming the field that is wrong."""
        model_type = config.get("model_type")
        family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
        if not isinstance(model_type, str) or family is None:
            known = ", ".join(sorted(_FAMILIES))
            raise ModelError(f"model_type {model_type!r} is not one of: {known}")
        heads = fields.positive(config, "num_attention_heads")
        hidden_size = fields.positive(config, "hidden_size")
        sizes = {
            "model_type": model_type,
            "hidden_size": hidden_size,
            "layers": fields.positive(config, "num_hidden_layers"),
            "heads": heads,
            "kv_heads": fields.positive(config, "num_key_value_heads", default=heads),
            "head_dim": fields.positive(config, "head_dim", default=max(1, hidden_size // heads)),
            "ffn": fields.positive(config, family.ffn),
            **_experts(config, family.experts),
            "vocab": fields.positive(config, "vocab_size"),
            "tied_embeddings": fields.flag(config, "tie_word_embeddings", default=False),
            "dtype_bytes": fields.dtype_bytes(config),
            "positions": fields.natural(config, "max_position_embeddings"),
            "quantization": fields.quantization(config),
            "query_key_norm": family.query_key_norm,
        }
        return cls(**{**sizes, **family.more(config)})

    @property
    def attention_kind(self) -> str:
        """MHA, GQA, MQA or MLA."""
        if self.latent is not None:
            return "MLA"
        if self.kv_heads == self.heads:
            return "MHA"
        return "MQA" if self.kv_heads == 1 else "GQA"

    def has_experts(self, layer: int) -> bool:
        """Whether the layer is a mixture of experts."""
        return self.experts > 0 and layer not in self.dense_layers

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """The layers that are a mixture of experts, and so have a router; none if it is dense."""
        return tuple(filter(self.has_experts, range(self.layers)))


def _experts(config: Mapping[str, Any], field: str | None) -> dict[str, int]:
    """Read how many experts a layer has and a token takes; `field` is the family's own word."""
    if field is None:
        return {"experts": 0, "top_k": 0}
    experts = fields.positive(config, field)
    top_k = fields.positive(config, "num_experts_per_tok")
    if top_k > experts:
        raise ModelError(f"num_experts_per_tok is {top_k}, more than the {experts} of {field}")
    return {"experts": experts, "top_k": top_k}


def _mistral(config: Mapping[str, Any]) -> dict[str, Any]:
    fields.refuse(config, _EVEN | _NO_BIAS)
    return _windows(config, late=0)


def _llama(config: Mapping[str, Any]) -> dict[str, Any]:
    fields.refuse(config, _EVEN)
    return _attention_bias(config) | {"mlp_bias": fields.flag(config, "mlp_bias", default=False)}


def _olmoe(config: Mapping[str, Any]) -> dict[str, Any]:
    fields.refuse(config, _EVEN | {"mlp_bias": _NO})
    return _attention_bias(config)


def _qwen3(config: Mapping[str, Any]) -> dict[str, Any]:
    fields.refuse(config, _EVEN | {"mlp_bias": _NO})
    return _attention_bias(config) | _qwen_windows(config)


def _qwen3_moe(config: Mapping[str, Any]) -> dict[str, Any]:
    return _attention_bias(config) | _qwen_windows(config) | _qwen_dense_layers(config)


def _qwen2_moe(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "qkv_bias": fields.flag(config, "qkv_bias", default=True),
        "shared_ffn": fields.positive(config, "shared_expert_intermediate_size"),
        "shared_gate": True,
        **_qwen_windows(config),
        **_qwen_dense_layers(config),
    }


def _deepseek(config: Mapping[str, Any]) -> dict[str, Any]:
    fields.refuse(config, _NO_BIAS)
    layers = fields.positive(config, "num_hidden_layers")
    first = fields.natural(config, "first_k_dense_replace")
    step = fields.positive(config, "moe_layer_freq", default=1)
    latent = Latent(
        query_rank=fields.natural(config, "q_lora_rank") or None,
        kv_rank=fields.positive(config, "kv_lora_rank"),
        rope_dim=fields.positive(config, "qk_rope_head_dim"),
        nope_dim=fields.positive(config, "qk_nope_head_dim"),
        value_dim=fields.positive(config, "v_head_dim"),
    )
    expert = fields.positive(config, "moe_intermediate_size")
    return {
        "latent": latent,
        "kv_heads": 1,
        "head_dim": latent.nope_dim + latent.rope_dim,
        "dense_layers": tuple(each for each in range(layers) if each < first or each % step),
        "dense_ffn": fields.positive(config, "intermediate_size"),
        "shared_ffn": expert * fields.natural(config, "n_shared_experts"),
        "router_correction": config["model_type"] != "deepseek_v2",
    }


def _gpt_oss(config: Mapping[str, Any]) -> dict[str, Any]:
    layers = fields.positive(config, "num_hidden_layers")
    found = fields.windowed(config, layers, unlisted=range(0, layers, 2))
    return {
        **_attention_bias(config, default=True),
        "expert_bias": True,
        "sinks": True,
        "window": fields.positive(config, "sliding_window"),
        "window_layers": found,
    }


def _attention_bias(config: Mapping[str, Any], *, default: bool = False) -> dict[str, Any]:
    bias = fields.flag(config, "attention_bias", default=default)
    return {"qkv_bias": bias, "output_bias": bias}


def _windows(config: Mapping[str, Any], *, late: int) -> dict[str, Any]:
    """Read the sliding window; without a list of layers, those from `late` on have it."""
    if config.get("sliding_window") is None:
        return {}
    layers = fields.positive(config, "num_hidden_layers")
    return {
        "window": fields.positive(config, "sliding_window"),
        "window_layers": fields.windowed(config, layers, unlisted=range(late, layers)),
    }


def _qwen_windows(config: Mapping[str, Any]) -> dict[str, Any]:
    if not fields.flag(config, "use_sliding_window", default=False):
        return {}
    return _windows(config, late=fields.natural(config, "max_window_layers"))


def _qwen_dense_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    layers = fields.positive(config, "num_hidden_layers")
    step = fields.positive(config, "decoder_sparse_step", default=1)
    listed = fields.layer_list(config, "mlp_only_layers", layers)
    dense = tuple(each for each in range(layers) if each in listed or (each + 1) % step)
    return {
        "dense_layers": dense,
        "dense_ffn": fields.positive(config, "intermediate_size") if dense else 0,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """How one `model_type` spells what the others spell differently."""

    more: Callable[[Mapping[str, Any]], dict[str, Any]]
    """The fields of an architecture that only some families have."""
    ffn: str = "intermediate_size"
    experts: str | None = None
    query_key_norm: QueryKeyNorm = "none"


_DEEPSEEK: Final = _Family(more=_deepseek, ffn="moe_intermediate_size", experts="n_routed_experts")
_FAMILIES: Final[Mapping[str, _Family]] = {
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "gpt_oss": _Family(more=_gpt_oss, experts="num_local_experts"),
    "kimi_k2": _DEEPSEEK,
    "llama": _Family(more=_llama),
    "mistral": _Family(more=_mistral),
    "mixtral": _Family(more=_mistral, experts="num_local_experts"),
    "olmoe": _Family(more=_olmoe, experts="num_experts", query_key_norm="whole"),
    "qwen2_moe": _Family(more=_qwen2_moe, ffn="moe_intermediate_size", experts="num_experts"),
    "qwen3": _Family(more=_qwen3, query_key_norm="per head"),
    "qwen3_moe": _Family(
        more=_qwen3_moe,
        ffn="moe_intermediate_size",
        experts="num_experts",
        query_key_norm="per head",
    ),
}
