"""The document of `moeperf load --json`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_moeperf.exchange.imported import ImportedResult, complete
from pytest_moeperf.metrics import KEYS

if TYPE_CHECKING:
    from pytest_moeperf.exchange.fields import Fields

__all__ = ["SOURCE", "read", "recognises"]

SOURCE = "`moeperf load --json`"


def recognises(fields: Fields) -> bool:
    """Whether the document has what only ours has."""
    return fields.has("metrics", "workload", "url")


def read(fields: Fields) -> ImportedResult:
    """Take the metrics as they are; of another version, some may be unknown here."""
    metrics = fields.section("metrics")
    notes = [
        f"not to be trusted: {finding.get('message')}"
        for finding in fields.column("findings") or ()
        if isinstance(finding, dict)
    ]
    unknown = [key for key in metrics.document if key not in KEYS]
    if unknown:
        notes.append(f"left out, as this version has no such metric: {', '.join(unknown)}")
    return ImportedResult(
        name=fields.name,
        tool="moeperf",
        model=fields.text("model"),
        values=complete({key: metrics.figure(key) for key in KEYS}),
        notes=tuple(notes),
    )
