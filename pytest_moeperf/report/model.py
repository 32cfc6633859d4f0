"""What every report shows: one session with its cells."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_moeperf.records import Outcome
from pytest_moeperf.timeline import TimeSpent
from pytest_moeperf.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_moeperf.records import CellResult, EngineInstall

__all__ = ["BY_URGENCY", "SessionReport", "time_line"]

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
    unmeasured: tuple[str, ...] = ()
    """Tests that should have judged and failed before any verdict, each with the reason."""
    notes: tuple[str, ...] = ()
    """What else a reader of the run must know."""
    options: tuple[str, ...] | None = None
    """Those that decided what was measured and how it was judged, word by word as typed; None
    where a stored run does not tell."""
    release: bool = False
    """Judged before a release: an open question has failed its test."""
    spent: TimeSpent | None = field(default_factory=TimeSpent)
    """None where it is not known yet."""
    processes: int = 1
    """So many measured side by side; their times are added up."""
    finished: bool = True
    """False where tests were still to run when this was told."""

    @property
    def phases(self) -> Mapping[str, float]:
        """Where the time went, in seconds, all phases together the session; empty if not known."""
        if self.spent is None:
            return {}
        told = {
            "starting": self.spent.starting_s,
            "warm-up": self.spent.warmup_s,
            "measuring": self.spent.measuring_s,
            "stopping": self.spent.stopping_s,
            "waiting": self.spent.waiting_s,
        }
        rest = max(self.processes, 1) * self.duration_s - sum(told.values())
        return {**told, "other": max(0.0, rest)}

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is to be told beside the verdicts, a line each."""
        lost = (f"failed without a verdict: {each}" for each in self.unmeasured)
        return (*lost, *self.notes)

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


def time_line(report: SessionReport) -> str:
    """Where the time went: `time: 312 s = 41 % starting (2 servers, 2 specs), …`."""
    spent = report.spent
    if spent is None:
        return f"time: {report.duration_s:.0f} s until this was written"
    total_s = sum(report.phases.values())
    started = f"{counted(spent.starts, 'server')}, {counted(spent.specs, 'spec')}"
    shares = ", ".join(
        f"{100 * seconds / total_s if total_s else 0:.0f} % {name}"
        + (f" ({started})" if name == "starting" else "")
        for name, seconds in report.phases.items()
    )
    of = f" of {report.processes} processes" if report.processes > 1 else ""
    return f"time{of}: {total_s:.0f} s = {shares}"
