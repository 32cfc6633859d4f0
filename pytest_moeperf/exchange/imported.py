"""What all imports share: from listed requests to our metrics, and from summaries to our keys."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_moeperf.errors import UsageError
from pytest_moeperf.metrics import KEYS, METRICS, completed
from pytest_moeperf.records import RequestRecord
from pytest_moeperf.stats import PERCENTILE_FLOOR, percentile
from pytest_moeperf.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_moeperf.exchange.fields import Fields

__all__ = [
    "FROM_SEND",
    "LISTED",
    "Detail",
    "ImportedResult",
    "complete",
    "detail_of",
    "few_observations",
    "from_schedule",
    "left_out",
    "rates",
    "read_spread",
    "recompute",
    "recompute_chunks",
    "spread",
]

_PLAY = (
    "request_throughput",
    "output_throughput",
    "total_throughput",
    "steady_output_throughput",
    "steady_concurrency",
)
"""Figures of the whole play, which need to know when each request began."""

LISTED = "latencies are recomputed from the listed requests by our definitions"
FROM_SEND = "TTFT and E2EL count from the send; those of moeperf count from the scheduled time"

_MS_PER_S = 1e3
_LATEST_NS = 2**62
"""As far as 64 bits can be trusted with sums."""
_SHORTEST_STEP_NS = 50_000
"""No engine decodes faster; a client that reads two chunks at once reports some microseconds."""
_MERGED_TOLERATED = 0.01
_STATISTICS = {"mean": "mean", "p50": "median", "p90": "p90", "p99": "p99"}
"""Ours by what both tools begin a field with."""
_PERCENTILES_OF_REQUESTS = tuple(
    f"{metric}.{rank}" for metric in ("ttft_ms", "tpot_ms", "e2el_ms") for rank in ("p90", "p99")
)
_FIGURE_NAME = re.compile(r"(mean|median|std|p\d+(\.\d+)?|spec_decode|diffusion|probe)_\w+")
_OTHER_FIGURES = {
    "accept_length",
    "concurrency",
    "input_throughput",
    "max_concurrent_requests",
    "max_output_tokens_per_s",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedResult:
    """One result file in our terms."""

    name: str
    tool: str
    """Who wrote it: `moeperf`, `vllm` or `sglang`."""
    model: str | None
    values: Mapping[str, float | None]
    """Every key of `metrics.KEYS`; None where the file does not tell it by our definition."""
    notes: tuple[str, ...]
    """A sentence for each difference in definition that concerns these values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """The requests of a result that lists them."""

    requests: tuple[RequestRecord, ...]
    """Each chunk after the first has one token and the first the others: only the sum is known."""
    timed: bool
    """Whether it is known when each request began; else all begin at 0."""

    @property
    def done(self) -> list[RequestRecord]:
        """The completed ones."""
        return [request for request in self.requests if completed(request)]

    @property
    def one_token_a_chunk(self) -> bool:
        """Whether every completed request brought as many chunks as tokens."""
        return all(len(request.chunk_ns) == request.output_tokens for request in self.done)

    @property
    def merged_share(self) -> float:
        """Share of gaps too short for a decode step; 0 without gaps."""
        gaps_ns = [
            after - before for request in self.done for before, after in pairwise(request.chunk_ns)
        ]
        return sum(gap < _SHORTEST_STEP_NS for gap in gaps_ns) / len(gaps_ns) if gaps_ns else 0.0

    @property
    def tokens_per_chunk(self) -> float | None:
        """Mean over the chunks of completed requests."""
        chunks = sum(len(request.chunk_ns) for request in self.done)
        return sum(request.output_tokens or 0 for request in self.done) / chunks if chunks else None


def detail_of(fields: Fields) -> Detail | None:
    """Both tools list requests under the same names; None where they were not asked to."""
    ttfts, gaps = fields.figures("ttfts"), fields.series("itls")
    output_lens = fields.counts("output_lens")
    if ttfts is None or gaps is None or output_lens is None:
        return None
    starts = fields.figures("start_times")
    columns: dict[str, list[Any]] = {
        "itls": gaps,
        "output_lens": output_lens,
        "errors": _filled(fields.column("errors"), "", len(ttfts)),
        "input_lens": _filled(fields.counts("input_lens"), None, len(ttfts)),
        "start_times": _filled(starts, 0.0, len(ttfts)),
    }
    for key, column in columns.items():
        if len(column) != len(ttfts):
            raise UsageError(
                f"{fields.name}: ttfts has {len(ttfts)} entries and {key} has {len(column)}: "
                "both must have one for each request"
            )
    rows = zip(ttfts, *columns.values(), strict=True)
    requests = tuple(_request(index, _Listed(*row)) for index, row in enumerate(rows))
    if any(request.ended_ns > _LATEST_NS for request in requests):
        raise UsageError(f"{fields.name}: itls add up to centuries: they are seconds")
    return Detail(requests=requests, timed=starts is not None)


def _filled(column: list[Any] | None, default: object, length: int) -> list[Any]:
    return [default] * length if column is None else column


class _Listed(NamedTuple):
    """One request as the columns of a result tell it, in their order."""

    ttft_s: float
    gaps_s: list[float]
    output_tokens: int | None
    error: object
    prompt_tokens: int | None
    start_s: float


