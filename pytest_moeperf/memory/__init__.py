"""What a model takes of a GPU's memory, worked out from its config alone.

`architecture` reads the config, `counting` counts weights by tensor group, `sharding` says which of
them one GPU holds and in how many bytes, `kvcache` how many tokens a cache holds, and `plan` puts
them together: does it fit, and what would make it fit.
"""

from __future__ import annotations

from pytest_moeperf.memory.architecture import Architecture, Latent
from pytest_moeperf.memory.counting import active_parameters, parameters, total_parameters
from pytest_moeperf.memory.kvcache import kv_bytes_per_token, kv_tokens
from pytest_moeperf.memory.plan import (
    KV_BYTES,
    Fit,
    Request,
    activation_bytes,
    fit,
    least_gpus,
    remedies,
)
from pytest_moeperf.memory.sharding import (
    PRECISIONS,
    Parallelism,
    Precision,
    rotary_bytes,
    stage_bytes,
    stored_precision,
    unservable,
    weight_bytes,
)

__all__ = [
    "KV_BYTES",
    "PRECISIONS",
    "Architecture",
    "Fit",
    "Latent",
    "Parallelism",
    "Precision",
    "Request",
    "activation_bytes",
    "active_parameters",
    "fit",
    "kv_bytes_per_token",
    "kv_tokens",
    "least_gpus",
    "parameters",
    "remedies",
    "rotary_bytes",
    "stage_bytes",
    "stored_precision",
    "total_parameters",
    "unservable",
    "weight_bytes",
]
