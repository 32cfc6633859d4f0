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
        """Of it, what other cells took on the servers that one was in doubt for."""
        self._no_arm: dict[ServerSpec, str] = {}
        """Why there is no A/B for a spec: the old engine failed with it."""
        self._waiting: list[OpenCell] = []

    def begin(self, cell: MeasuredCell, suite: str, metrics: Sequence[str]) -> OpenCell:
        """Judge a valid cell by its baseline and the start that it was measured on."""
        keys = tuple(dict.fromkeys(metrics))
        named = replace(cell.result, cell=f"{suite}/{cell.result.cell}")
        case = OpenCell(
            cell,
            suite,
            keys,
            self._references.of(named, keys),
            dict(zip(keys, self.night.take(len(keys)), strict=True)),
            {key: self._policy(cell, key) for key in keys},
            pairs=self._can_pair(cell),
        )
        start = cell.result.start
        case.cost_s = (start.startup_s if start is not None else None) or 0.0
        case.admit(self.night)
        case.judge(keys)
        self._look_again(case)
        return case

    def wants(self, case: OpenCell) -> bool:
        """Whether it would take further starts now."""
        return case.need is not None and not self._refusal(case, case.need)

    def wait(self, case: OpenCell) -> None:
        """Measure the case on the further starts of others, until it is settled or dropped."""
        self._waiting.append(case)

    def drop(self, case: OpenCell) -> None:
        """Measure the case no further."""
        if case in self._waiting:
            self._waiting.remove(case)

    def settle(self, case: OpenCell) -> CellResult:
        """Measure on until every verdict is final.

        Raises:
            MoeperfError: A server failed under the cell's load, here or where another cell took it.
        """
        self.drop(case)
        if case.cell.failure is not None:
            raise case.cell.failure
        case.admit(self.night)
        self._sample(case)
        if failed := self._no_arm.get(case.cell.spec):
            missed = [key for key in case.metrics if case.misses_pairs(key)]
            case.remark(missed, f"no A/B, because {self._limits.against} failed: {failed}")
        for verdict in case.verdicts.values():
            self.night.note(verdict.outcome is Outcome.REGRESSED)
        return case.result

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

    def _look_again(self, case: OpenCell) -> None:
        """Measure what is doubtful anew on the same server, as often as patience allows.

        Only where neighbours may slow the machine, or where no other server can be had.
        """
        noisy = case.hardware == CPU or not self._run.restartable(case.cell)
        if not noisy or not gate.doubtful(case.result):
            return
        for look in self._run.patience.looks(self._run.announce):
            before = case.cell.result
            if not self._run.look_again(case.cell):
                return
            if case.cell.result.invalid:
                case.cell.result = before
                continue
            case.look(look)
            if not gate.doubtful(case.result):
                return

    def _sample(self, case: OpenCell) -> None:
        """Buy what the open metrics need, until none is open or a limit is reached."""
        try:
            while need := case.need:
                if refusal := self._refusal(case, need):
                    case.end(refusal)
                    return
                before_s, aside_s = self._budget.left_s, self._aside_s
                with self._budget.spend():
                    self._buy_pair(case) if need is Need.PAIR else self._buy_start(case)
                alone_s = before_s - self._budget.left_s - (self._aside_s - aside_s)
                case.cost_s = max(case.cost_s, alone_s / SERVERS[need])
                case.judge(case.open)
        finally:
            self._end_old(case)

    def _refusal(self, case: OpenCell, need: Need) -> str:
        """Why no more can be bought; empty if it can, up to where the verdict may change."""
        limits, lacking = self._limits, case.lacking(need)
        pairs = f"A/B of {lacking} more pairs of starts"
        what = pairs if need is Need.PAIR else "further start"
        if need is Need.PAIR and (failed := self._no_arm.get(case.cell.spec)):
            return f"no {what}, because {limits.against} failed: {failed}"
        if case.cell.invalid > MOST_INVALID:
            return f"{case.cell.invalid} further starts were invalid"
        if self._has_its_starts(case, need):
            return f"no {what} within --max-starts {limits.max_starts}"
        if self._budget.left_s <= SERVERS[need] * lacking * case.cost_s:
            return f"no {what} within --max-minutes {limits.max_minutes:g}"
        return ""

    def _has_its_starts(self, case: OpenCell, need: Need) -> bool:
        """Whether --max-starts leaves fewer than it takes for another verdict."""
        most = self._limits.max_starts
        return most is not None and case.cell.used + case.lacking(need) > most

    def _beside(self, case: OpenCell) -> list[OpenCell]:
        """The cases that wait for starts of the same server."""
        return [other for other in self._waiting if other.cell.spec == case.cell.spec]

    def _others(self, case: OpenCell, need: Need) -> list[MeasuredCell]:
        """Cells to measure on the same servers, as far as the case leaves time for them."""
        left_s = self._budget.left_s / SERVERS[need] - case.lacking(need) * case.cost_s
        chosen = [case.cell]
        for other in self._beside(case):
            cell = other.cell
            able = other.need is need and not cell.alone and not self._has_its_starts(other, need)
            if able and cell not in chosen and cell.cost_s <= left_s:
                left_s -= cell.cost_s
                chosen.append(cell)
        return chosen[1:]

    def _judge_others(self, case: OpenCell, measured: Collection[MeasuredCell]) -> None:
        """Let those that it is enough for take no more starts."""
        for other in self._beside(case):
            if other.cell in measured:
                other.judge(other.open)

    def _measure(self, case: OpenCell, spec: ServerSpec, others: Sequence[MeasuredCell]) -> _Arm:
        """Measure the case on a fresh server, and the others as long as that bears them."""
        arm = {case.cell: self._run.measure_anew(case.cell, spec)}
        began_s = self._budget.clock()
        for cell in () if arm[case.cell].invalid else others:
            fresh = None if cell.alone else self._run.measure_also(cell, spec)
            if fresh is not None:
                arm[cell] = fresh
        self._aside_s += self._budget.clock() - began_s
        return arm

    def _buy_start(self, case: OpenCell) -> None:
        number = len(case.cell.result.starts) + 1
        most = max(number, self._at_most(case.most(Need.START)))
        others = self._others(case, Need.START)
        with self._run.stage(f"start {number} of up to {most} for {_names(case, others)}"):
            arm = self._measure(case, case.cell.spec, others)
        for cell, fresh in arm.items():
            cell.add_start(fresh, shared=cell is not case.cell)
        self._judge_others(case, arm)

    def _buy_pair(self, case: OpenCell) -> None:
        """Start and measure both engines: in the order A B, B A, A B and so on."""
        number = len(case.cell.result.new) + 1
        most = max(number, case.most(Need.PAIR))
        others = self._others(case, Need.PAIR)
        stage = f"A/B pair {number} of up to {most} for {_names(case, others)}"
        if number % 2:
            old = self._old_arm(case, others, stage)
            new = {} if old is None else self._new_arm(case, others, stage)
        else:
            new = self._new_arm(case, others, stage)
            old = self._old_arm(case, others, stage)
        for cell, fresh in new.items():
            shared = cell is not case.cell
            if old is not None and cell in old:
                cell.add_pair(old[cell], fresh, shared=shared)
            elif not shared:
                # A start without its counterpart is one like those before the A/B.
                cell.add_start(fresh)
        self._judge_others(case, new)

    def _new_arm(self, case: OpenCell, others: Sequence[MeasuredCell], stage: str) -> _Arm:
        self._end_old(case)
        with self._run.stage(f"{stage}, new engine"):
            return self._measure(case, case.cell.spec, others)

    def _old_arm(self, case: OpenCell, others: Sequence[MeasuredCell], stage: str) -> _Arm | None:
        """None where the old engine cannot serve this; then the case goes on without it."""
        self._run.end(case.cell.spec)
        try:
            with self._run.stage(f"{stage}, old engine"):
                case.old_spec = case.cell.spec.on(self._run.engine(self._limits.against or ""))
                return self._measure(case, case.old_spec, others)
        except MoeperfError as error:
            self._no_arm[case.cell.spec] = str(error).partition("\n")[0]
            case.pairs = False
            for other in self._beside(case):
                other.pairs = False
                other.judge(other.open)
            return None

    def _end_old(self, case: OpenCell) -> None:
        """Leave only the tested engine's server to the tests to come."""
        if case.old_spec is not None and case.old_spec != case.cell.spec:
            self._run.end(case.old_spec)

    def _at_most(self, count: int) -> int:
        return count if self._limits.max_starts is None else min(count, self._limits.max_starts)


def _names(case: OpenCell, others: Sequence[MeasuredCell]) -> str:
    more = f" and {count(len(others), 'more cell')}" if others else ""
    return f"{case.suite}{more}"
