"""What a model takes on a GPU, so that a fake engine's log has figures that fit its model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pytest_moeperf.units import GIB

__all__ = ["ModelSizes"]

BYTES_PER_WEIGHT = 2
EXPERT_KEYS = ("num_local_experts", "num_experts")
FFN_KEYS = ("moe_intermediate_size", "intermediate_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """A decoder-only transformer in bfloat16, with or without experts, and nothing exotic."""

    experts: int
    """0: a dense model."""
    ffn: int
    split: int
    """Weights of which each GPU holds its share."""
    whole: int
    """Weights that each GPU holds: router and norms."""
    kv_per_token: int
    """Keys and values of one token, of all layers and heads."""

    @classmethod
    def of(cls, model: str) -> Self | None:
        """Read the model directory; None if it has no config that tells its sizes."""
        try:
            config: dict[str, Any] = json.loads(Path(model, "config.json").read_bytes())
            hidden, layers = config["hidden_size"], config["num_hidden_layers"]
            heads = config["num_attention_heads"]
            ffn = next(config[key] for key in FFN_KEYS if key in config)
        except (OSError, ValueError, KeyError, StopIteration):
            return None
        experts = next((config[key] for key in EXPERT_KEYS if key in config), 0)
        head = config.get("head_dim") or hidden // heads
        keys = head * config.get("num_key_value_heads", heads)
        attention = 2 * hidden * head * heads + 2 * hidden * keys
        tables = 1 if config.get("tie_word_embeddings") else 2
        return cls(
            experts=experts,
            ffn=ffn,
            split=tables * config["vocab_size"] * hidden
            + layers * (attention + max(experts, 1) * 3 * hidden * ffn),
            whole=layers * (experts + 2) * hidden + hidden,
            kv_per_token=layers * 2 * keys,
        )

    def weights_gib(self, gpus: int) -> float:
        """On each of so many GPUs."""
        return (self.split / gpus + self.whole) * BYTES_PER_WEIGHT / GIB

    def kv_tokens(self, gib: float, gpus: int) -> int:
        """Tokens that fit so much memory on each GPU, in whole blocks of 16."""
        per_token = self.kv_per_token * BYTES_PER_WEIGHT / gpus
        return max(0, int(gib * GIB / per_token)) // 16 * 16
