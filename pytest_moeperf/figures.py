"""Computes the figures of a repeat, fast enough for millions of chunks.

Imports numpy, so it is imported where figures are computed, not where they are named.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pytest_moeperf.metrics import METRICS, completed
from pytest_moeperf.stats import PERCENTILE_FLOOR, percentile
from pytest_moeperf.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

    from pytest_moeperf.metrics import SLO
    from pytest_moeperf.records import RequestRecord

    Floats = npt.NDArray[np.float64]
    Integers = npt.NDArray[np.int64]

__all__ = ["PLATEAU_SHARE", "Window", "compute", "silence_ms", "steady_window"]

_NS_PER_MS = 1e6

PLATEAU_SHARE = 0.9
"""From this share of the median concurrency on, a run counts as steady."""


def compute(
    requests: Sequence[RequestRecord],
    *,
    slo: SLO | None = None,
    gpu_memory_gib: float | None = None,
) -> dict[str, float | None]:
    """Reduce the requests of one repeat to every figure in `metrics.KEYS`.

    `gpu_memory_gib` is what was in use meanwhile on all GPUs of the server.
    Latencies and throughput come from completed requests alone. A figure that cannot be had is
    None: no completed request, a percentile below its floor of observations, goodput without SLO.
    """
    run = _Run(requests=requests, slo=slo, gpu_memory_gib=gpu_memory_gib)
    values: dict[str, float | None] = {}
    for metric in METRICS.values():
        if metric.of_start:
            continue
        if metric.statistics:
            # One series at a time: each may be as large as all that was recorded.
            series = _SERIES[metric.key](run)
            series.sort()
            for statistic, key in zip(metric.statistics, metric.keys, strict=True):
                values[key] = _reduce(series.data, statistic)
        else:
            values[metric.key] = _FIGURES[metric.key](run)
    return values


def silence_ms(requests: Sequence[RequestRecord]) -> float | None:
    """Longest time with requests in flight and no chunk of any; None without a request.

    The wait for the first token is part of it, the time between two requests is not.
    """
    if not requests:
        return None
    sent = np.array([request.sent_ns for request in requests], dtype=np.int64)
    ended = np.array([request.ended_ns for request in requests], dtype=np.int64)
    times, changes = _changes(sent, ended)
    in_flight = np.cumsum(changes)
    # A send while others are in flight ends no silence, one that finds the server idle begins one.
    bounds = times[(in_flight == 0) | (in_flight == changes)]
    arrivals = [np.asarray(request.chunk_ns, dtype=np.int64) for request in requests]
    points = np.unique(np.concatenate([bounds, *arrivals]))
    busy = in_flight[np.searchsorted(times, points[:-1], side="right") - 1] > 0
    gaps = np.diff(points)[busy]
    return float(gaps.max()) / _NS_PER_MS if gaps.size else 0.0


class Window(NamedTuple):
    """A part of a run, on the clock of its records."""

    start_ns: int
    end_ns: int
    concurrency: float
    """Requests in flight, on average over the window."""


def steady_window(requests: Sequence[RequestRecord]) -> Window | None:
    """The run without its ramp-up and drain; None if no completed request took any time.

    It lasts from when concurrency first reaches 90 % of its plateau until it last leaves that.
    Concurrency counts the completed requests between their send and their last token; the plateau
    is its median over the time of the run. Half of the time it is at the median or above, so the
    window is never shorter than half the run. SGLang's `benchmark/steady_state.py` takes the
    longest stretch without a gap and a share of the peak: a short dip may halve that window, and
    a short peak move it.
    """
    done = [request for request in requests if completed(request)]
    sent = np.array([request.sent_ns for request in done], dtype=np.int64)
    ended = np.array([request.chunk_ns[-1] for request in done], dtype=np.int64)
    times, changes = _changes(sent, ended)
    spans = np.diff(times)
    if not spans.size:
        return None
    in_flight = np.cumsum(changes)[:-1]
    steady = np.flatnonzero(in_flight >= PLATEAU_SHARE * _median(in_flight, spans))
    first, last = steady[0], steady[-1] + 1
    busy_ns = int((in_flight[first:last] * spans[first:last]).sum())
    start_ns, end_ns = int(times[first]), int(times[last])
    return Window(start_ns, end_ns, busy_ns / (end_ns - start_ns))


def _changes(sent: Integers, ended: Integers) -> tuple[Integers, Integers]:
    """The times at which concurrency changes, and by how much."""
    times, where = np.unique(np.concatenate([sent, ended]), return_inverse=True)
    changes = np.zeros(times.size, dtype=np.int64)
    np.add.at(changes, where, np.repeat([1, -1], [sent.size, ended.size]))
    return times, changes


def _median(values: Integers, weights: Integers) -> int:
    """The smallest value that, with all below it, has half of the weight."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return int(values[order][np.searchsorted(2 * reached, reached[-1])])


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What the figures of a whole repeat are computed from."""

    requests: Sequence[RequestRecord]
    slo: SLO | None
    gpu_memory_gib: float | None = None

    @cached_property
    def done(self) -> list[RequestRecord]:
        return [request for request in self.requests if completed(request)]

    @cached_property
    def output_tokens(self) -> list[int]:
        """By completed request: as the server's usage says, else as the chunks carried."""
        return [
            int(_integers(request.chunk_tokens).sum())
            if request.output_tokens is None
            else request.output_tokens
            for request in self.done
        ]

    @cached_property
    def window(self) -> Window | None:
        return steady_window(self.requests)

    @cached_property
    def good(self) -> int | None:
        """Completed requests within every objective; what a request lacks it cannot miss."""
        if self.slo is None:
            return None
        meets = np.ones(len(self.done), dtype=bool)
        for objective, latencies in (
            (self.slo.ttft_ms, _ttft_ms),
            (self.slo.tpot_ms, _all_tpot_ms),
            (self.slo.e2el_ms, _e2el_ms),
        ):
            if objective is not None:
                meets &= ~(latencies(self) > objective)
        return int(meets.sum())

    @property
    def duration_s(self) -> float | None:
        """From the first start to the last token of the completed requests."""
        if not self.done:
            return None
        first_ns = min(request.start_ns for request in self.done)
        last_ns = max(request.chunk_ns[-1] for request in self.done)
        return (last_ns - first_ns) / NS_PER_S

    def per_second(self, amount: float | None) -> float | None:
        duration_s = self.duration_s
        return amount / duration_s if duration_s and amount is not None else None


