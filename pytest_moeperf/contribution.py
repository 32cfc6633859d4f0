"""What tests add to the report of a session, from whatever process they ran in."""

from __future__ import annotations

import base64
import pickle
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_moeperf.records import Outcome
from pytest_moeperf.timeline import TimeSpent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_moeperf.records import CellResult, EngineInstall

__all__ = [
    "CELLS",
    "Collected",
    "Contribution",
    "expected",
    "first_line",
    "joined",
    "packed",
    "unpacked",
]

CELLS = pytest.StashKey["tuple[CellResult, ...]"]()
"""What a test has measured so far."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one test adds to the report of the session, from whatever process it ran in."""

    cells: tuple[CellResult, ...]
    engines: tuple[EngineInstall, ...]
    hardware: str
    machine: tuple[tuple[str, str], ...]
    unmeasured: str | None = None
    """Why a test that should have judged failed before any verdict."""
    note: str | None = None
    """What else is to be told of it."""


@dataclass(slots=True)
class Collected:
    """The contributions of all tests so far."""

    cells: list[CellResult] = field(default_factory=list)
    engines: dict[EngineInstall, None] = field(default_factory=dict)
    hardware: str = ""
    machine: dict[str, str] = field(default_factory=dict)
    unmeasured: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    spent: TimeSpent = field(default_factory=TimeSpent)
    processes: int = 0
    """Those that measured, side by side under xdist."""
    failed: bool = False
    """Something could not be written."""

    def add(self, contribution: Contribution) -> None:
        """Take in what one test added."""
        self.cells.extend(contribution.cells)
        self.engines.update(dict.fromkeys(contribution.engines))
        self.hardware = contribution.hardware
        self.machine.update(contribution.machine)
        if contribution.unmeasured is not None:
            self.unmeasured.append(contribution.unmeasured)
        if contribution.note is not None:
            self.notes.append(contribution.note)

    def plus(self, contributions: Iterable[Contribution]) -> Collected:
        """These and others, which are not kept."""
        both = replace(
            self,
            cells=[*self.cells],
            engines={**self.engines},
            machine={**self.machine},
            unmeasured=[*self.unmeasured],
            notes=[*self.notes],
        )
        for contribution in contributions:
            both.add(contribution)
        return both

    def add_time(self, spent: TimeSpent) -> None:
        """Count what one process spent, unless it only stood by."""
        if spent != TimeSpent():
            self.spent += spent
            self.processes += 1

    @property
    def told(self) -> dict[str, Any]:
        """What an xdist worker tells at its end, beside the reports of its tests."""
        return {
            "notes": self.notes,
            "failed": self.failed,
            "spent": [asdict(self.spent)] * self.processes,
        }

    def hear(self, told: Mapping[str, Any]) -> None:
        """Take over what a worker has told."""
        self.notes.extend(told["notes"])
        for spent in told["spent"]:
            self.add_time(TimeSpent(**spent))
        self.failed |= told["failed"]


def expected(cell: CellResult, reason: str) -> CellResult:
    """The cell of a test that was marked as expected to fail, and did; `reason` is the marker's."""
    verdicts = tuple(
        replace(
            verdict,
            outcome=Outcome.EXPECTED,
            reason=f"{verdict.reason}; expected{f': {reason}' if reason else ''}",
        )
        if verdict.outcome is Outcome.REGRESSED
        else verdict
        for verdict in cell.verdicts
    )
    return replace(cell, verdicts=verdicts)


def joined(
    kept: tuple[CellResult, ...], cell: CellResult
) -> tuple[tuple[CellResult, ...], CellResult]:
    """The other cells of a test, and this one with all that was said of it before."""
    same = [each for each in kept if (each.cell, each.engine) == (cell.cell, cell.engine)]
    said = tuple(verdict for each in same for verdict in each.verdicts)
    others = tuple(each for each in kept if each not in same)
    return others, replace(cell, verdicts=(*said, *cell.verdicts))


def first_line(failure: object) -> str:
    """The first line of what pytest tells of a failure: the message, where there is a traceback."""
    crash = getattr(failure, "reprcrash", None)
    if crash is not None:
        return str(crash.message).removeprefix("Failed: ").strip().partition("\n")[0]
    first, *more = str(failure).strip().splitlines() or [""]
    # Of a fixture that is missing pytest tells first where it was asked for.
    return next((line[1:].strip() for line in more if line.startswith("E ")), first)


def packed(contribution: Contribution) -> str:
    """As text, which xdist carries."""
    return base64.b85encode(pickle.dumps(contribution)).decode()


def unpacked(text: str) -> Contribution:
    """Inverse of `packed`."""
    contribution: Contribution = pickle.loads(base64.b85decode(text))  # noqa: S301 - by our own worker
    return contribution
