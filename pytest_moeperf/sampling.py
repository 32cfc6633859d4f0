"""Judges cells, and measures on fresh servers where that can change a verdict.

A clean cell ends with the one start that it was measured on. A doubtful one is first looked at
again, where the machine may be to blame; then it gets further starts; then, with an old engine at
hand, starts of the old and the new one in turns. Every such start also serves the other cells of
its server that wait for one. What the limits leave open is INCONCLUSIVE.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_moeperf import gate
from pytest_moeperf.errors import MoeperfError
from pytest_moeperf.judge import Need, Night
from pytest_moeperf.judge.sentence import count
from pytest_moeperf.opencell import MOST_INVALID, OpenCell
from pytest_moeperf.policy import CPU, policy_for
from pytest_moeperf.records import CellResult, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from pytest_moeperf.measured import MeasuredCell
    from pytest_moeperf.policy import Policy
    from pytest_moeperf.records import ServerSpec
    from pytest_moeperf.references import References
    from pytest_moeperf.run import Run

__all__ = ["Budget", "Limits", "Sampler"]

SERVERS: Mapping[Need, int] = {Need.START: 1, Need.PAIR: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a session may spend on servers beyond the first one of each spec."""

    max_starts: int | None = None
    """Of the engine under test, a cell, the first one included; None: what the verdict needs."""
    max_minutes: float = 60.0
    against: str | None = None
    """The old engine as typed; None: there is no A/B."""
    release: bool = False
    """Tighter tolerances, for more starts."""


@dataclass(slots=True)
class Budget:
    """A session's time for further starts."""

    left_s: float
    clock: Callable[[], float] = time.monotonic

    @contextmanager
    def spend(self) -> Iterator[None]:
        """Take as long as the block takes."""
        began_s = self.clock()
        try:
            yield
        finally:
            self.left_s -= self.clock() - began_s


_Arm = dict["MeasuredCell", CellResult]
"""What one fresh server was measured with: the cell that it was started for, and others."""


