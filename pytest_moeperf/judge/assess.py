"""What the starts measured so far allow to say of one metric, and what could still change it.

Pass fast, fail slow: one or two starts clear an engine that is as it was. To blame one takes an
A/B of old and new starts in turns, or, without an old engine, more starts and wider margins.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_moeperf import stats
from pytest_moeperf.judge.evidence import SCREENING_STARTS, Case
from pytest_moeperf.judge.plain import no_baseline, unmeasured
from pytest_moeperf.judge.sentence import Figures, count, doubt, drift, scatter
from pytest_moeperf.judge.values import in_unit
from pytest_moeperf.records import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_moeperf.judge.contrast import Contrast
    from pytest_moeperf.judge.evidence import Evidence
    from pytest_moeperf.judge.noise import Prior
    from pytest_moeperf.judge.steadiness import Unsteadiness
    from pytest_moeperf.policy import Policy

__all__ = ["Assessment", "Need", "assess"]

CLEARED = frozenset({Outcome.PASS, Outcome.IMPROVED})


class Need(enum.Enum):
    """What could still change a verdict."""

    START = "start"
    """A further fresh start of the engine under test."""
    PAIR = "pair"
    """A further fresh start of the old engine and one of the engine under test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """A verdict, and whether more starts could change it."""

    verdict: Verdict
    need: Need | None
    """None: settled. Otherwise the verdict is what holds if nothing more is measured."""
    p: float
    """For a control of many gates: 1 where the engine was cleared without a test, or none was
    reached yet."""


def assess(evidence: Evidence, policy: Policy, *, prior: Prior, p_limit: float) -> Assessment:
    """Say what the evidence allows; `p_limit` is what `p` must not exceed to blame the engine.

    Starts without a value are left out. Values that are no finite numbers from 0 up raise
    ValueError: an error in measuring is never a verdict.
    """
    case = Case.of(evidence, policy, prior, p_limit)
    if not (case.today or case.new):
        return _settled(unmeasured(evidence.metric, _flat(evidence.today)))
    screened = _screen(case)
    reached = max((pairs for pairs in policy.checkpoints if pairs <= case.pairs), default=0)
    return _duel(case, reached, screened) if reached else screened


def _settled(verdict: Verdict, p: float = 1.0) -> Assessment:
    return Assessment(verdict=verdict, need=None, p=p)


def _flat(starts: Iterable[Sequence[float]]) -> list[float]:
    return [value for start in starts for value in start]


def _screen(case: Case) -> Assessment:
    """Hold today's starts against the baseline alone."""
    if not (case.today and case.stored):
        # The old engine alone can tell, and has not run often enough.
        verdict = no_baseline(case.evidence.metric, _flat(case.evidence.today))
        return Assessment(verdict=verdict, need=Need.PAIR if case.can_pair else None, p=1.0)
    contrast = case.screened(case.today)
    story = _Story(case, contrast)
    if case.better(contrast):
        return _settled(story.verdict(Outcome.IMPROVED))
    if case.sound(contrast):
        return _settled(story.verdict(Outcome.PASS))
    need = _need_of_screen(case, contrast)
    return story.doubtful(need) if need else _unpaired(case, story)


def _need_of_screen(case: Case, contrast: Contrast) -> Need | None:
    """What a doubtful cell takes before it may be blamed."""
    starts = len(case.today)
    # To have an old engine that no limit lets run must not hide what is blamed without one.
    unasked = case.evidence.last and not case.old and case.gross(contrast)
    if case.can_pair and not unasked:
        return Need.PAIR if starts >= SCREENING_STARTS or case.pairs else Need.START
    return Need.START if starts < case.starts_to_blame(contrast) else None


def _unpaired(case: Case, story: _Story) -> Assessment:
    """Settle a doubtful cell without the old engine."""
    stored = [start.value for start in case.stored]
    if unsteady := case.unsteady(story.contrast, case.today, stored):
        return _settled(story.unstable(unsteady))
    if case.worse(story.contrast) and not case.explained_by_gpu(story.contrast):
        return _settled(story.verdict(Outcome.REGRESSED), story.contrast.p_worse)
    return story.doubtful(None)


def _duel(case: Case, pairs: int, screened: Assessment) -> Assessment:
    """Hold the two arms of the A/B against each other, at the last checkpoint that was reached."""
    contrast = case.fought(pairs)
    story = _Story(case, contrast, pairs=pairs)
    p = contrast.p_worse
    unsteady = case.unsteady(contrast, case.old[:pairs], case.new[:pairs])
    last = pairs == case.policy.checkpoints[-1]
    surprising = last or not case.seen_before(contrast)
    if not unsteady and surprising and case.worse(contrast):
        return _settled(story.verdict(Outcome.REGRESSED), p)
    if not unsteady and case.better(contrast):
        return _settled(story.verdict(Outcome.IMPROVED), p)
    if case.sound(contrast):
        return _settled(story.drifted() or story.verdict(Outcome.PASS), p)
    if screened.verdict.outcome in CLEARED and (last or not case.worse(contrast)):
        # The pairs were bought for another metric, and do not contradict.
        return replace(screened, p=p)
    if not last:
        return story.doubtful(Need.PAIR)
    return _settled(story.unstable(unsteady), p) if unsteady else story.doubtful(None)


