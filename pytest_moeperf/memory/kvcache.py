"""Bytes of keys and values that tokens leave, and how many tokens fit in a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_moeperf.memory.sharding import kv_heads_per_gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_moeperf.memory.architecture import Architecture

__all__ = ["kv_bytes_per_token", "kv_tokens"]


def kv_bytes_per_token(
    arch: Architecture, dtype_bytes: int = 2, *, tensor_parallel_size: int = 1
) -> int:
    """Bytes of keys and values that one token leaves in all layers of one GPU.

    MHA, GQA, MQA: keys and values of the GPU's heads. MLA: the compressed vector and the part of
    the keys that carries the position, which are not split, so that every GPU has them whole.
    """
    return arch.layers * _layer_token_bytes(arch, dtype_bytes, tensor_parallel_size)


def kv_tokens(
    kv_bytes: int,
    arch: Architecture,
    *,
    block_size: int,
    dtype_bytes: int = 2,
    context_tokens: int | None = None,
    tensor_parallel_size: int = 1,
    layers: Sequence[int] | None = None,
) -> int:
    """Tokens that a KV cache of `kv_bytes` a GPU holds, in whole blocks of `block_size` tokens.

    With `context_tokens` the answer is the one that vLLM ≥ 0.30 logs as `KV cache size`: requests
    of that full length that fit at once, times the length (`get_kv_cache_capacity` in
    `vllm/v1/core/kv_cache_utils.py`). The two differ where a context is not a multiple of the
    block size, because the end of each request's last block stays empty, and where layers have a
    sliding window, for these keep the last tokens of a request only. `layers` are those that the
    GPU has; None: all.
    """
    held = range(arch.layers) if layers is None else layers
    layer_token = _layer_token_bytes(arch, dtype_bytes, tensor_parallel_size)
    blocks = max(0, kv_bytes) // (block_size * layer_token * len(held))
    if context_tokens is None:
        return blocks * block_size
    per_request = sum(_blocks(arch, layer, context_tokens, block_size) for layer in held)
    return blocks * len(held) * context_tokens // per_request


def _layer_token_bytes(arch: Architecture, dtype_bytes: int, tensor: int) -> int:
    if arch.latent is not None:
        return (arch.latent.kv_rank + arch.latent.rope_dim) * dtype_bytes
    return 2 * kv_heads_per_gpu(arch, tensor) * arch.head_dim * dtype_bytes


def _blocks(arch: Architecture, layer: int, context_tokens: int, block_size: int) -> int:
    """Blocks of a layer that a request of that length keeps."""
    blocks = -(-context_tokens // block_size)
    if arch.window is None or layer not in arch.window_layers:
        return blocks
    # A window need not start where a block does.
    return min(blocks, -(-arch.window // block_size) + 1)
