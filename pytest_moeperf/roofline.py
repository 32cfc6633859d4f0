"""What a decode step must read, and so how its time grows with the batch.

A decode step of a small model is bound by reading weights from memory. Per step, a dense model
reads each weight once whatever the batch; a mixture of experts reads those experts that at least
one token of the batch was routed to. The predictions leave out KV-cache traffic, activations and
time that does not depend on the batch, so they hold for short contexts and as ratios.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_moeperf.memory import parameters

if TYPE_CHECKING:
    from pytest_moeperf.memory import Architecture

__all__ = ["expert_coverage", "predicted_step_growth", "weight_bytes_per_step"]


def expert_coverage(batch: int, experts: int, top_k: int) -> float:
    """Expected share of a layer's experts that a step of `batch` tokens reads, in (0, 1].

    1 − (1 − k/E)^B: one token leaves out a given expert with probability 1 − k/E, and tokens are
    taken to be routed evenly and independently. Uneven or correlated routing reads fewer.
    """
    if batch < 1 or not 1 <= top_k <= experts:
        raise ValueError(f"no coverage of {experts} experts with top {top_k} at batch {batch}")
    return float(1 - (1 - top_k / experts) ** batch)


def weight_bytes_per_step(arch: Architecture, batch: int) -> float:
    """Expected bytes of weights that one decode step of `batch` tokens reads.

    The input embedding does not count: a step reads `batch` rows of it. The output layer does,
    also where it shares the embedding's weights.
    """
    counts = parameters(arch)
    always = sum(counts.values()) - counts["embeddings"] - counts["experts"]
    output_layer = arch.vocab * arch.hidden_size
    coverage = expert_coverage(batch, arch.experts, arch.top_k) if arch.experts else 0.0
    return (always + output_layer + coverage * counts["experts"]) * arch.dtype_bytes


def predicted_step_growth(arch: Architecture, batch: int) -> float:
    """How many times the bytes of a one-token step a step of `batch` tokens reads; dense: 1."""
    return weight_bytes_per_step(arch, batch) / weight_bytes_per_step(arch, 1)