@dataclass(frozen=True, slots=True)
class _Story:
    """A contrast, told as a verdict."""

    case: Case
    contrast: Contrast
    pairs: int = 0
    """0: against the baseline."""

    def verdict(self, outcome: Outcome, remark: str = "") -> Verdict:
        case, contrast = self.case, self.contrast
        figures = self._figures()
        low, high = contrast.interval(case.policy.beta)
        return Verdict(
            metric=figures.key,
            outcome=outcome,
            unit=figures.unit,
            direction=figures.direction,
            measured=figures.measured,
            spread=stats.half_range(_flat(self._starts)),
            expected=figures.expected,
            lower=figures.limit if figures.direction == "higher" else None,
            upper=figures.limit if figures.direction == "lower" else None,
            change=figures.measured / figures.expected - 1 if figures.expected else None,
            effect=math.expm1(contrast.effect_log),
            interval=(math.expm1(low), math.expm1(high)),
            p=contrast.p_worse,
            p_limit=case.p_limit,
            tolerance=case.policy.tolerance,
            starts=len(self._starts),
            paired=bool(self.pairs),
            reason=f"{figures.head}{remark or ', ' + self._basis}",
        )

    def doubtful(self, need: Need | None) -> Assessment:
        """INCONCLUSIVE, with the smallest loss that could have been seen."""
        case, contrast = self.case, self.contrast
        visible_log = max(contrast.visible_log(case.p_limit), case.policy.tolerance_log)
        remark = f", {self._basis}; {self._doubt(visible_log)}"
        verdict = replace(
            self.verdict(Outcome.INCONCLUSIVE, remark), visible=math.expm1(visible_log)
        )
        tested = self.pairs or need is None
        return Assessment(verdict=verdict, need=need, p=contrast.p_worse if tested else 1.0)

    def _doubt(self, visible_log: float) -> str:
        case, contrast = self.case, self.contrast
        beyond = contrast.effect_log < -case.policy.tolerance_log
        if beyond and contrast.p_worse <= case.p_limit:
            if case.can_pair or self.pairs:
                return "whether engine or machine is slower, the old engine has to show"
            if case.explained_by_gpu(contrast):
                return "the baseline is of another GPU, and two of a product differ by up to 3 %"
            starts = count(case.starts_to_blame(contrast), "start")
            return f"to blame the engine takes {starts} today"
        low, _ = contrast.interval(case.policy.beta)
        possible_log = None if beyond else -low
        return doubt(case.direction, visible_log=visible_log, possible_log=possible_log)

    def unstable(self, unsteady: Unsteadiness) -> Verdict:
        """Starts of one engine differ too much for a mean to say anything."""
        verdict = self.verdict(Outcome.UNSTABLE)
        size = unsteady.size_log
        reason = scatter(verdict.metric, self.case.direction, size, two=unsteady.two_modes)
        return replace(verdict, reason=reason)

    def drifted(self) -> Verdict | None:
        """ENV_DRIFT where old and new engine agree and both are below the baseline."""
        case = self.case
        if not case.stored:
            return None
        old, new = (case.screened(arm[: self.pairs]) for arm in (case.old, case.new))
        if not (case.drifted(old) and case.drifted(new)):
            return None
        least = min(-old.effect_log, -new.effect_log)
        remark = f", {self._basis}{drift(least, case.direction)}"
        return self.verdict(Outcome.ENV_DRIFT, remark)

    @property
    def _starts(self) -> Sequence[Sequence[float]]:
        evidence = self.case.evidence
        starts = evidence.new if self.pairs else evidence.today
        measured = [start for start in starts if start]
        return measured[: self.pairs] if self.pairs else measured

    @property
    def _basis(self) -> str:
        """What the verdict rests on."""
        if self.pairs:
            return f"by {count(self.pairs, 'pair')} of starts in turns"
        today = count(len(self.case.today), "start")
        return f"unpaired: {today} today against {count(len(self.case.stored), 'stored start')}"

    def _figures(self) -> Figures:
        case, contrast = self.case, self.contrast
        limit_log = contrast.expected_log - case.policy.tolerance_log
        return Figures(
            key=case.evidence.metric,
            unit=case.unit,
            direction=case.direction,
            measured=in_unit(contrast.measured_log, case.direction),
            expected=in_unit(contrast.expected_log, case.direction),
            limit=in_unit(limit_log, case.direction),
            reference="the old engine" if self.pairs else "the baseline",
        )
