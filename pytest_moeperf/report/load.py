"""What `moeperf load` says of one play: a table for people, a document for programs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pytest_moeperf.metrics import METRICS, Metric, completed, quantity
from pytest_moeperf.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_moeperf.records import ClientRecord, Finding, RepeatRecord
    from pytest_moeperf.workload import Workload

__all__ = ["Played", "document", "row", "table"]

STATISTICS = ("mean", "p50", "p90", "p99")
LABEL_WIDTH, UNIT_WIDTH, FIGURE_WIDTH = 20, 10, 9
TIMES = {
    "kernel": "receive time stamps of the kernel",
    "mixed": "receive time stamps of the kernel, some by the clock when data was read",
    "read": "the clock when data was read",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One play with all that was made of it."""

    url: str
    model: str
    workload: Workload
    repeat: RepeatRecord
    values: Mapping[str, float | None]
    findings: Sequence[Finding]

    @property
    def errors(self) -> dict[str, int]:
        """Failed requests by reason, most frequent first."""
        reasons = (
            request.error or "stream without tokens"
            for request in self.repeat.requests
            if not completed(request)
        )
        return dict(Counter(reasons).most_common())

    @property
    def duration_s(self) -> float:
        """From the start of the play to its end."""
        return (self.repeat.ended_ns - self.repeat.started_ns) / NS_PER_S


def document(played: Played) -> dict[str, object]:
    """Everything, ready for JSON; `valid` is false where a finding forbids to trust the figures."""
    client = played.repeat.client
    return {
        "url": played.url,
        "model": played.model,
        "workload": played.workload.slug,
        "requests": len(played.repeat.requests),
        "duration_s": played.duration_s,
        "valid": not played.findings,
        "findings": [asdict(finding) for finding in played.findings],
        "client": None if client is None else asdict(client),
        "metrics": dict(played.values),
        "errors": played.errors,
    }


def table(played: Played) -> str:
    """A row for each metric that was measured, then how, then why not to trust it."""
    total, errors = len(played.repeat.requests), played.errors
    done = total - sum(errors.values())
    client = played.repeat.client
    return "\n".join(
        [
            f"{played.model} at {played.url}: {played.workload.label}",
            f"{done} of {total} requests completed in {played.duration_s:.1f} s",
            *(f"  {count} failed: {reason}" for reason, count in errors.items()),
            "",
            row("", "", STATISTICS),
            *_rows(played.values),
            *([] if client is None else ["", _client_line(client)]),
            *(f"INVALID: {found.message}; {found.advice}" for found in played.findings),
        ]
    )


def _rows(values: Mapping[str, float | None]) -> Iterator[str]:
    for metric in METRICS.values():
        if any(values.get(key) is not None for key in metric.keys):
            yield row(metric.label, metric.unit, _cells(metric, values))


def _cells(metric: Metric, values: Mapping[str, float | None]) -> list[str]:
    if not metric.statistics:
        return [quantity(values[metric.key])]
    return [
        quantity(values[f"{metric.key}.{name}"]) if name in metric.statistics else ""
        for name in STATISTICS
    ]


def row(label: str, unit: str, cells: Sequence[str], *, label_width: int = LABEL_WIDTH) -> str:
    """A line of a table of metrics, the figures right-aligned."""
    figures = "".join(f"{cell:>{FIGURE_WIDTH}}" for cell in cells)
    return f"{label:<{label_width}}{unit:<{UNIT_WIDTH}}{figures}".rstrip()


def _client_line(client: ClientRecord) -> str:
    """How arrivals were timed, and how near the client was to its limit."""
    workers = "1 worker" if client.workers == 1 else f"{client.workers} workers, the busiest"
    lag = (
        ""
        if client.read_lag_ms_p99 is None
        else f", read lag p99 {quantity(client.read_lag_ms_p99, 'ms')}"
    )
    return (
        f"Arrivals by {TIMES[client.timestamps]}; {workers} on "
        f"{100 * client.cpu_share:.0f} % of a core{lag}"
    )
