"""What a paced server really sent, and how far a load client's record is from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pytest_moeperf.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from pytest_moeperf.records import RequestRecord

    Times = npt.NDArray[np.int64]

__all__ = ["Accuracy", "Arrivals", "Figure", "Truth", "compare"]

LOG_VERSION = 1
NS_PER_MS = 1e6

THROUGHPUT_LIMIT = 0.005
LATENCY_LIMIT = 0.01
LATENCY_FLOOR_MS = 0.3
TTFT_P99_LIMIT_MS = 1.0
SCHEDULE_LIMIT_MS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Times of the chunks of many requests, as the server or the client has them."""

    start_ns: Times
    """Of each request: when it was sent, or when it came."""
    counts: Times
    """Chunks of each request."""
    chunk_ns: Times
    """Of all chunks, request by request."""

    @classmethod
    def of(cls, requests: Sequence[RequestRecord]) -> Self:
        """What the load client recorded; latencies count from the time of sending."""
        chunks = [np.asarray(request.chunk_ns, dtype=np.int64) for request in requests]
        return cls(
            start_ns=np.array([request.sent_ns for request in requests], dtype=np.int64),
            counts=np.array([len(times) for times in chunks], dtype=np.int64),
            chunk_ns=np.concatenate(chunks) if chunks else np.empty(0, dtype=np.int64),
        )

    @property
    def firsts(self) -> Times:
        """Where each request begins in `chunk_ns`."""
        ends: Times = np.cumsum(self.counts)
        return ends - self.counts

    @property
    def positions(self) -> Times:
        """The number of each chunk within its request, from 0."""
        numbers: Times = np.arange(len(self.chunk_ns)) - np.repeat(self.firsts, self.counts)
        return numbers

    def ttft_ms(self) -> npt.NDArray[np.float64]:
        """Of every request that has a chunk."""
        begun = self.counts > 0
        first_ns = self.chunk_ns[self.firsts[begun]]
        milliseconds: npt.NDArray[np.float64] = (first_ns - self.start_ns[begun]) / NS_PER_MS
        return milliseconds

    def itl_ms(self) -> npt.NDArray[np.float64]:
        """Gaps between the chunks of a request, of all requests together."""
        gaps = np.diff(self.chunk_ns)[self.positions[1:] > 0]
        milliseconds: npt.NDArray[np.float64] = gaps / NS_PER_MS
        return milliseconds

    def mean_itl_ms(self) -> npt.NDArray[np.float64]:
        """The mean gap of each request with two chunks or more, as some clients report it."""
        long = self.counts > 1
        first, last = self.firsts[long], (self.firsts + self.counts - 1)[long]
        gaps = self.chunk_ns[last] - self.chunk_ns[first]
        milliseconds: npt.NDArray[np.float64] = gaps / (self.counts[long] - 1) / NS_PER_MS
        return milliseconds

    def chunks_per_s(self) -> float:
        """From the first request to the last chunk."""
        duration_ns = int(self.chunk_ns.max()) - int(self.start_ns.min())
        return len(self.chunk_ns) / duration_ns * NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """The log of a paced server."""

    mode: str
    ttft_ns: int
    itl_ns: int
    merge: int
    origin_ns: int
    short_sends: int
    keys: Times
    """First token id of each prompt; -1 for prompts of text."""
    arrivals: Arrivals

    @classmethod
    def decode(cls, log: bytes) -> Self:
        """Read the log that `pytest_moeperf.testing.paced` writes.

        Raises ValueError for anything else.
        """
        line, _, rest = log.partition(b"\n")
        head: dict[str, Any] = json.loads(line)
        if head.get("version") != LOG_VERSION:
            raise ValueError(f"a log of version {head.get('version')}, not {LOG_VERSION}")
        requests, sends = head["requests"], head["sends"]
        numbers = np.frombuffer(rest, dtype=np.int64)
        if len(numbers) != 3 * requests + sends:
            raise ValueError(f"{len(numbers)} numbers in a log of {requests} requests")
        return cls(
            mode=head["mode"],
            ttft_ns=head["ttft_ns"],
            itl_ns=head["itl_ns"],
            merge=head["merge"],
            origin_ns=head["origin_ns"],
            short_sends=head["short_sends"],
            keys=numbers[:requests],
            arrivals=Arrivals(
                start_ns=numbers[requests : 2 * requests],
                counts=numbers[2 * requests : 3 * requests],
                chunk_ns=numbers[3 * requests :],
            ),
        )

    def lateness_ms(self) -> npt.NDArray[np.float64]:
        """How late the server was against its own schedule.

        For every chunk; in steps, for the first chunk of every step, since those behind it are
        sent one after the other on purpose.
        """
        sent, period_ns = self.arrivals, self.itl_ns * self.merge
        first_ns = sent.start_ns + self.ttft_ns
        if self.mode == "step":
            first_ns += (self.origin_ns - first_ns) % period_ns
        due_ns = np.repeat(first_ns, sent.counts) + sent.positions // self.merge * period_ns
        late_ns = sent.chunk_ns - due_ns
        if self.mode == "step":
            _, step = np.unique(due_ns, return_inverse=True)
            earliest_ns = np.full(step.max(initial=-1) + 1, np.iinfo(np.int64).max)
            np.minimum.at(earliest_ns, step, late_ns)
            late_ns = earliest_ns
        milliseconds: npt.NDArray[np.float64] = late_ns / NS_PER_MS
        return milliseconds


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric, as it was and as the client saw it."""

    true: float
    seen: float

    @property
    def error(self) -> float:
        """In the metric's unit."""
        return self.seen - self.true

    @property
    def relative(self) -> float:
        """As a share of the truth."""
        return self.error / self.true


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """A load client's record beside the truth."""

    chunks_sent: int
    chunks_seen: int
    chunks_per_s: Figure
    ttft_ms_p50: Figure
    ttft_ms_p99: Figure
    itl_ms_p50: Figure
    itl_ms_p99: Figure
    stamp_delay_ms_p50: float
    """From just before a chunk was sent to its recorded arrival, on one clock."""
    stamp_delay_ms_p99: float
    lateness_ms_p99: float
    """Of the server, against its schedule."""

    @property
    def schedule_held(self) -> bool:
        """Whether the server sent what it was to send, when it was to."""
        return self.lateness_ms_p99 <= SCHEDULE_LIMIT_MS

    def excesses(self) -> tuple[str, ...]:
        """Errors beyond their limits, in words.

        The limits are 0.5 % of throughput, 1 % or 0.3 ms of a latency, 1 ms of the p99 of TTFT,
        and no chunk lost.
        """
        found = []
        if self.chunks_seen != self.chunks_sent:
            found.append(f"{self.chunks_seen} of {self.chunks_sent} chunks")
        if abs(self.chunks_per_s.relative) > THROUGHPUT_LIMIT:
            found.append(f"throughput {self.chunks_per_s.relative:+.1%}")
        for name, figure in (
            ("TTFT p50", self.ttft_ms_p50),
            ("ITL p50", self.itl_ms_p50),
            ("ITL p99", self.itl_ms_p99),
        ):
            if abs(figure.error) > max(LATENCY_FLOOR_MS, LATENCY_LIMIT * figure.true):
                found.append(f"{name} {figure.error:+.2f} ms")
        if abs(self.ttft_ms_p99.error) > TTFT_P99_LIMIT_MS:
            found.append(f"TTFT p99 {self.ttft_ms_p99.error:+.2f} ms")
        return tuple(found)


