"""A cell while it is judged: what was measured so far, and what its gates still need."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_moeperf import gate
from pytest_moeperf.judge import SCREENING_STARTS, Need
from pytest_moeperf.records import CellResult, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_moeperf.gate import Reference
    from pytest_moeperf.judge import Assessment, Night
    from pytest_moeperf.measured import MeasuredCell
    from pytest_moeperf.policy import Policy
    from pytest_moeperf.records import ServerSpec

__all__ = ["MOST_INVALID", "OpenCell"]

UNPAIRED = gate.DOUBTFUL | {Outcome.NO_BASELINE}
"""Outcomes that an A/B might have changed."""

MOST_INVALID = 2
"""So many starts of a cell may be invalid, or lack a metric; with one more the buying ends."""


@dataclass(slots=True)
class OpenCell:
    """For each metric its verdict so far and, while that is open, what could change it."""

    cell: MeasuredCell
    suite: str
    metrics: tuple[str, ...]
    reference: Reference
    shares: Mapping[str, float]
    """Of the night, by metric."""
    policies: Mapping[str, Policy]
    """By metric."""
    pairs: bool
    """Whether an old engine is at hand."""
    p_limits: Mapping[str, float] = field(default_factory=dict)
    """By metric."""
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
        """The class that it was measured on."""
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

    def admit(self, night: Night) -> None:
        """Take the limits of now, which regressions elsewhere have raised meanwhile."""
        before = self.p_limits
        self.p_limits = {key: night.limit(share) for key, share in self.shares.items()}
        if before and before != self.p_limits:
            undecided = gate.DOUBTFUL - {Outcome.REGRESSED}
            self.judge([key for key in self.metrics if self.verdicts[key].outcome in undecided])

    def _assess(self, key: str, *, last: bool) -> Assessment:
        return gate.judge_metric(
            self.cell.result,
            key,
            self.reference,
            hardware=self.hardware,
            p_limit=self.p_limits[key],
            policy=self.policies[key],
            can_pair=self.pairs,
            last=last,
        )

    def _missing(self, key: str, need: Need) -> str:
        """That so many starts lack the metric that further ones would; empty if they do not."""
        result = self.cell.result
        arms = {"": result.starts}
        if need is Need.PAIR:
            arms = {"": result.new, " of the old engine": result.old}
        for whose, starts in arms.items():
            lacking = sum(not gate.judged_repeats(start, key) for start in starts)
            if lacking > MOST_INVALID:
                return f"{key} could not be measured in {lacking} starts{whose}"
        return ""

    def judge_again(self, *, look: int) -> None:
        """Judge what is doubtful by the repeats of a further look at the same start."""
        before = self.result
        self.judge([key for key in self.metrics if self.verdicts[key].outcome in gate.DOUBTFUL])
        best = gate.best_look(before, self.result, look=look)
        self.verdicts = dict(zip(self.metrics, best.verdicts, strict=True))

    def end(self, refusal: str) -> None:
        """Give up further starts: settle what can be settled, and say why of the rest."""
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
        checkpoints = (each for key in self.open for each in self.policies[key].checkpoints)
        return min((each for each in checkpoints if each > pairs), default=pairs + 1) - pairs

    def most(self, need: Need) -> int:
        """Starts, or pairs of them, that the open metrics may take at most."""
        policies = [self.policies[key] for key in self.open]
        if need is Need.PAIR:
            return max(policy.checkpoints[-1] for policy in policies)
        if self.pairs:
            return SCREENING_STARTS
        return max(policy.unpaired_starts for policy in policies)
