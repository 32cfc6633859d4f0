"""Metrics as data: one table of what is measured; `figures` computes it."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_moeperf.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_moeperf.records import Direction, RequestRecord

__all__ = [
    "KEYS",
    "METRICS",
    "SLO",
    "Metric",
    "completed",
    "describe",
    "quantity",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of the table: what a figure means and which way it gets better."""

    key: str
    label: str
    unit: str
    """Empty for a plain ratio."""
    direction: Direction | None
    """None where neither way is better: such a metric takes bounds, not a baseline."""
    formula: str
    source: str
    """Who defines it the same way, or what differs from them."""
    statistics: tuple[str, ...] = ()
    """Statistics over requests, gaps or chunks; empty for a single figure."""
    of_start: bool = False
    """One figure per server start, which no repeat can give."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that a gate can name: `ttft_ms.p50`, or `goodput` for a single figure."""
        return tuple(f"{self.key}.{name}" for name in self.statistics) or (self.key,)


_SPREAD = ("mean", "p50", "p90", "p99")

_TABLE = (
    Metric(
        key="ttft_ms",
        label="TTFT",
        unit="ms",
        direction="lower",
        formula="first chunk with tokens - start",
        source="vLLM, SGLang and AIPerf count from the send; so does ours in a closed loop; in an "
        "open loop, a burst and a trace, start is the scheduled time",
        statistics=_SPREAD,
    ),
    Metric(
        key="tpot_ms",
        label="TPOT",
        unit="ms",
        direction="lower",
        formula="(last chunk - first chunk) / (output tokens - 1), one figure a request; needs "
        "two chunks",
        source="vLLM, SGLang, inference-perf; AIPerf calls a close relative ITL; GuideLLM's TPOT "
        "includes the first token",
        statistics=_SPREAD,
    ),
    Metric(
        key="itl_token_ms",
        label="ITL per token",
        unit="ms",
        direction="lower",
        formula="gap between chunks / tokens of the later chunk, counted once per such token, "
        "pooled over requests",
        source="SGLang's native ITL",
        statistics=_SPREAD,
    ),
    Metric(
        key="itl_chunk_ms",
        label="ITL per chunk",
        unit="ms",
        direction="lower",
        formula="gap between chunks, pooled over requests",
        source="vLLM's ITL; AIPerf's inter-chunk latency",
        statistics=_SPREAD,
    ),
    Metric(
        key="e2el_ms",
        label="E2EL",
        unit="ms",
        direction="lower",
        formula="last chunk with tokens - start",
        source="vLLM, AIPerf; SGLang also counts the closing message",
        statistics=_SPREAD,
    ),
    Metric(
        key="request_throughput",
        label="Request throughput",
        unit="req/s",
        direction="higher",
        formula="completed requests / duration",
        source="vLLM, SGLang, AIPerf; the duration is AIPerf's",
    ),
    Metric(
        key="output_throughput",
        label="Output throughput",
        unit="tok/s",
        direction="higher",
        formula="output tokens of completed requests / duration",
        source="vLLM, SGLang, AIPerf; the duration is AIPerf's",
    ),
    Metric(
        key="total_throughput",
        label="Total throughput",
        unit="tok/s",
        direction="higher",
        formula="(prompt + output tokens of completed requests) / duration",
        source="vLLM; missing if the server did not count the prompt of every request",
    ),
    Metric(
        key="steady_output_throughput",
        label="Steady throughput",
        unit="tok/s",
        direction="higher",
        formula="tokens of chunks that came within the steady window / its length",
        source="SGLang's steady state, whose window is another",
    ),
    Metric(
        key="steady_concurrency",
        label="Steady concurrency",
        unit="requests",
        direction=None,
        formula="requests in flight, averaged over the steady window",
        source="SGLang's steady state, whose window is another",
    ),
    Metric(
        key="output_throughput_per_gpu_gib",
        label="Throughput per GPU GiB",
        unit="tok/s/GiB",
        direction="higher",
        formula="output throughput / memory in use on all GPUs of the server, the median during "
        "the repeat",
        source="ours; engines take most of the memory for their KV cache, so it says how much a "
        "GPU gives, not what a model needs",
    ),
    Metric(
        key="goodput",
        label="Goodput",
        unit="req/s",
        direction="higher",
        formula="completed requests within every objective of the SLO / duration",
        source="vLLM; a request without a TPOT (one token) meets the TPOT objective",
    ),
    Metric(
        key="goodput_share",
        label="Goodput share",
        unit="",
        direction="higher",
        formula="completed requests within every objective of the SLO / all requests",
        source="SGLang's SLO attainment: failed requests count against it",
    ),
    Metric(
        key="failed_requests",
        label="Failed requests",
        unit="requests",
        direction="lower",
        formula="requests that ended with an error or without a token",
        source="ours; they are left out of every other metric, and make a repeat invalid",
    ),
    Metric(
        key="tokens_per_chunk",
        label="Tokens per chunk",
        unit="tokens",
        direction=None,
        formula="tokens of a chunk",
        source="ours; above 1 the two ITLs are different quantities",
        statistics=("mean",),
    ),
    Metric(
        key="max_stall_ms",
        label="Longest stall",
        unit="ms",
        direction="lower",
        formula="longest gap between two chunks of one request",
        source="ours",
    ),
    Metric(
        key="startup_s",
        label="Start-up",
        unit="s",
        direction="lower",
        formula="start of the server process until it answers that it is ready",
        source="ours; weights, compilation and graph capture are part of it",
        of_start=True,
    ),
)

