"""Finds reasons not to trust a repeat."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_moeperf.metrics import METRICS, completed, quantity
from pytest_moeperf.records import Finding, RepeatRecord, RequestRecord
from pytest_moeperf.stats import percentile
from pytest_moeperf.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["FINDINGS", "Pace", "busy_machine", "client_limits", "compilations", "find", "stalls"]

FINDINGS: Mapping[str, str] = MappingProxyType(
    {
        "no_requests": "the repeat holds no request",
        "failed_requests": "a request ended with an error or without a token",
        "token_totals": "a completed request brought other than the tokens that were asked",
        "other_traffic": "the server generated over 10 % more tokens than the requests received",
        "compilation": "the server compiled something while it was measured",
        "stall": "on a GPU: the median TTFT, or the longest time without a token while requests "
        "were in flight, was over 1.5 times that of other plays on the start, by over 3 % of the "
        "repeat, and the mean latency of the requests shows at least half of that",
        "prefix_cache": "the prefix-cache hit rate is over 2 points from what the workload means",
        "preemptions": "the server preempted requests: its KV cache was full",
        "schedule_lag": "open loop, burst, trace: the slowest 1 % of sends were late by over 25 % "
        "of the median TTFT, and by over 2 ms",
        "client_cpu": "a worker of the load client used over 90 % of a core, in a repeat of 0.5 s "
        "or more, so it may have been the limit",
        "client_reads": "over 0.1 % of the chunks, and more than 2, were read together with a "
        "later one that they may have preceded by over 3 ms, so their arrival times are lost",
        "client_turnaround": "closed loop: answers waited for the load client so long that the "
        "next request of their slot was late by over 0.5 % of the median E2EL, and by over 2 ms",
        "clock_step": "the wall clock was set while it stamped arrivals, by over 0.1 ms",
        "busy_machine": "other processes, or other machines of the hypervisor, used over 15 % of "
        "the usable cores",
        "throttled": "heat or the hardware held a GPU's clocks down",
        "foreign_process": "another process computed on a GPU of the server",
        "gpu_not_idle": "something still ran on a GPU of the server when the repeat began",
    }
)
"""Every code of a finding, those of `gpuhealth` as well, with the rule behind it."""

_EXTRA_TOKENS = 0.10  # The counter may lag a decode step behind.
_STALL_RATIO = 1.5
_MANY_PLAYS = 4
_STALL_SHARE = 0.03
_STALL_FELT = 0.5
_HIT_RATE_TOLERANCE = 0.02
_LAG_SHARE = 0.25
_LAG_FLOOR_MS = 2.0
_CLIENT_SHARE = 0.9
_CLIENT_LEAST_S = 0.5  # Of a shorter play too much is beginning and end.
_LOST_SHARE = 0.001
_LOST_FEW = 2
_TURNAROUND_SHARE = 0.005
_TURNAROUND_FLOOR_MS = 2.0
_CLOCK_STEP_MS = 0.1
_MORE_WORKERS = "give the load client more workers (--client-workers) or cores, or lower the load"
_FOREIGN_SHARE = 0.15


def find(
    repeat: RepeatRecord,
    *,
    compile_patterns: Sequence[str] = (),
    expect_prefix_hit_rate: float = 0.0,
) -> tuple[Finding, ...]:
    """Every reason not to judge a repeat; none for a good one.

    `compile_patterns` are regular expressions for log lines. A counter that the server does not
    have is no reason.
    """
    found = (
        _no_requests(repeat),
        _failed_requests(repeat),
        _token_totals(repeat),
        _other_traffic(repeat),
        _compilation(repeat, compile_patterns),
        _prefix_cache(repeat, expect_prefix_hit_rate),
        _preemptions(repeat),
    )
    return tuple(finding for finding in found if finding is not None) + client_limits(repeat)


def client_limits(repeat: RepeatRecord) -> tuple[Finding, ...]:
    """Those reasons that lie with the load client: it was too slow, or its clock was set."""
    found = (
        _schedule_lag(repeat),
        _client_cpu(repeat),
        _client_reads(repeat),
        _client_turnaround(repeat),
        _clock_step(repeat),
    )
    return tuple(finding for finding in found if finding is not None)


def busy_machine(
    *,
    foreign_cores: float,
    usable_cores: int,
    stolen_cores: float = 0.0,
    names: Sequence[str] = (),
) -> Finding | None:
    """A finding if others were busy on more than 15 % of the usable cores.

    Args:
        foreign_cores: CPU seconds per second that others used.
        usable_cores: How many there are.
        stolen_cores: What of `foreign_cores` other virtual machines on the host used.
        names: Of processes, the busiest first.
    """
    if foreign_cores <= usable_cores * _FOREIGN_SHARE:
        return None
    neighbours = stolen_cores > foreign_cores / 2
    who = "withheld by the hypervisor" if neighbours else ", ".join(names)
    return Finding(
        code="busy_machine",
        message=f"others kept {foreign_cores:.1f} of {usable_cores} usable cores busy"
        + (f" ({who})" if who else ""),
        advice=(
            "wait until its other machines rest, or measure on a host of your own"
            if neighbours
            else "stop them, or measure on a quiet machine"
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast one play of a workload went, for comparison with others on the same start."""

    duration_s: float
    latency_ms: float | None
    """Of a request from its start to its last token, on average."""
    ttft_ms: float | None
    """Median."""
    silence_ms: float | None
    """Longest time with requests in flight and no token of any."""
    compiled: bool = False
    """Whether the server's log says so."""