def compare(requests: Sequence[RequestRecord], truth: Truth, *, first_key: int) -> Accuracy:
    """Hold the client's record against the server's log.

    The prompt of request `index` began with the token `first_key + index`. Raises ValueError when
    the log knows another set of requests, or when too few chunks came for any figure.
    """
    ordered = sorted(requests, key=lambda request: request.index)
    order = np.argsort(truth.keys, kind="stable")
    keys = [first_key + request.index for request in ordered]
    if truth.keys[order].tolist() != keys:
        raise ValueError(f"the server logged {len(order)} requests, the client {len(keys)}")
    seen, sent = Arrivals.of(ordered), truth.arrivals
    if not seen.itl_ms().size or not sent.itl_ms().size:
        raise ValueError("no request brought two chunks")
    delay_ms = _delays_ms(seen, sent, order)

    def figure(name: str, rank: float) -> Figure:
        return Figure(*(float(np.percentile(getattr(side, name)(), rank)) for side in (sent, seen)))

    return Accuracy(
        chunks_sent=len(sent.chunk_ns),
        chunks_seen=len(seen.chunk_ns),
        chunks_per_s=Figure(sent.chunks_per_s(), seen.chunks_per_s()),
        ttft_ms_p50=figure("ttft_ms", 50),
        ttft_ms_p99=figure("ttft_ms", 99),
        itl_ms_p50=figure("itl_ms", 50),
        itl_ms_p99=figure("itl_ms", 99),
        stamp_delay_ms_p50=float(np.percentile(delay_ms, 50)),
        stamp_delay_ms_p99=float(np.percentile(delay_ms, 99)),
        lateness_ms_p99=float(np.percentile(truth.lateness_ms(), 99)),
    )


def _delays_ms(seen: Arrivals, sent: Arrivals, order: npt.NDArray[np.intp]) -> Any:
    """From send to recorded arrival, of the chunks of requests that came whole."""
    delays = []
    for index, number in enumerate(order):
        count = int(sent.counts[number])
        if count == int(seen.counts[index]):
            at, begin = int(seen.firsts[index]), int(sent.firsts[number])
            delays.append(seen.chunk_ns[at : at + count] - sent.chunk_ns[begin : begin + count])
    return np.concatenate(delays) / NS_PER_MS if delays else np.array([np.inf])
