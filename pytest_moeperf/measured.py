"""A cell that was measured, and what further starts of its server gave to it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_moeperf.measurement import CellMeasurement
    from pytest_moeperf.records import CellResult, ServerSpec

__all__ = ["MeasuredCell"]


@dataclass(slots=True, eq=False)
class MeasuredCell:
    """A cell that was measured, and can be measured on."""

    result: CellResult
    spec: ServerSpec
    measurement: CellMeasurement | None = None
    """None where no load was played."""
    confirmed: bool = False
    """It was looked at a second time."""
    judged: bool = False
    """A test has asked for its verdict, which fresh starts can no longer change."""
    company: tuple[MeasuredCell, ...] = field(default=(), repr=False)
    """The cells that took turns with it on its server."""

    def by_turn(self, metric: str) -> dict[int, float | None]:
        """The metric in every repeat that was valid, by the turn in which it was played."""
        if self.measurement is None:
            return dict(enumerate(self.result.values(metric)))
        played = self.measurement.by_turn
        return {turn: sample.values.get(metric) for turn, sample in played.items()}

    @property
    def companions(self) -> list[MeasuredCell]:
        """Cells for a fresh server to measure as well, as their verdicts may take it too.

        Starting a server takes longer than a short load on it, so they are as many as can be
        played in that time.
        """
        start = self.result.start
        left_s = (start.startup_s if start is not None else None) or 0.0
        chosen = []
        for cell in self.company:
            if cell.judged or cell.measurement is None or cell.result.invalid:
                continue
            left_s -= cell.measurement.played_s
            if left_s < 0:
                break
            chosen.append(cell)
        return chosen

    def play_again(self, result: CellResult) -> None:
        """Take other repeats of the first start; what was bought stays."""
        before = self.result
        self.result = replace(
            result,
            bought=before.bought,
            against=before.against,
            old=before.old,
            new=before.new,
        )

    def add_start(self, fresh: CellResult) -> bool:
        """Take a further start of the engine under test; False where it was invalid."""
        before, start = self.result, fresh.start
        if valid := start is not None and not fresh.invalid:
            before = replace(before, bought=(*before.bought, start))
        self.result = replace(before, discarded=before.discarded + fresh.discarded)
        return valid

    def add_pair(self, old: CellResult, new: CellResult) -> bool:
        """Take a start of the old and one of the new engine; False where either was invalid."""
        before = self.result
        valid = not (old.invalid or new.invalid or old.start is None or new.start is None)
        if old.start is not None and new.start is not None and valid:
            before = replace(before, old=(*before.old, old.start), new=(*before.new, new.start))
        self.result = replace(
            before, against=old.engine, discarded=before.discarded + old.discarded + new.discarded
        )
        return valid
