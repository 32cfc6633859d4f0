"""What `moeperf baseline show` prints of many baselines: a line for each server."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_moeperf.baseline import NEVER
from pytest_moeperf.document import printable
from pytest_moeperf.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["measured_on", "overview"]


def overview(summaries: Sequence[Mapping[str, Any]], *, today: str) -> Iterator[str]:
    """The servers that are measured, by engine and machine, with how often and until when."""
    groups = [list(group) for _, group in groupby(sorted(summaries, key=_server), key=_server)]
    rows = [_row(group, today) for group in groups]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(("", *row), (0, *widths), strict=True))
        for row in rows
    )
    for where, there in groupby(groups, key=lambda group: measured_on(group[0])):
        yield where
        yield from (next(lines).rstrip() for _ in there)
        yield ""
    folder = printable(str(Path(summaries[0]["path"]).parent))
    yield f"{counted(len(summaries), 'baseline')}; what they hold: moeperf baseline show {folder}"


def measured_on(summary: Mapping[str, Any]) -> str:
    """Engine, class of hardware and machine: `vllm 0.24.0 on h200: 1x NVIDIA H200`."""
    engine = f"{summary['distribution']} {summary['engine_version'] or '(version not known)'}"
    return f"{engine} on {summary['hardware']}: {summary['machine']}"


def _server(summary: Mapping[str, Any]) -> tuple[str, str, str]:
    return measured_on(summary), summary["model"], summary["server"]


def _row(group: Sequence[Mapping[str, Any]], today: str) -> tuple[str, ...]:
    name, _, origin = group[0]["model"].partition("@")
    weights = ", dummy weights" if origin.startswith("dummy-") else ""
    starts = [len(each["recorded_at"]) for each in group]
    fewest, most = min(starts), max(starts)
    last_day = min(each["expires"] for each in group)
    return (
        f"{name}{weights}; {group[0]['server']}",
        counted(len(group), "baseline"),
        counted(most, "start") if fewest == most else f"{fewest} to {most} starts",
        f"{'expired' if last_day < today else 'expires'} {last_day.replace(NEVER, 'never')}",
    )