METRICS: Mapping[str, Metric] = MappingProxyType({metric.key: metric for metric in _TABLE})
"""Every metric by its key, in the order of reports."""

KEYS: tuple[str, ...] = tuple(
    key for metric in _TABLE if not metric.of_start for key in metric.keys
)
"""Every key with statistic that `figures.compute` gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SLO:
    """Objectives that a request must meet, all of them, to count as good; None: no objective."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2el_ms: float | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for objectives that can never tell requests apart."""
        given = {
            name: value
            for name, value in ((item.name, getattr(self, item.name)) for item in fields(self))
            if value is not None
        }
        if not given:
            raise UsageError("an SLO needs at least one of ttft_ms, tpot_ms, e2el_ms")
        for name, value in given.items():
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"SLO {name}={value!r}: give a number of milliseconds above 0")


def describe(key: str) -> tuple[Metric, str | None]:
    """Find the metric and the statistic that a key such as `tpot_ms.p50` names.

    The statistic is None for a metric of one figure. An unknown key raises UsageError.
    """
    name, _, statistic = key.partition(".")
    metric = METRICS.get(name)
    if metric is not None and key in metric.keys:
        return metric, statistic or None
    if metric is not None:
        raise UsageError(f"{key!r} is not a metric; {name} is given as {', '.join(metric.keys)}")
    near = difflib.get_close_matches(key, KEYS, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    valid = ", ".join(
        f"{metric.key}.{{{','.join(metric.statistics)}}}" if metric.statistics else metric.key
        for metric in METRICS.values()
    )
    raise UsageError(f"{key!r} is not a metric{hint}; valid: {valid}")


def completed(request: RequestRecord) -> bool:
    """Whether a request ended without an error and brought at least one token."""
    return request.error is None and bool(request.chunk_ns)


def quantity(value: float | None, unit: str = "") -> str:
    """Write a figure with three significant digits and its unit; a dash for None."""
    if value is None:
        return "–"
    size = abs(value)
    decimals = next(
        (places for limit, places in ((100, 0), (10, 1), (1, 2)) if size >= limit), None
    )
    text = f"{value:.3g}" if decimals is None else f"{value:.{decimals}f}"
    return f"{text} {unit}".rstrip()