def _integers(values: Sequence[int]) -> Integers:
    return np.asarray(values, dtype=np.int64)


def _joined(parts: Iterable[Floats], size: int) -> Floats:
    """All of them in one array of `size`, without a second copy of what may be 100 MB."""
    joined, at = np.empty(size), 0
    for part in parts:
        joined[at : at + part.size] = part
        at += part.size
    return joined


def _ttft_ms(run: _Run) -> Floats:
    spans = [request.chunk_ns[0] - request.start_ns for request in run.done]
    return np.array(spans, dtype=np.int64) / _NS_PER_MS


def _e2el_ms(run: _Run) -> Floats:
    spans = [request.chunk_ns[-1] - request.start_ns for request in run.done]
    return np.array(spans, dtype=np.int64) / _NS_PER_MS


def _all_tpot_ms(run: _Run) -> Floats:
    """NaN for a request that has none."""
    return np.array(
        [
            (request.chunk_ns[-1] - request.chunk_ns[0]) / (tokens - 1) / _NS_PER_MS
            if len(request.chunk_ns) > 1 and tokens > 1
            else np.nan
            for request, tokens in zip(run.done, run.output_tokens, strict=True)
        ],
        dtype=np.float64,
    )


def _tpot_ms(run: _Run) -> Floats:
    values = _all_tpot_ms(run)
    return values[~np.isnan(values)]


