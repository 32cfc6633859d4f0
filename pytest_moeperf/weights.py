"""Random checkpoints in the safetensors format: the same bytes on every machine, in seconds.

Each tensor has a random stream of its own, keyed by the model's seed and the tensor's name, so
every layer routes differently (an engine's dummy weights are the same in every layer). A stream
is raw Philox output, 16 bits a weight, looked up in a table of 65,536 normal quantiles: about ten
times faster than drawing normal floats, and independent of how a NumPy version draws them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import ml_dtypes
import numpy as np

from pytest_moeperf.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from pytest_moeperf.memory import Architecture

__all__ = ["RECIPE", "Tensor", "draw", "tensors", "write_checkpoint"]

RECIPE: Final = 1
"""Version of what this module writes; part of a model's digest. 1: first."""

PROJECTION_STD: Final = 0.02
"""Of every projection and router, the `initializer_range` of the published configs."""
EMBEDDING_STD: Final = 1.0
"""Larger than the layers' contributions, so that a token's own embedding weighs in its routing.
At 0.02 experts were used less evenly: 5.9 to 22.0 % of a layer's tokens (docs/models.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a checkpoint, before its values are drawn."""

    name: str
    shape: tuple[int, ...]
    std: float | None
    """Of its normally distributed values; None: all ones, as a norm starts out."""

    @property
    def bytes(self) -> int:
        """Size in bfloat16."""
        return 2 * math.prod(self.shape)


def tensors(arch: Architecture) -> tuple[Tensor, ...]:
    """List a checkpoint's tensors under their Hugging Face names (llama and mixtral)."""
    if arch.model_type not in {"llama", "mixtral"}:
        raise ModelError(f"random weights are made for llama and mixtral, not {arch.model_type}")
    if arch.qkv_bias or arch.mlp_bias:
        raise ModelError("random weights are made for layers without biases")
    return tuple(_tensors(arch))


def draw(tensor: Tensor, *, seed: int) -> npt.NDArray[np.uint16]:
    """Draw the values of one tensor, flat, as bfloat16 bit patterns."""
    size = math.prod(tensor.shape)
    if tensor.std is None:
        return np.full(size, np.float32(1).view(np.uint32) >> 16, np.uint16)
    name = hashlib.sha256(f"{seed}/{tensor.name}".encode()).digest()
    stream = np.random.Philox(key=int.from_bytes(name[:16], "little"))
    words: npt.NDArray[np.uint64] = stream.random_raw(-(-size // 4))
    quantiles = words.astype("<u8", copy=False).view("<u2")[:size]
    values: npt.NDArray[np.uint16] = _normal_table(tensor.std)[quantiles]
    return values


def write_checkpoint(path: Path, arch: Architecture, *, seed: int) -> None:
    """Write all tensors into one safetensors file; raises OSError when the disk refuses.

    Not flushed to the disk: a cache that a power cut damages is written anew.
    """
    wanted = tensors(arch)
    header, offsets = _header(wanted)
    with path.open("wb") as file:
        file.write(header)
        file.flush()

        def fill(tensor: Tensor, offset: int) -> None:
            _write_at(file.fileno(), draw(tensor, seed=seed), offset)

        # Drawing and writing release the interpreter lock; more than four threads gain nothing.
        executor = ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0))))
        try:
            for _ in executor.map(fill, wanted, offsets):
                pass
        finally:
            executor.shutdown(cancel_futures=True)


def _tensors(arch: Architecture) -> Iterator[Tensor]:
    hidden = arch.hidden_size

    def projection(name: str, outputs: int, inputs: int) -> Tensor:
        return Tensor(name=f"{name}.weight", shape=(outputs, inputs), std=PROJECTION_STD)

    def norm(name: str) -> Tensor:
        return Tensor(name=f"{name}.weight", shape=(hidden,), std=None)

    yield Tensor(name="model.embed_tokens.weight", shape=(arch.vocab, hidden), std=EMBEDDING_STD)
    if not arch.tied_embeddings:
        yield projection("lm_head", arch.vocab, hidden)
    yield norm("model.norm")
    for layer in range(arch.layers):
        prefix = f"model.layers.{layer}"
        yield norm(f"{prefix}.input_layernorm")
        yield norm(f"{prefix}.post_attention_layernorm")
        query, key = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
        yield projection(f"{prefix}.self_attn.q_proj", query, hidden)
        yield projection(f"{prefix}.self_attn.k_proj", key, hidden)
        yield projection(f"{prefix}.self_attn.v_proj", key, hidden)
        yield projection(f"{prefix}.self_attn.o_proj", hidden, query)
        if arch.experts:
            yield projection(f"{prefix}.block_sparse_moe.gate", arch.experts, hidden)
        for block, (gate, up, down) in _ffn_names(prefix, arch.experts):
            yield projection(f"{block}.{gate}", arch.ffn, hidden)
            yield projection(f"{block}.{down}", hidden, arch.ffn)
            yield projection(f"{block}.{up}", arch.ffn, hidden)


def _ffn_names(prefix: str, experts: int) -> Iterator[tuple[str, tuple[str, str, str]]]:
    if not experts:
        yield f"{prefix}.mlp", ("gate_proj", "up_proj", "down_proj")
    for expert in range(experts):
        yield f"{prefix}.block_sparse_moe.experts.{expert}", ("w1", "w3", "w2")


@cache
def _normal_table(std: float) -> npt.NDArray[np.uint16]:
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((index + 0.5) / 65_536) for index in range(65_536)])
    return (quantiles * std).astype(ml_dtypes.bfloat16).view(np.uint16)


def _header(wanted: tuple[Tensor, ...]) -> tuple[bytes, list[int]]:
    """Length and JSON that open a safetensors file, and where in the file each tensor starts.

    Written here and not by the library, which wants all tensors in memory at once.
    Format: https://huggingface.co/docs/safetensors/index#format.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    ends = [0]
    for tensor in wanted:
        ends.append(ends[-1] + tensor.bytes)
        entries[tensor.name] = {
            "dtype": "BF16",
            "shape": tensor.shape,
            "data_offsets": ends[-2:],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
    header = len(text).to_bytes(8, "little") + text
    return header, [len(header) + start for start in ends[:-1]]


def _write_at(descriptor: int, values: npt.NDArray[np.uint16], offset: int) -> None:
    left = values.astype("<u2", copy=False).data.cast("B")
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written