class Sampler:
    """Judges every cell of a session; all gates share one night and one budget."""

    def __init__(self, run: Run, references: References, limits: Limits, *, gates: int) -> None:
        self.night = Night(max(gates, 1))
        self._run = run
        self._references = references
        self._limits = limits
        self._budget = Budget(60 * limits.max_minutes)
        self._aside_s = 0.0
        """Seconds of the budget that cells sharing a start have used."""
        self._no_arm: dict[ServerSpec, str] = {}
        """Why there is no A/B for a spec: the old engine failed with it."""
        self._waiting: list[OpenCell] = []

    def begin(self, cell: MeasuredCell, suite: str, metrics: Sequence[str]) -> OpenCell:
        """Judge a valid cell by its baseline and the start that it was measured on."""
        keys = tuple(dict.fromkeys(metrics))
        named = replace(cell.result, cell=f"{suite}/{cell.result.cell}")
        open_cell = OpenCell(
            cell,
            suite,
            keys,
            self._references.of(named, keys),
            dict(zip(keys, self.night.take(len(keys)), strict=True)),
            {key: self._policy(cell, key) for key in keys},
            pairs=self._can_pair(cell),
        )
        start = cell.result.start
        open_cell.cost_s = (start.startup_s if start is not None else None) or 0.0
        open_cell.admit(self.night)
        open_cell.judge(keys)
        self._look_again(open_cell)
        return open_cell

    def wants(self, open_cell: OpenCell) -> bool:
        """Whether it would take further starts now."""
        return open_cell.need is not None and not self._refusal(open_cell, open_cell.need)

    def wait(self, open_cell: OpenCell) -> None:
        """Measure the cell on the further starts of others, until it is settled or dropped."""
        self._waiting.append(open_cell)

    def drop(self, open_cell: OpenCell) -> None:
        """Measure the cell no further."""
        if open_cell in self._waiting:
            self._waiting.remove(open_cell)

    def settle(self, open_cell: OpenCell) -> CellResult:
        """Measure on until every verdict is final.

        Raises:
            MoeperfError: A server failed under the cell's load, here or where another cell took it.
        """
        self.drop(open_cell)
        if open_cell.cell.failure is not None:
            raise open_cell.cell.failure
        open_cell.admit(self.night)
        self._sample(open_cell)
        if failed := self._no_arm.get(open_cell.cell.spec):
            missed = [key for key in open_cell.metrics if open_cell.misses_pairs(key)]
            open_cell.remark(missed, f"no A/B, because {self._limits.against} failed: {failed}")
        for verdict in open_cell.verdicts.values():
            self.night.note(verdict.outcome is Outcome.REGRESSED)
        return open_cell.result

    def _policy(self, cell: MeasuredCell, key: str) -> Policy:
        fingerprint = cell.result.fingerprint
        hardware = "" if fingerprint is None else fingerprint.hardware
        policy = policy_for(hardware, key, release=self._limits.release)
        # An attached server has one start, and nobody else will blame it.
        return policy if self._run.restartable(cell) else replace(policy, unpaired_starts=1)

    def _can_pair(self, cell: MeasuredCell) -> bool:
        return (
            self._limits.against is not None
            and cell.spec not in self._no_arm
            and self._run.restartable(cell)
        )

    def _look_again(self, open_cell: OpenCell) -> None:
        """Measure what is doubtful anew on the same server, as often as patience allows.

        Only where neighbours may slow the machine, or where no other server can be had.
        """
        noisy = open_cell.hardware == CPU or not self._run.restartable(open_cell.cell)
        if not noisy or not gate.doubtful(open_cell.result):
            return
        for look in self._run.patience.looks(self._run.announce):
            before = open_cell.cell.result
            if not self._run.look_again(open_cell.cell):
                return
            if open_cell.cell.result.invalid:
                open_cell.cell.result = before
                continue
            open_cell.judge_again(look=look)
            if not gate.doubtful(open_cell.result):
                return

    def _sample(self, open_cell: OpenCell) -> None:
        """Buy what the open metrics need, until none is open or a limit is reached."""
        try:
            while need := open_cell.need:
                if refusal := self._refusal(open_cell, need):
                    open_cell.end(refusal)
                    return
                before_s, aside_s = self._budget.left_s, self._aside_s
                with self._budget.spend():
                    self._buy_pair(open_cell) if need is Need.PAIR else self._buy_start(open_cell)
                alone_s = before_s - self._budget.left_s - (self._aside_s - aside_s)
                open_cell.cost_s = max(open_cell.cost_s, alone_s / SERVERS[need])
                open_cell.judge(open_cell.open)
        finally:
            self._end_old(open_cell)

    def _refusal(self, open_cell: OpenCell, need: Need) -> str:
        """Why too few starts are left to change a verdict; empty where there are enough."""
        limits, lacking = self._limits, open_cell.lacking(need)
        pairs = f"A/B of {lacking} more pairs of starts"
        what = pairs if need is Need.PAIR else "further start"
        if need is Need.PAIR and (failed := self._no_arm.get(open_cell.cell.spec)):
            return f"no {what}, because {limits.against} failed: {failed}"
        if open_cell.cell.invalid > MOST_INVALID:
            return f"{open_cell.cell.invalid} further starts were invalid"
        if self._has_its_starts(open_cell, need):
            return f"no {what} within --max-starts {limits.max_starts}"
        if self._budget.left_s <= SERVERS[need] * lacking * open_cell.cost_s:
            return f"no {what} within --max-minutes {limits.max_minutes:g}"
        return ""

    def _has_its_starts(self, open_cell: OpenCell, need: Need) -> bool:
        """Whether --max-starts leaves fewer than it takes for another verdict."""
        most = self._limits.max_starts
        return most is not None and open_cell.cell.used + open_cell.lacking(need) > most

    def _beside(self, open_cell: OpenCell) -> list[OpenCell]:
        """Those that wait for starts of the same server."""
        return [other for other in self._waiting if other.cell.spec == open_cell.cell.spec]

    def _others(self, open_cell: OpenCell, need: Need) -> list[MeasuredCell]:
        """Cells to measure on the same servers, as far as this one leaves time for them."""
        left_s = self._budget.left_s / SERVERS[need] - open_cell.lacking(need) * open_cell.cost_s
        chosen = [open_cell.cell]
        for other in self._beside(open_cell):
            cell = other.cell
            able = other.need is need and not cell.alone and not self._has_its_starts(other, need)
            if able and cell not in chosen and cell.cost_s <= left_s:
                left_s -= cell.cost_s
                chosen.append(cell)
        return chosen[1:]

    def _judge_others(self, open_cell: OpenCell, measured: Collection[MeasuredCell]) -> None:
        """Let those that it is enough for take no more starts."""
        for other in self._beside(open_cell):
            if other.cell in measured:
                other.judge(other.open)

    def _measure(
        self, open_cell: OpenCell, spec: ServerSpec, others: Sequence[MeasuredCell]
    ) -> _Arm:
        """Measure the cell on a fresh server, and the others as long as that bears them."""
        arm = {open_cell.cell: self._run.measure_anew(open_cell.cell, spec)}
        began_s = self._budget.clock()
        for cell in () if arm[open_cell.cell].invalid else others:
            fresh = None if cell.alone else self._run.measure_also(cell, spec)
            if fresh is not None:
                arm[cell] = fresh
        self._aside_s += self._budget.clock() - began_s
        return arm

    def _buy_start(self, open_cell: OpenCell) -> None:
        number = len(open_cell.cell.result.starts) + 1
        most = max(number, self._at_most(open_cell.most(Need.START)))
        others = self._others(open_cell, Need.START)
        with self._run.stage(f"start {number} of up to {most} for {_names(open_cell, others)}"):
            arm = self._measure(open_cell, open_cell.cell.spec, others)
        for cell, fresh in arm.items():
            cell.add_start(fresh, shared=cell is not open_cell.cell)
        self._judge_others(open_cell, arm)

    def _buy_pair(self, open_cell: OpenCell) -> None:
        """Start and measure both engines: in the order A B, B A, A B and so on."""
        number = len(open_cell.cell.result.new) + 1
        most = max(number, open_cell.most(Need.PAIR))
        others = self._others(open_cell, Need.PAIR)
        stage = f"A/B pair {number} of up to {most} for {_names(open_cell, others)}"
        if number % 2:
            old = self._old_arm(open_cell, others, stage)
            new = {} if old is None else self._new_arm(open_cell, others, stage)
        else:
            new = self._new_arm(open_cell, others, stage)
            old = self._old_arm(open_cell, others, stage)
        for cell, fresh in new.items():
            shared = cell is not open_cell.cell
            if old is not None and cell in old:
                cell.add_pair(old[cell], fresh, shared=shared)
            elif not shared:
                # A start without its counterpart is one like those before the A/B.
                cell.add_start(fresh)
        self._judge_others(open_cell, new)

    def _new_arm(self, open_cell: OpenCell, others: Sequence[MeasuredCell], stage: str) -> _Arm:
        self._end_old(open_cell)
        with self._run.stage(f"{stage}, new engine"):
            return self._measure(open_cell, open_cell.cell.spec, others)

    def _old_arm(
        self, open_cell: OpenCell, others: Sequence[MeasuredCell], stage: str
    ) -> _Arm | None:
        """None where the old engine cannot serve this; then the cell goes on without it."""
        self._run.end(open_cell.cell.spec)
        try:
            with self._run.stage(f"{stage}, old engine"):
                open_cell.old_spec = open_cell.cell.spec.on(
                    self._run.resolver.engine(self._limits.against or "")
                )
                return self._measure(open_cell, open_cell.old_spec, others)
        except MoeperfError as error:
            self._no_arm[open_cell.cell.spec] = str(error).partition("\n")[0]
            open_cell.pairs = False
            for other in self._beside(open_cell):
                other.pairs = False
                other.judge(other.open)
            return None

    def _end_old(self, open_cell: OpenCell) -> None:
        """Leave only the tested engine's server to the tests to come."""
        if open_cell.old_spec is not None and open_cell.old_spec != open_cell.cell.spec:
            self._run.end(open_cell.old_spec)

    def _at_most(self, count: int) -> int:
        return count if self._limits.max_starts is None else min(count, self._limits.max_starts)


def _names(open_cell: OpenCell, others: Sequence[MeasuredCell]) -> str:
    more = f" and {count(len(others), 'more cell')}" if others else ""
    return f"{open_cell.suite}{more}"