def _gaps_ms(request: RequestRecord) -> Floats:
    gaps: Floats = np.diff(_integers(request.chunk_ns)) / _NS_PER_MS
    return gaps


def _itl_chunk_ms(run: _Run) -> Floats:
    size = sum(len(request.chunk_ns) - 1 for request in run.done)
    return _joined(map(_gaps_ms, run.done), size)


def _itl_token_ms(run: _Run) -> Floats:
    size = sum(int(_integers(request.chunk_tokens)[1:].sum()) for request in run.done)
    return _joined(map(_token_gaps_ms, run.done), size)


def _token_gaps_ms(request: RequestRecord) -> Floats:
    tokens = _integers(request.chunk_tokens)[1:]
    return np.repeat(_gaps_ms(request) / np.maximum(tokens, 1), tokens)


def _tokens_per_chunk(run: _Run) -> Floats:
    size = sum(len(request.chunk_tokens) for request in run.done)
    return _joined((np.asarray(request.chunk_tokens, dtype=float) for request in run.done), size)


def _total_tokens(run: _Run) -> int | None:
    prompts = [request.prompt_tokens for request in run.done]
    counted = [tokens for tokens in prompts if tokens is not None]
    if len(counted) < len(prompts):
        return None
    return sum(counted) + sum(run.output_tokens)


def _output_throughput(run: _Run) -> float | None:
    return run.per_second(sum(run.output_tokens))


def _per_gpu_gib(run: _Run) -> float | None:
    rate = _output_throughput(run)
    return rate / run.gpu_memory_gib if rate is not None and run.gpu_memory_gib else None


def _goodput_share(run: _Run) -> float | None:
    return None if run.good is None or not run.requests else run.good / len(run.requests)


def _max_stall_ms(run: _Run) -> float | None:
    longest = [gaps.max() for request in run.done if (gaps := _gaps_ms(request)).size]
    return float(max(longest)) if longest else None


def _steady_output_throughput(run: _Run) -> float | None:
    window = run.window
    if window is None:
        return None
    tokens = 0
    for request in run.done:
        at = _integers(request.chunk_ns)
        inside = (at > window.start_ns) & (at <= window.end_ns)
        tokens += int(_integers(request.chunk_tokens)[inside].sum())
    return tokens / (window.end_ns - window.start_ns) * NS_PER_S


def _steady_concurrency(run: _Run) -> float | None:
    return None if run.window is None else run.window.concurrency


_SERIES: Mapping[str, Callable[[_Run], Floats]] = {
    "ttft_ms": _ttft_ms,
    "tpot_ms": _tpot_ms,
    "itl_token_ms": _itl_token_ms,
    "itl_chunk_ms": _itl_chunk_ms,
    "e2el_ms": _e2el_ms,
    "tokens_per_chunk": _tokens_per_chunk,
}

_FIGURES: Mapping[str, Callable[[_Run], float | None]] = {
    "request_throughput": lambda run: run.per_second(len(run.done)),
    "output_throughput": _output_throughput,
    "output_throughput_per_gpu_gib": _per_gpu_gib,
    "total_throughput": lambda run: run.per_second(_total_tokens(run)),
    "steady_output_throughput": _steady_output_throughput,
    "steady_concurrency": _steady_concurrency,
    "goodput": lambda run: run.per_second(run.good),
    "goodput_share": _goodput_share,
    "failed_requests": lambda run: float(len(run.requests) - len(run.done)),
    "max_stall_ms": _max_stall_ms,
}


def _reduce(ordered: Sequence[float], statistic: str) -> float | None:
    if not ordered:
        return None
    if statistic == "mean":
        return statistics.fmean(ordered)
    rank = int(statistic.removeprefix("p"))
    return percentile(ordered, rank) if len(ordered) >= PERCENTILE_FLOOR[rank] else None
