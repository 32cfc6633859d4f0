"""Run a catalogue MoE model in NumPy and count which experts its tokens use, layer by layer.

The evidence behind docs/models.md: `python scripts/measure_routing.py` prefills random prompts,
decodes greedily, and prints for each layer how evenly the experts are used, and for each batch
size the share of experts that a decode step touches beside the share that even, independent
routing predicts. Takes one to two minutes on two cores, and 4 GB of memory.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401  registers bfloat16 for safetensors
import numpy as np
from safetensors.numpy import load_file

from pytest_moeperf.models import materialize
from pytest_moeperf.roofline import expert_coverage
from pytest_moeperf.workload import Burst, plan

if TYPE_CHECKING:
    from pytest_moeperf.memory import Architecture

Array = np.ndarray[Any, np.dtype[Any]]


class Model:
    """A Mixtral forward pass with a KV cache, for sequences of equal length."""

    def __init__(self, weights: dict[str, Array], arch: Architecture) -> None:
        self.weights = {name: value.astype(np.float32) for name, value in weights.items()}
        self.arch = arch
        self.past: list[tuple[Array, Array]] = []
        self.routed: list[Array] = []

    def step(self, tokens: Array) -> Array:
        """Append `tokens` (sequences × new) and return each sequence's next token (greedy)."""
        return self.logits(tokens)[:, -1].argmax(-1)[:, None]

    def logits(self, tokens: Array) -> Array:
        """Append `tokens` (sequences × new) and return what may follow each of them.

        `routed` then has, per layer, the experts of each of the tokens.
        """
        hidden = self.weights["model.embed_tokens.weight"][tokens]
        self.routed = []
        past, self.past = self.past, []
        for layer in range(self.arch.layers):
            prefix = f"model.layers.{layer}"
            keys_values = past[layer] if past else None
            normed = self._norm(f"{prefix}.input_layernorm", hidden)
            hidden = hidden + self._attention(prefix, normed, keys_values)
            normed = self._norm(f"{prefix}.post_attention_layernorm", hidden)
            hidden = hidden + self._experts(prefix, normed)
        return self._norm("model.norm", hidden) @ self.weights["lm_head.weight"].T

    def _norm(self, name: str, x: Array) -> Array:
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x / scale * self.weights[f"{name}.weight"]

    def _attention(self, prefix: str, x: Array, past: tuple[Array, Array] | None) -> Array:
        arch, (batch, new, _) = self.arch, x.shape
        start = past[0].shape[1] if past else 0

        def heads(name: str, count: int) -> Array:
            projected = x @ self.weights[f"{prefix}.self_attn.{name}.weight"].T
            return projected.reshape(batch, new, count, arch.head_dim)

        query = _rotate(heads("q_proj", arch.heads), start)
        key, value = _rotate(heads("k_proj", arch.kv_heads), start), heads("v_proj", arch.kv_heads)
        if past:
            key, value = np.concatenate([past[0], key], 1), np.concatenate([past[1], value], 1)
        self.past.append((key, value))
        group = arch.heads // arch.kv_heads
        key, value = np.repeat(key, group, 2), np.repeat(value, group, 2)
        scores = np.einsum("bqhd,bkhd->bhqk", query, key) / arch.head_dim**0.5
        visible = np.arange(key.shape[1])[None] <= np.arange(start, start + new)[:, None]
        weights = _softmax(np.where(visible, scores, -np.inf))
        mixed = np.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, new, -1)
        return mixed @ self.weights[f"{prefix}.self_attn.o_proj.weight"].T

    def _experts(self, prefix: str, x: Array) -> Array:
        flat, moe = x.reshape(-1, x.shape[-1]), f"{prefix}.block_sparse_moe"
        logits = flat @ self.weights[f"{moe}.gate.weight"].T
        chosen = np.argsort(-logits, -1)[:, : self.arch.top_k]
        shares = _softmax(np.take_along_axis(logits, chosen, -1))
        out = np.zeros_like(flat)
        for expert in range(self.arch.experts):
            rows, slots = np.nonzero(chosen == expert)
            gate, up, down = (
                self.weights[f"{moe}.experts.{expert}.{name}.weight"].T
                for name in ("w1", "w3", "w2")
            )
            gated = flat[rows] @ gate
            gated = gated / (1 + np.exp(-gated)) * (flat[rows] @ up)
            out[rows] += shares[rows, slots, None] * (gated @ down)
        self.routed.append(chosen.reshape(*x.shape[:2], -1))
        return out.reshape(x.shape)


def _softmax(x: Array) -> Array:
    grown = np.exp(x - x.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


def _rotate(x: Array, start: int) -> Array:
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** -(np.arange(half) / half)
    angles = (np.arange(start, start + x.shape[1])[:, None] * frequencies)[None, :, None]
    left, right = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    rotated = np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)
    return rotated.astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--steps", type=int, default=48)
    args = parser.parse_args()
    directory = materialize("mini-moe")
    arch = directory.architecture
    requests = plan(
        Burst(requests=args.sequences, isl=32, osl=args.steps),
        seed=0,
        vocab_size=directory.vocab_size,
        first_id=directory.first_id,
        context_tokens=directory.context_tokens,
    ).requests
    model = Model(load_file(directory.path / "model.safetensors"), arch)
    tokens = model.step(np.array([request.prompt for request in requests]))
    produced, routed = [tokens], []
    for _ in range(args.steps):
        tokens = model.step(tokens)
        produced.append(tokens)
        routed.append([layer[:, -1] for layer in model.routed])
    report(np.array(routed), np.concatenate(produced, 1), arch)


def report(routed: Array, produced: Array, arch: Architecture) -> None:
    """Print what `routed` (step × layer × sequence × top-k) and the produced tokens show."""
    steps, layers, sequences, _ = routed.shape
    print(f"{sequences} sequences × {steps} decode steps")
    print("layer  share of tokens per expert, % (even: 12.5)")
    for layer in range(layers):
        counts = np.bincount(routed[:, layer].ravel(), minlength=arch.experts)
        print(f"{layer:5}  " + " ".join(f"{share:5.1f}" for share in 100 * counts / counts.sum()))
    print("batch  experts touched in a step  even and independent")
    for batch in (1, 2, 4, 8, 16, 32):
        touched = [
            len(np.unique(routed[step, layer, first : first + batch]))
            for step in range(steps)
            for layer in range(layers)
            for first in range(0, sequences - batch + 1, batch)
        ]
        predicted = expert_coverage(batch, arch.experts, arch.top_k)
        print(f"{batch:5}  {np.mean(touched) / arch.experts:26.3f}  {predicted:20.3f}")
    distinct = [len(np.unique(produced[:, step])) for step in range(produced.shape[1])]
    print(f"distinct tokens among sequences, first and last step: {distinct[0]}, {distinct[-1]}")


if __name__ == "__main__":
    main()
