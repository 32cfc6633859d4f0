"""When the requests of a workload are sent."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from pytest_moeperf.units import NS_PER_S
from pytest_moeperf.workload.shapes import Burst, ClosedLoop, OpenLoop

if TYPE_CHECKING:
    from pytest_moeperf.workload.shapes import Trace, TraceReplay, Workload

__all__ = ["replayed", "send_offsets_ns", "think_times_ns"]


def send_offsets_ns(workload: Workload, trace: Trace) -> list[int | None]:
    """Send times after the start of the play; None in a closed loop.

    `trace` holds the entries that are played, in order.
    """
    match workload:
        case ClosedLoop():
            return [None] * workload.requests
        case Burst():
            return [0] * workload.requests
        case OpenLoop():
            return [*_open_loop_ns(workload)]
        case _:
            return [round((entry.at_ns - trace[0].at_ns) / workload.speed) for entry in trace]


def replayed(workload: TraceReplay, trace: Trace) -> Trace:
    """The entries that are played: by time, those of one time in the order of the file."""
    return tuple(sorted(trace, key=lambda entry: entry.at_ns)[: workload.requests])


def think_times_ns(workload: Workload, requests: int) -> list[int]:
    """How long a slot of a closed loop rests before each request.

    The first request of every slot follows no other and goes out at once.
    """
    if not isinstance(workload, ClosedLoop) or not workload.think_s:
        return [0] * requests
    generator = random.Random(f"think {workload.think_seed}")  # noqa: S311  load, not secrets
    return [
        0 if index < workload.concurrency else round(_rest_s(workload, generator) * NS_PER_S)
        for index in range(requests)
    ]


def _rest_s(workload: ClosedLoop, generator: random.Random) -> float:
    if workload.think == "constant":
        return workload.think_s
    return generator.expovariate(1 / workload.think_s)


def _open_loop_ns(workload: OpenLoop) -> list[int]:
    """Gaps are all drawn beforehand and rescaled so that the last request is sent on time.

    That is at requests ÷ rate: otherwise the offered rate would differ by some percent from seed
    to seed. As `get_request` in vLLM's `vllm/benchmarks/serve.py` does it.
    """
    generator = random.Random(f"arrivals {workload.arrivals_seed}")  # noqa: S311  load, not secrets
    drawn, at = [], 0.0
    for _ in range(workload.requests):
        at += 1.0 if workload.arrivals == "constant" else _gap(workload, generator)
        drawn.append(at)
    if workload.end_rate is not None:
        return _ramp_ns(workload.request_rate, workload.end_rate, drawn)
    scale = workload.requests / workload.request_rate / at
    return [round(each * scale * NS_PER_S) for each in drawn]


def _gap(workload: OpenLoop, generator: random.Random) -> float:
    return generator.gammavariate(workload.burstiness, 1 / workload.burstiness)


def _ramp_ns(start_rate: float, end_rate: float, drawn: list[float]) -> list[int]:
    """Bend the times of an even rate so that the rate changes linearly with time.

    An inhomogeneous Poisson process is a homogeneous one of rate 1 whose times are put through
    the inverse of the integrated rate (Çinlar, Introduction to Stochastic Processes, 1975, ch. 4).
    Here the rate is r(t) = a + (b - a) t / T, so that a t + (b - a) t² / 2T requests are sent
    until t; all n of them until T = 2n / (a + b). Solved for t in a form that holds for a = b:
    t = 2u / (a + sqrt(a² + 2 u (b - a) / T)). Other gaps than Poisson's are bent the same way.
    """
    requests = len(drawn)
    duration_s = 2 * requests / (start_rate + end_rate)
    slope = (end_rate - start_rate) / duration_s
    scale = requests / drawn[-1]
    return [
        # The root of the last one of a falling ramp may be a rounding error below zero.
        round(
            2
            * sent
            / (start_rate + math.sqrt(max(start_rate**2 + 2 * sent * slope, 0.0)))
            * NS_PER_S
        )
        for sent in (each * scale for each in drawn)
    ]