def _request(index: int, listed: _Listed) -> RequestRecord:
    ttft_s, gaps_s, output_tokens, error, prompt_tokens, start_s = listed
    sent_ns = round(start_s * NS_PER_S)
    # A request that failed has no output; one that succeeded without any token has a TTFT of 0.
    brought = bool(output_tokens and ttft_s and not error)
    arrivals = accumulate(gaps_s, initial=ttft_s) if brought else ()
    chunk_ns = tuple(sent_ns + round(at_s * NS_PER_S) for at_s in arrivals)
    first = max((output_tokens or 0) - len(gaps_s), 1)
    return RequestRecord(
        index=index,
        sent_ns=sent_ns,
        chunk_ns=chunk_ns,
        chunk_tokens=(first, *(1 for _ in chunk_ns[1:])) if chunk_ns else (),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        asked_output_tokens=output_tokens or 0,
        ended_ns=max(chunk_ns, default=sent_ns),
        error=str(error) if error else None,
    )


def recompute(detail: Detail) -> dict[str, float | None]:
    """Our metrics of listed requests, without the rates where it is not known when they began."""
    # Imports numpy, which exports do without: it would hold up their first request.
    from pytest_moeperf.figures import compute  # noqa: PLC0415 - numpy

    values = compute(detail.requests)
    values["tokens_per_chunk.mean"] = detail.tokens_per_chunk
    if not detail.timed:
        values |= dict.fromkeys(_PLAY)
    return values


def recompute_chunks(detail: Detail) -> tuple[dict[str, float | None], list[str]]:
    """`recompute` where the listed gaps lie between chunks, with what to say about the ITLs."""
    values, notes = recompute(detail), [LISTED]
    if detail.merged_share > _MERGED_TOLERATED:
        notes.append(
            f"{detail.merged_share:.0%} of its gaps are under 0.05 ms, which no decode step is: "
            "chunks were read together, and the percentiles of its ITL are not the server's"
        )
    if detail.one_token_a_chunk:
        notes.append("it has as many chunks as tokens, so that its ITL is both of ours")
        return values, notes
    notes.append(
        f"a chunk held {detail.tokens_per_chunk or 0:.2f} tokens on average and the file does not "
        "tell which held how many: its ITL is read as itl_chunk_ms, and itl_token_ms is missing"
    )
    unknown = (*METRICS["itl_token_ms"].keys, "steady_output_throughput")
    return {**values, **dict.fromkeys(unknown)}, notes


def complete(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Every key of ours in our order, None where `values` has it not."""
    return {key: values.get(key) for key in KEYS}


def read_spread(fields: Fields, *, ours: str, theirs: str) -> dict[str, float | None]:
    """Mean, median, p90 and p99 of one latency from a summary.

    Both tools write 0 where nothing was measured; no latency is 0.
    """
    return {
        f"{ours}.{statistic}": fields.figure(f"{word}_{theirs}_ms") or None
        for statistic, word in _STATISTICS.items()
    }


def spread(key: str, seconds: Iterable[float]) -> dict[str, float | None]:
    """The statistics of a latency over observed seconds, with our floors for percentiles."""
    ordered = sorted(value * _MS_PER_S for value in seconds)
    values: dict[str, float | None] = dict.fromkeys(METRICS[key].keys)
    if ordered:
        values[f"{key}.mean"] = statistics.fmean(ordered)
    for rank, floor in PERCENTILE_FLOOR.items():
        if len(ordered) >= floor:
            values[f"{key}.p{rank}"] = percentile(ordered, rank)
    return values


def rates(fields: Fields, *, total: str) -> dict[str, float | None]:
    """The throughputs of a summary; None where no request was completed, as nothing ran then."""
    names = {
        "request_throughput": "request_throughput",
        "output_throughput": "output_throughput",
        "total_throughput": total,
    }
    if not fields.figure("completed"):
        return dict.fromkeys(names)
    return {ours: fields.figure(theirs) for ours, theirs in names.items()}


def from_schedule(fields: Fields) -> bool:
    """Whether such a play has a schedule with us: anything but a closed loop, whose slots send."""
    unlimited = fields.document.get("request_rate") in (None, "inf", math.inf)
    return not unlimited or fields.figure("max_concurrency") is None


def few_observations(fields: Fields, values: Mapping[str, float | None]) -> list[str]:
    """Name the percentiles of a summary that rest on fewer requests than ours would."""
    count = fields.figure("completed")
    rare = [
        key
        for key in _PERCENTILES_OF_REQUESTS
        if values.get(key) is not None
        and count is not None
        and count < PERCENTILE_FLOOR[int(key.rpartition("p")[2])]
    ]
    if not rare:
        return []
    note = (
        f"{', '.join(rare)} rest on {count:.0f} requests: moeperf gives p90 from "
        f"{PERCENTILE_FLOOR[90]} and p99 from {PERCENTILE_FLOOR[99]} observations on"
    )
    return [note]


def left_out(fields: Fields, used: Sequence[str]) -> list[str]:
    """Name the figures of a document that none of our metrics means."""
    taken = set(used) | {f"{word}_{name}_ms" for name in used for word in _STATISTICS.values()}
    names = [
        key
        for key, value in fields.document.items()
        if isinstance(value, int | float)
        and key not in taken
        and (key in _OTHER_FIGURES or _FIGURE_NAME.fullmatch(key))
    ]
    return [f"left out, as moeperf has no such metric: {', '.join(names)}"] if names else []