def compilations(repeat: RepeatRecord, patterns: Sequence[str]) -> list[str]:
    """The lines of the server's log that tell of a compilation."""
    return [line for line in repeat.log if any(re.search(pattern, line) for pattern in patterns)]


def stalls(plays: Sequence[Pace], *, others: Sequence[Pace] = ()) -> tuple[Finding | None, ...]:
    """Hold each play on one server start against the quickest ones, and against `others`.

    An engine logs only the first compilation of a kernel, while each further variant stops it for
    as long again. Warm bursts on H200 took at most 1.2 times the TTFT of the second quickest; those
    in which something was compiled 1.6 (Llama-3.1-8B) to 10 times (Mixtral-8x7B). Where an engine
    takes a burst in by more or fewer steps, as SGLang does, the TTFT differs as much, but the
    requests end no later.
    """
    known = (*plays, *others)
    usual_ms = _usual([play.latency_ms for play in known])
    return tuple(
        _stall(
            "the median TTFT was {}, {} in other plays",
            play,
            play.ttft_ms,
            _usual([each.ttft_ms for each in known]),
            usual_ms,
        )
        or _stall(
            "no token came for {} with requests in flight, {} in other plays",
            play,
            play.silence_ms,
            _usual([each.silence_ms for each in known]),
            usual_ms,
        )
        for play in plays
    )


def _usual(values: Sequence[float | None]) -> float | None:
    """What no play with a stall has: of a few the least, of many the second."""
    known = sorted(value for value in values if value is not None)
    # Of many plays one may be lucky, as when the first step takes half of a burst: 161 ms beside
    # 340 ms on an H200, in a play whose TTFT and throughput were usual. Two such are rare.
    return known[len(known) >= _MANY_PLAYS] if known else None


def _stall(
    message: str,
    play: Pace,
    wait_ms: float | None,
    usual_wait_ms: float | None,
    usual_latency_ms: float | None,
) -> Finding | None:
    if wait_ms is None or usual_wait_ms is None:
        return None
    excess_ms = wait_ms - usual_wait_ms
    if wait_ms <= _STALL_RATIO * usual_wait_ms or excess_ms <= _STALL_SHARE * play.duration_s * 1e3:
        return None
    if play.latency_ms is not None and usual_latency_ms is not None:
        # All requests in flight wait, and those are so many of all.
        in_flight = play.latency_ms / (play.duration_s * 1e3)
        if play.latency_ms - usual_latency_ms <= _STALL_FELT * excess_ms * in_flight:
            return None
    return Finding(
        code="stall",
        message=message.format(quantity(wait_ms, "ms"), quantity(usual_wait_ms, "ms")),
        advice="the engine compiled for a batch that it had not met, or its host was held up: "
        "warm up with the shapes of this workload, or see what else the host does",
    )


def _no_requests(repeat: RepeatRecord) -> Finding | None:
    if repeat.requests:
        return None
    return Finding(
        code="no_requests",
        message="no request was played",
        advice="give the workload at least one request",
    )


def _failed_requests(repeat: RepeatRecord) -> Finding | None:
    failed = [request for request in repeat.requests if not completed(request)]
    if not failed:
        return None
    first = failed[0]
    return Finding(
        code="failed_requests",
        message=f"{len(failed)} of {len(repeat.requests)} requests failed; the first is "
        f"request {first.index}: {first.error or 'it ended without a token'}",
        advice="read the server's log; lower the load if it refuses requests",
    )


def _token_totals(repeat: RepeatRecord) -> Finding | None:
    done = list(filter(completed, repeat.requests))
    wrong = [request for request in done if set(_counts(request)) != {request.asked_output_tokens}]
    if not wrong:
        return None
    first = wrong[0]
    got = " and ".join(str(count) for count in dict.fromkeys(_counts(first)))
    told = all(request.output_tokens == request.asked_output_tokens for request in wrong)
    return Finding(
        code="token_totals",
        message=f"{len(wrong)} of {len(done)} requests brought other than the asked tokens; the "
        f"first is request {first.index}: {got} instead of {first.asked_output_tokens}",
        advice="the server does not tell how many tokens a chunk has: let `moeperf load` ask with "
        "--continuous-usage"
        if told
        else "check that the server honours ignore_eos and that its context is long enough",
    )


def _counts(request: RequestRecord) -> Iterator[int]:
    """Output tokens as the stream carried them, and as the server's usage says, if it came."""
    yield sum(request.chunk_tokens)
    if request.output_tokens is not None:
        yield request.output_tokens


