"""What load is played: how requests arrive, how long they are, what they say."""

from __future__ import annotations

from pytest_moeperf.workload.plan import WORKLOAD_VERSION, Plan, plan
from pytest_moeperf.workload.prompts import (
    Conversation,
    Conversations,
    Prompts,
    RandomTokens,
    SharedPrefix,
    ShareGPT,
)
from pytest_moeperf.workload.shapes import (
    Arrivals,
    Burst,
    ClosedLoop,
    OpenLoop,
    Think,
    Trace,
    TraceEntry,
    TraceReplay,
    Workload,
    rate_ladder,
)

__all__ = [
    "WORKLOAD_VERSION",
    "Arrivals",
    "Burst",
    "ClosedLoop",
    "Conversation",
    "Conversations",
    "OpenLoop",
    "Plan",
    "Prompts",
    "RandomTokens",
    "ShareGPT",
    "SharedPrefix",
    "Think",
    "Trace",
    "TraceEntry",
    "TraceReplay",
    "Workload",
    "plan",
    "rate_ladder",
]
