"""What both tools' clients keep of a play: seconds from the send, zeros for what failed."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pytest_moeperf.metrics import completed
from pytest_moeperf.stats import percentile
from pytest_moeperf.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pytest_moeperf.records import RepeatRecord, RequestRecord

__all__ = ["Call", "Played", "statistics_ms"]

_MS_PER_S = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request as `RequestFuncOutput` of both tools describes it."""

    success: bool
    error: str
    start_s: float
    ttft_s: float
    """0 where no token came, as they write it."""
    gaps_s: list[float]
    """One a chunk after the first."""
    latency_s: float
    """0 where it failed."""
    prompt_tokens: int | None
    output_tokens: int
    """0 where it failed."""

    @property
    def tpot_s(self) -> float | None:
        """None for a single token."""
        if self.output_tokens <= 1:
            return None
        return (self.latency_s - self.ttft_s) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One play with the sums that both tools make of it."""

    calls: tuple[Call, ...]
    duration_s: float
    """From the start of the play to the end of the last stream, failed ones included."""

    @classmethod
    def of(
        cls,
        repeat: RepeatRecord,
        *,
        end_ns: Callable[[RequestRecord], int],
        output_tokens: Callable[[RequestRecord], int],
    ) -> Played:
        """Reduce a play; the tools differ in where a latency ends and in what counts tokens."""
        last_ns = max((request.ended_ns for request in repeat.requests), default=repeat.ended_ns)
        return cls(
            calls=tuple(
                _call(request, end_ns=end_ns, output_tokens=output_tokens)
                for request in repeat.requests
            ),
            duration_s=(last_ns - repeat.started_ns) / NS_PER_S,
        )

    @property
    def done(self) -> list[Call]:
        """The successful ones."""
        return [call for call in self.calls if call.success]

    @property
    def prompt_tokens(self) -> int | None:
        """Of the successful requests; None if the server did not count all of them."""
        counted = [call.prompt_tokens for call in self.done if call.prompt_tokens is not None]
        return sum(counted) if len(counted) == len(self.done) else None

    @property
    def output_tokens(self) -> int:
        """Of the successful requests."""
        return sum(call.output_tokens for call in self.done)

    @property
    def total_tokens(self) -> int | None:
        """Prompt and output."""
        return None if self.prompt_tokens is None else self.prompt_tokens + self.output_tokens

    def per_second(self, amount: float | None) -> float | None:
        """The amount over the duration."""
        return None if amount is None or self.duration_s <= 0 else amount / self.duration_s

    def good(self, values: Mapping[str, float | None]) -> int | None:
        """Requests within every objective, by the share that was computed; None without any."""
        share = values.get("goodput_share")
        return None if share is None else round(share * len(self.calls))

    def peaks(self) -> dict[str, float | int]:
        """The most chunks, which both tools call tokens, and requests in any second of the play."""
        done = self.done
        if not done:
            return {"max_output_tokens_per_s": 0.0, "max_concurrent_requests": 0}
        origin_s = min(call.start_s for call in done)
        chunks: Counter[int] = Counter()
        running: Counter[int] = Counter()
        for call in done:
            at_s = call.start_s - origin_s + call.ttft_s
            chunks[math.floor(at_s)] += 1
            for gap_s in call.gaps_s:
                at_s += gap_s
                chunks[math.floor(at_s)] += 1
            first_s = call.start_s - origin_s
            running.update(range(math.floor(first_s), math.floor(first_s + call.latency_s) + 1))
        return {
            "max_output_tokens_per_s": float(max(chunks.values())),
            "max_concurrent_requests": max(running.values()),
        }

    def lists(self) -> dict[str, object]:
        """The fields of single requests that both tools name alike, without the texts."""
        return {
            "input_lens": [call.prompt_tokens for call in self.calls],
            "output_lens": [call.output_tokens for call in self.calls],
            "ttfts": [call.ttft_s for call in self.calls],
            "itls": [call.gaps_s for call in self.calls],
        }


def _call(
    request: RequestRecord,
    *,
    end_ns: Callable[[RequestRecord], int],
    output_tokens: Callable[[RequestRecord], int],
) -> Call:
    success = completed(request)
    chunks = request.chunk_ns
    return Call(
        success=success,
        error="" if success else request.error or "stream without tokens",
        start_s=request.sent_ns / NS_PER_S,
        ttft_s=(chunks[0] - request.sent_ns) / NS_PER_S if len(chunks) else 0.0,
        gaps_s=[(after - before) / NS_PER_S for before, after in pairwise(chunks)],
        latency_s=(end_ns(request) - request.sent_ns) / NS_PER_S if success else 0.0,
        prompt_tokens=request.prompt_tokens,
        output_tokens=int(output_tokens(request)) if success else 0,
    )


def statistics_ms(
    name: str, seconds: Iterable[float], *, ranks: Sequence[int] = (90, 99)
) -> dict[str, float]:
    """Mean, median, standard deviation (of all, not of a sample) and percentiles in ms.

    Both tools write 0 where nothing was measured, and percentiles of any number of values.
    """
    ordered = sorted(value * _MS_PER_S for value in seconds) or [0.0]
    mean = statistics.fmean(ordered)
    variance = statistics.fmean((value - mean) ** 2 for value in ordered)
    return {
        f"mean_{name}_ms": mean,
        f"median_{name}_ms": percentile(ordered, 50),
        f"std_{name}_ms": math.sqrt(variance),
        **{f"p{rank}_{name}_ms": percentile(ordered, rank) for rank in ranks},
    }
