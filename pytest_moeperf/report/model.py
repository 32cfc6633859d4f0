"""What every report shows: one session with its cells."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_moeperf.records import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_moeperf.records import CellResult, EngineInstall

__all__ = ["BY_URGENCY", "SessionReport"]

BY_URGENCY = (
    Outcome.REGRESSED,
    Outcome.INVALID,
    Outcome.UNSTABLE,
    Outcome.UNEXPECTED_PASS,
    Outcome.INCONCLUSIVE,
    Outcome.NO_BASELINE,
    Outcome.ENV_DRIFT,
    Outcome.INCOMPARABLE,
    Outcome.EXPECTED,
    Outcome.IMPROVED,
    Outcome.RECORDED,
    Outcome.PASS,
)
"""What a reader wants to see first, first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReport:
    """One run of the suites."""

    tool_version: str
    started_at: str
    """UTC, ISO 8601."""
    duration_s: float
    hardware: str
    """Hardware class that was measured on, e.g. `cpu`."""
    engines: tuple[EngineInstall, ...]
    machine: Mapping[str, str] = field(default_factory=dict)
    """Facts about the machine in words, such as CPU model, memory and kernel."""
    cells: tuple[CellResult, ...] = ()
    """In the order of measurement."""
    notes: tuple[str, ...] = ()
    """What else a reader of the run must know."""

    @property
    def outcomes(self) -> Mapping[Outcome, int]:
        """How many verdicts said what, most urgent first, without zeros."""
        counts = Counter(verdict.outcome for cell in self.cells for verdict in cell.verdicts)
        return {outcome: counts[outcome] for outcome in BY_URGENCY if counts[outcome]}

    @property
    def suites(self) -> Mapping[str, Sequence[CellResult]]:
        """The cells by suite, both in the order of measurement."""
        suites: dict[str, list[CellResult]] = {}
        for cell in self.cells:
            suites.setdefault(cell.cell.partition("/")[0], []).append(cell)
        return suites
