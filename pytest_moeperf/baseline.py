"""What a baseline is, and how a recording extends it: pure, the files are in `store`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pytest_moeperf.compat import differences
from pytest_moeperf.document import (
    fingerprint_document,
    parse,
    read_fingerprint,
    read_start,
    render,
    start_document,
    stored_form,
    validate,
)
from pytest_moeperf.errors import BaselineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_moeperf.records import Direction, Fingerprint, StartRecord

__all__ = ["MAX_STARTS", "SCHEMA_VERSION", "Baseline", "Gate", "Recording", "decode", "encode"]

SCHEMA_VERSION = 1
"""Version of the file format.

1: first one. Fingerprint, gates, and per server start the values of every repeat.
"""

MAX_STARTS = 10
"""A recording beyond them drops the oldest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The bar that a metric was recorded with, stored so that a lowered one shows in review."""

    direction: Direction
    tolerance: float
    """Relative: 0.05 accepts a change of 5 % in the bad direction."""
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One server start that is to join a cell's baseline."""

    cell: str
    fingerprint: Fingerprint
    start: StartRecord
    gates: Mapping[str, Gate]
    """By metric key."""
    tool: str
    """Version of this tool."""
    reason: str = ""
    """Why the baseline is what it is, in the words of who recorded it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The stored reference of one cell: raw repeats of up to ten server starts."""

    cell: str
    fingerprint: Fingerprint
    starts: tuple[StartRecord, ...]
    """Oldest first; all of one engine version."""
    gates: Mapping[str, Gate] = field(default_factory=dict)
    created: str
    """When the first start was recorded: UTC, ISO 8601."""
    reason: str = ""
    tool: str
    schema: int = SCHEMA_VERSION

    @property
    def engine_version(self) -> str | None:
        """The version that all starts ran; None where a server did not tell it."""
        return self.starts[-1].engine_version

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that any repeat has, sorted."""
        return tuple(
            sorted(
                {
                    metric
                    for start in self.starts
                    for sample in start.repeats
                    for metric in sample.values
                }
            )
        )

    def repeats(self, metric: str) -> tuple[tuple[float, ...], ...]:
        """The metric's measured values, one tuple a start; starts without any are left out."""
        columns = (
            tuple(
                value
                for sample in start.repeats
                if (value := sample.values.get(metric)) is not None
            )
            for start in self.starts
        )
        return tuple(column for column in columns if column)

    def extended(self, recording: Recording, *, source: str) -> Baseline:
        """This baseline with one more start.

        A start that is already here (two tests measured the cell on one server) gains the
        repeats. Raises UsageError, naming the field, where the recording is not comparable.
        """
        advice = f"record elsewhere with --baseline-dir, or delete {source} to begin anew"
        if differing := differences(recording.fingerprint, self.fingerprint):
            raise UsageError(f"cannot add to {source}: {differing[0]}; {advice}")
        if recording.start.engine_version != self.engine_version:
            raise UsageError(
                f"cannot add to {source}: the engine version is {recording.start.engine_version} "
                f"here and {self.engine_version} in the baseline; {advice}"
            )
        start = stored_form(recording.start)
        *earlier, last = self.starts
        if last.start_id == start.start_id:
            gates = {**self.gates, **recording.gates}
            new = tuple(repeat for repeat in start.repeats if repeat not in last.repeats)
            starts = (*earlier, replace(last, repeats=last.repeats + new))
        else:
            gates = dict(recording.gates)
            starts = (*self.starts, start)[-MAX_STARTS:]
        return replace(
            self,
            starts=starts,
            gates=gates,
            reason=recording.reason or self.reason,
            tool=recording.tool,
        )

    @classmethod
    def begun(cls, recording: Recording) -> Baseline:
        """A baseline of one start."""
        return cls(
            cell=recording.cell,
            fingerprint=recording.fingerprint,
            starts=(stored_form(recording.start),),
            gates=dict(recording.gates),
            created=recording.start.recorded_at,
            reason=recording.reason,
            tool=recording.tool,
        )


def encode(baseline: Baseline) -> str:
    """The text of a baseline file; equal baselines give equal bytes."""
    return render(
        {
            "cell": baseline.cell,
            "created": baseline.created,
            "fingerprint": fingerprint_document(baseline.fingerprint),
            "gates": {metric: asdict(gate) for metric, gate in baseline.gates.items()},
            "reason": baseline.reason,
            "schema": baseline.schema,
            "starts": [start_document(start) for start in baseline.starts],
            "tool": baseline.tool,
        }
    )


def decode(text: str, *, source: str, schema: Mapping[str, Any]) -> Baseline:
    """Inverse of `encode` for text that nobody vouches for; BaselineError begins with `source`."""
    document = parse(text, source=source)
    _check_version(document, source=source)
    validate(document, schema, source=source)
    for index, start in enumerate(document["starts"]):
        _check_columns(start, source=f"{source}: $.starts[{index}]")
    return Baseline(
        cell=document["cell"],
        fingerprint=read_fingerprint(document["fingerprint"]),
        starts=tuple(read_start(start) for start in document["starts"]),
        gates={metric: Gate(**gate) for metric, gate in document["gates"].items()},
        created=document["created"],
        reason=document["reason"],
        tool=document["tool"],
    )


def _check_version(document: Any, *, source: str) -> None:
    version = document.get("schema") if isinstance(document, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BaselineError(
            f"{source}: its format is version {version}, this tool reads up to "
            f"{SCHEMA_VERSION}: update pytest-moeperf"
        )


def _check_columns(start: Mapping[str, Any], *, source: str) -> None:
    # JSON Schema cannot say that lists are of equal length.
    repeats = start["repeats"]
    expected = len(repeats["seeds"])
    for metric, column in repeats["values"].items():
        if len(column) != expected:
            raise BaselineError(
                f"{source}.repeats.values.{metric}: {len(column)} values for {expected} seeds"
            )