def _other_traffic(repeat: RepeatRecord) -> Finding | None:
    generated = repeat.counters.get("generation_tokens")
    received = sum(sum(request.chunk_tokens) for request in repeat.requests)
    # A request that failed may have cost tokens that never arrived: another finding names it.
    if generated is None or not all(map(completed, repeat.requests)):
        return None
    if generated <= received * (1 + _EXTRA_TOKENS):
        return None
    return Finding(
        code="other_traffic",
        message=f"the server generated {generated:.0f} tokens while {received} were received",
        advice="keep other clients off the server while it is measured",
    )


def _compilation(repeat: RepeatRecord, patterns: Sequence[str]) -> Finding | None:
    lines = compilations(repeat, patterns)
    if not lines:
        return None
    more = f" (one of {len(lines)} such lines)" if len(lines) > 1 else ""
    return Finding(
        code="compilation",
        message=f"the server compiled while it was measured: {lines[0].strip()!r}{more}",
        advice="warm up with the shapes of this workload",
    )


def _prefix_cache(repeat: RepeatRecord, expected: float) -> Finding | None:
    queries = repeat.counters.get("prefix_cache_queries")
    hits = repeat.counters.get("prefix_cache_hits")
    if queries is None or hits is None:
        return None
    rate = hits / queries if queries else 0.0
    if abs(rate - expected) <= _HIT_RATE_TOLERANCE:
        return None
    return Finding(
        code="prefix_cache",
        message=f"{100 * rate:.0f} % of the prompt tokens came from the prefix cache, "
        f"{100 * expected:.0f} % were meant to",
        advice="start the server without it (vLLM: --no-enable-prefix-caching, SGLang: "
        "--disable-radix-cache), or reset it between plays",
    )


def _preemptions(repeat: RepeatRecord) -> Finding | None:
    count = repeat.counters.get("preemptions")
    if not count:
        return None
    return Finding(
        code="preemptions",
        message=f"the server's KV cache was full (requests preempted: {count:.0f})",
        advice="give the server more KV cache, or the workload fewer or shorter requests",
    )


def _schedule_lag(repeat: RepeatRecord) -> Finding | None:
    done = [request for request in repeat.requests if completed(request)]
    lags_ms = sorted(
        (request.sent_ns - request.scheduled_ns) / 1e6
        for request in done
        if request.scheduled_ns is not None
    )
    if not lags_ms:
        return None
    lag_ms = percentile(lags_ms, 99)
    ttft_ms = statistics.median((request.chunk_ns[0] - request.start_ns) / 1e6 for request in done)
    if lag_ms <= max(_LAG_FLOOR_MS, _LAG_SHARE * ttft_ms):
        return None
    unit = METRICS["ttft_ms"].unit
    return Finding(
        code="schedule_lag",
        message=f"requests were sent up to {quantity(lag_ms, unit)} late (p99), "
        f"with a median TTFT of {quantity(ttft_ms, unit)}",
        advice="the load client lacks CPU: leave it a core, or lower the request rate",
    )


def _client_cpu(repeat: RepeatRecord) -> Finding | None:
    duration_s = (repeat.ended_ns - repeat.started_ns) / NS_PER_S
    client = repeat.client
    if client is None or duration_s < _CLIENT_LEAST_S or client.cpu_share <= _CLIENT_SHARE:
        return None
    return Finding(
        code="client_cpu",
        message=f"the load client used {client.cpu_share:.2f} of the one core that a worker has",
        advice=_MORE_WORKERS,
    )


def _client_reads(repeat: RepeatRecord) -> Finding | None:
    chunks = sum(len(request.chunk_ns) for request in repeat.requests)
    lost = repeat.client.lost_arrivals if repeat.client is not None else 0
    if lost <= max(_LOST_FEW, _LOST_SHARE * chunks):
        return None
    return Finding(
        code="client_reads",
        message=f"{lost} of {chunks} chunks were read so late that their arrival times are lost",
        advice=_MORE_WORKERS,
    )


def _client_turnaround(repeat: RepeatRecord) -> Finding | None:
    done = [request for request in repeat.requests if completed(request)]
    lag_ms = repeat.client.read_lag_ms_p50 if repeat.client is not None else None
    if lag_ms is None or not done or any(request.scheduled_ns is not None for request in done):
        return None
    e2el_ms = statistics.median((request.chunk_ns[-1] - request.start_ns) / 1e6 for request in done)
    if lag_ms <= max(_TURNAROUND_FLOOR_MS, _TURNAROUND_SHARE * e2el_ms):
        return None
    unit = METRICS["e2el_ms"].unit
    return Finding(
        code="client_turnaround",
        message=f"answers waited {quantity(lag_ms, unit)} (median) for the load client, with a "
        f"median E2EL of {quantity(e2el_ms, unit)}",
        advice=_MORE_WORKERS,
    )


def _clock_step(repeat: RepeatRecord) -> Finding | None:
    client = repeat.client
    if client is None or client.timestamps == "read" or client.clock_step_ms <= _CLOCK_STEP_MS:
        return None
    return Finding(
        code="clock_step",
        message=f"the wall clock was set by {client.clock_step_ms:.2f} ms during the repeat",
        advice="measure again; let the time service slew the clock instead of setting it",
    )
