"""A cell that was measured, and what further starts of its server gave to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_moeperf.errors import MoeperfError
    from pytest_moeperf.measurement import CellMeasurement
    from pytest_moeperf.records import CellResult, ServerSpec, StartRecord

__all__ = ["MeasuredCell", "confirmable"]


@dataclass(slots=True, eq=False)
class MeasuredCell:
    """A cell that was measured, and can be measured on."""

    result: CellResult
    spec: ServerSpec
    measurement: CellMeasurement | None = None
    """None where no load was played."""
    confirmed: bool = False
    """It was looked at a second time."""
    alone: bool = False
    """It is measured no more on servers that another cell takes: its load ended one, or was invalid
    there."""
    failure: MoeperfError | None = None
    """How the engine under test failed under its load on a server that another cell took."""
    invalid: int = 0
    """Further starts of its own that could not be used."""

    def by_turn(self, metric: str) -> dict[int, float | None]:
        """The metric in every repeat that was valid, by the turn in which it was played."""
        if self.measurement is None:
            return dict(enumerate(self.result.values(metric)))
        played = self.measurement.by_turn
        return {turn: sample.values.get(metric) for turn, sample in played.items()}

    @property
    def used(self) -> int:
        """Starts of the engine under test so far."""
        return len(self.result.starts) + len(self.result.new) + self.invalid

    @property
    def cost_s(self) -> float:
        """About how long it takes on a further server that runs already."""
        return 0.0 if self.measurement is None else self.measurement.cost_s

    @property
    def on_pair(self) -> bool:
        """Whether its repeats are those of a start of an A/B."""
        if self.measurement is None:
            return False
        played_on = self.measurement.server.start_id
        return any(start.start_id == played_on for start in self.result.new)

    def failed_under(self, error: MoeperfError, spec: ServerSpec) -> None:
        """Remember that a server that another cell took failed under the load of this one."""
        self.alone, self.failure = True, error if spec == self.spec else None

    def take_second_look(self, played: CellMeasurement, result: CellResult) -> None:
        """Take what was played to confirm a doubtful verdict."""
        self.measurement, self.confirmed = played, True
        self.replace_repeats(result)

    def replace_repeats(self, result: CellResult) -> None:
        """Take other repeats in place of those of the same start; further starts stay."""
        before, start = self.result, result.start
        later = (*before.further, *before.new)
        if start is None or all(each.start_id != start.start_id for each in later):
            self.result = replace(
                result,
                further=before.further,
                against=before.against,
                old=before.old,
                new=before.new,
            )
        elif result.invalid:
            self.result = replace(before, invalid=True, discarded=result.discarded)
        else:
            further, new = (_with(start, starts) for starts in (before.further, before.new))
            self.result = replace(before, further=further, new=new)

    def add_start(self, fresh: CellResult, *, shared: bool = False) -> None:
        """Take a further start of the engine under test; `shared`: one that another cell took."""
        before = self.result
        if fresh.invalid or fresh.start is None:
            self._note_invalid(shared=shared)
        else:
            before = replace(before, further=(*before.further, fresh.start))
        self.result = replace(before, discarded=before.discarded + fresh.discarded)

    def add_pair(self, old: CellResult, new: CellResult, *, shared: bool = False) -> None:
        """Take a start of the old and one of the new engine; of an invalid one neither counts."""
        before = self.result
        if old.invalid or new.invalid or old.start is None or new.start is None:
            self._note_invalid(shared=shared)
        else:
            before = replace(before, old=(*before.old, old.start), new=(*before.new, new.start))
        self.result = replace(
            before, against=old.engine, discarded=before.discarded + old.discarded + new.discarded
        )

    def _note_invalid(self, *, shared: bool) -> None:
        if shared:
            self.alone = True
        else:
            self.invalid += 1


def confirmable(cells: Sequence[MeasuredCell]) -> bool:
    """Whether a second look may add to these: each was played, and not all were looked at twice."""
    played = [cell.measurement for cell in cells if cell.measurement is not None]
    exhausted = any(each.exhausted for each in played)
    return len(played) == len(cells) and not exhausted and not all(cell.confirmed for cell in cells)


def _with(start: StartRecord, starts: tuple[StartRecord, ...]) -> tuple[StartRecord, ...]:
    """The starts with `start` in the place of the one with its id."""
    return tuple(start if each.start_id == start.start_id else each for each in starts)
