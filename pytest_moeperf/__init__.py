"""Performance-regression tests for serving mixture-of-experts models.

What a suite needs is importable from here; what it needs to judge balance by, from
`pytest_moeperf.balance`, and fake engines to test a suite with, from `pytest_moeperf.testing`.
Everything else is private.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "SLO",
    "Architecture",
    "Burst",
    "ClosedLoop",
    "OpenLoop",
    "RandomTokens",
    "ServerSpec",
    "ShareGPT",
    "SharedPrefix",
    "TraceReplay",
    "__version__",
    "kv_tokens",
    "predicted_step_growth",
    "rate_ladder",
    "rotary_bytes",
    "weight_bytes",
    "weight_bytes_per_step",
]

if TYPE_CHECKING:
    from pytest_moeperf.memory import Architecture, kv_tokens, rotary_bytes, weight_bytes
    from pytest_moeperf.metrics import SLO
    from pytest_moeperf.records import ServerSpec
    from pytest_moeperf.roofline import predicted_step_growth, weight_bytes_per_step
    from pytest_moeperf.workload import (
        Burst,
        ClosedLoop,
        OpenLoop,
        RandomTokens,
        SharedPrefix,
        ShareGPT,
        TraceReplay,
        rate_ladder,
    )
else:
    # The plugin is loaded in every pytest session; only suites pay for these modules.
    _HOMES = {
        "SLO": "metrics",
        "Architecture": "memory",
        "Burst": "workload",
        "ClosedLoop": "workload",
        "OpenLoop": "workload",
        "RandomTokens": "workload",
        "ServerSpec": "records",
        "ShareGPT": "workload",
        "SharedPrefix": "workload",
        "TraceReplay": "workload",
        "kv_tokens": "memory",
        "predicted_step_growth": "roofline",
        "rate_ladder": "workload",
        "rotary_bytes": "memory",
        "weight_bytes": "memory",
        "weight_bytes_per_step": "roofline",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

    def __dir__() -> list[str]:
        return __all__
