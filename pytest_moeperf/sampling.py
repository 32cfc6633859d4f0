"""Judges cells, and measures on fresh servers where that can change a verdict.

A clean cell ends with the one start that it was measured on. A doubtful one is first looked at
again, where the machine may be to blame; then it gets further starts; then, with an old engine at
hand, starts of the old and the new one in turns. What the limits leave open is INCONCLUSIVE.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_moeperf import gate
from pytest_moeperf.errors import MoeperfError
from pytest_moeperf.judge import SCREENING_STARTS, Need, Night
from pytest_moeperf.policy import CPU, policy_for
from pytest_moeperf.records import CellResult, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_moeperf.judge import Assessment
    from pytest_moeperf.measured import MeasuredCell
    from pytest_moeperf.policy import Policy
    from pytest_moeperf.records import ServerSpec
    from pytest_moeperf.references import Reference, References
    from pytest_moeperf.run import Run

__all__ = ["Budget", "Limits", "Sampler"]

UNPAIRED = gate.DOUBTFUL | {Outcome.NO_BASELINE}
"""Outcomes that an A/B might have changed."""

SERVERS: Mapping[Need, int] = {Need.START: 1, Need.PAIR: 2}

MOST_INVALID = 2
"""So many starts of a cell may be invalid, or lack a metric; with one more the buying ends."""


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
"""What one fresh server was measured with: a doubtful cell and its companions."""


@dataclass(slots=True)
class _Case:
    """A cell while it is judged: what was measured so far, and what its gates still need."""

    cell: MeasuredCell
    suite: str
    metrics: tuple[str, ...]
    reference: Reference
    p_limits: Mapping[str, float]
    """By metric."""
    policies: Mapping[str, Policy]
    """By metric."""
    pairs: bool
    """Whether an old engine is at hand."""
    old_spec: ServerSpec | None = None
    """The server with the old engine, once one was started."""
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    needs: dict[str, Need | None] = field(default_factory=dict)
    cost_s: float = 0.0
    """What a further start of this cell alone takes, by the longest one so far."""

    @property
    def result(self) -> CellResult:
        """The cell under its name, with the verdicts so far."""
        measured = self.cell.result
        verdicts = tuple(self.verdicts[key] for key in self.metrics)
        return replace(measured, cell=f"{self.suite}/{measured.cell}", verdicts=verdicts)

    @property
    def need(self) -> Need | None:
        """What could change a verdict; a start, which is cheaper, before a pair."""
        needs = set(self.needs.values())
        return next((need for need in (Need.START, Need.PAIR) if need in needs), None)

    @property
    def open(self) -> tuple[str, ...]:
        """The metrics that still need something; what is decided stays so."""
        return tuple(key for key in self.metrics if self.needs[key] is not None)

    @property
    def hardware(self) -> str:
        fingerprint = self.cell.result.fingerprint
        return "" if fingerprint is None else fingerprint.hardware

    def judge(self, metrics: Sequence[str]) -> None:
        """Judge these metrics by all that was measured so far."""
        for key in metrics:
            made = self._assess(key, last=False)
            self.verdicts[key], self.needs[key] = made.verdict, made.need
            if made.need and (missing := self._missing(key, made.need)):
                self.verdicts[key] = self._assess(key, last=True).verdict
                self.needs[key] = None
                self.remark([key], missing)

    def _assess(self, key: str, *, last: bool) -> Assessment:
        return gate.judge_metric(
            self.cell.result,
            key,
            stored=self.reference.stored,
            hardware=self.hardware,
            p_limit=self.p_limits[key],
            policy=self.policies[key],
            prior=self.reference.priors[key],
            can_pair=self.pairs,
            last=last,
            date=self.reference.date,
        )

    def _missing(self, key: str, need: Need) -> str:
        """That so many starts lack the metric that further ones would; empty if they do not."""
        result = self.cell.result
        arms = {"": result.starts}
        if need is Need.PAIR:
            arms = {"": result.new, " of the old engine": result.old}
        for whose, starts in arms.items():
            lacking = sum(not gate.repeats_of(start, key) for start in starts)
            if lacking > MOST_INVALID:
                return f"{key} could not be measured in {lacking} starts{whose}"
        return ""

    def look(self, number: int) -> None:
        """Judge what is doubtful by the repeats of a further look at the same start."""
        before = self.result
        self.judge([key for key in self.metrics if self.verdicts[key].outcome in gate.DOUBTFUL])
        best = gate.best_look(before, self.result, look=number)
        self.verdicts = dict(zip(self.metrics, best.verdicts, strict=True))

    def end(self, refusal: str) -> None:
        """Settle what two starts decide where there will be no third."""
        for key in self.open:
            made = self._assess(key, last=True)
            if made.need is None:
                self.verdicts[key], self.needs[key] = made.verdict, None
                if self.pairs:
                    self.remark([key], refusal)
        self.remark(self.open, refusal)

    def remark(self, metrics: Sequence[str], clause: str) -> None:
        """Add a clause to the reasons of these verdicts."""
        for key in metrics:
            verdict = self.verdicts[key]
            self.verdicts[key] = replace(verdict, reason=f"{verdict.reason}; {clause}")

    def misses_pairs(self, key: str) -> bool:
        """Whether an A/B might have changed the verdict."""
        verdict = self.verdicts[key]
        return verdict.outcome in UNPAIRED and not verdict.paired

    def lacking(self, need: Need) -> int:
        """Starts of the engine under test until the verdict may change."""
        if need is Need.START:
            return 1
        pairs = len(self.cell.result.new)
        looks = (look for key in self.open for look in self.policies[key].looks)
        return min((look for look in looks if look > pairs), default=pairs + 1) - pairs

    def most(self, need: Need) -> int:
        """Starts, or pairs of them, that the open metrics may take at most."""
        policies = [self.policies[key] for key in self.open]
        if need is Need.PAIR:
            return max(policy.looks[-1] for policy in policies)
        if self.pairs:
            return SCREENING_STARTS
        return max(policy.unpaired_starts for policy in policies)

    @property
    def most_servers(self) -> int:
        """So many servers its open metrics may still take."""
        starts, pairs = len(self.cell.result.starts), len(self.cell.result.new)
        more = max(0, self.most(Need.START) - starts)
        return more + (2 * max(0, self.most(Need.PAIR) - pairs) if self.pairs else 0)


class Sampler:
    """Judges every cell of a session; all gates share one night and one budget."""

    def __init__(self, run: Run, references: References, limits: Limits, *, gates: int) -> None:
        self.night = Night(max(gates, 1))
        self._run = run
        self._references = references
        self._limits = limits
        self._budget = Budget(60 * limits.max_minutes)
        self._aside_s = 0.0
        """Of it, what companions of doubtful cells took."""
        self._no_arm: dict[ServerSpec, str] = {}
        """Why there is no A/B for a spec: the old engine failed with it."""

    def judge(self, cell: MeasuredCell, suite: str, metrics: Sequence[str]) -> CellResult:
        """Judge a valid cell by its baseline and, where that is not enough, by further starts.

        Raises:
            MoeperfError: A server failed under the cell's load, here or where another cell took it.
        """
        cell.judged = True
        if cell.failure is not None:
            raise cell.failure
        keys = tuple(dict.fromkeys(metrics))
        named = replace(cell.result, cell=f"{suite}/{cell.result.cell}")
        reference = self._references.of(named, keys)
        case = _Case(
            cell,
            suite,
            keys,
            reference,
            dict(zip(keys, self.night.limits(len(keys)), strict=True)),
            {key: self._policy(cell, key) for key in keys},
            pairs=self._can_pair(cell),
        )
        case.judge(keys)
        self._look_again(case)
        self._sample(case)
        if failed := self._no_arm.get(cell.spec):
            missed = [key for key in keys if case.misses_pairs(key)]
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

    def _look_again(self, case: _Case) -> None:
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

    def _sample(self, case: _Case) -> None:
        """Buy what the open metrics need, until none is open or a limit is reached."""
        start = case.cell.result.start
        case.cost_s = (start.startup_s if start is not None else None) or 0.0
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

    def _refusal(self, case: _Case, need: Need) -> str:
        """Why no more can be bought; empty if it can, up to where the verdict may change."""
        limits, lacking = self._limits, case.lacking(need)
        pairs = f"A/B of {lacking} more pairs of starts"
        what = pairs if need is Need.PAIR else "further start"
        if need is Need.PAIR and (failed := self._no_arm.get(case.cell.spec)):
            return f"no {what}, because {limits.against} failed: {failed}"
        if case.cell.invalid > MOST_INVALID:
            return f"{case.cell.invalid} further starts were invalid"
        if limits.max_starts is not None and case.cell.used + lacking > limits.max_starts:
            return f"no {what} within --max-starts {limits.max_starts}"
        if self._budget.left_s <= SERVERS[need] * lacking * case.cost_s:
            return f"no {what} within --max-minutes {limits.max_minutes:g}"
        return ""

    def _companions(self, case: _Case, need: Need) -> list[MeasuredCell]:
        """Cells to measure on the same servers, as far as the case leaves time for them."""
        servers = SERVERS[need]
        spare_s = self._budget.left_s - case.most_servers * case.cost_s
        chosen = case.cell.companions(most_s=spare_s / servers, most_starts=self._limits.max_starts)
        if need is Need.START and case.pairs:
            # Their starts are for the A/B.
            return [cell for cell in chosen if len(cell.result.starts) < SCREENING_STARTS]
        return chosen

    def _measure(self, case: _Case, spec: ServerSpec, others: Sequence[MeasuredCell]) -> _Arm:
        """Measure the case on a fresh server, and the others as long as that bears them."""
        arm = {case.cell: self._run.measure_anew(case.cell, spec)}
        began_s = self._budget.clock()
        for cell in () if arm[case.cell].invalid else others:
            fresh = None if cell.alone else self._run.measure_also(cell, spec)
            if fresh is not None:
                arm[cell] = fresh
        self._aside_s += self._budget.clock() - began_s
        return arm

    def _buy_start(self, case: _Case) -> None:
        number = len(case.cell.result.starts) + 1
        most = max(number, self._at_most(case.most(Need.START)))
        others = self._companions(case, Need.START)
        with self._run.stage(f"start {number} of up to {most} for {case.suite}"):
            arm = self._measure(case, case.cell.spec, others)
        for cell, fresh in arm.items():
            cell.add_start(fresh, shared=cell is not case.cell)

    def _buy_pair(self, case: _Case) -> None:
        """Start and measure both engines: in the order A B, B A, A B and so on."""
        number = len(case.cell.result.new) + 1
        most = max(number, case.most(Need.PAIR))
        stage = f"A/B pair {number} of up to {most} for {case.suite}"
        others = self._companions(case, Need.PAIR)
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

    def _new_arm(self, case: _Case, others: Sequence[MeasuredCell], stage: str) -> _Arm:
        self._end_old(case)
        with self._run.stage(f"{stage}, new engine"):
            return self._measure(case, case.cell.spec, others)

    def _old_arm(self, case: _Case, others: Sequence[MeasuredCell], stage: str) -> _Arm | None:
        """None where the old engine cannot serve this; then the case goes on without it."""
        self._run.end(case.cell.spec)
        try:
            with self._run.stage(f"{stage}, old engine"):
                case.old_spec = case.cell.spec.on(self._run.engine(self._limits.against or ""))
                return self._measure(case, case.old_spec, others)
        except MoeperfError as error:
            self._no_arm[case.cell.spec] = str(error).partition("\n")[0]
            case.pairs = False
            return None

    def _end_old(self, case: _Case) -> None:
        """Leave only the tested engine's server to the tests to come."""
        if case.old_spec is not None and case.old_spec != case.cell.spec:
            self._run.end(case.old_spec)

    def _at_most(self, count: int) -> int:
        return count if self._limits.max_starts is None else min(count, self._limits.max_starts)
