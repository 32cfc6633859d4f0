"""What was measured of one metric, and the rules that its starts are held to."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_moeperf.judge.contrast import Contrast, against_old, against_stored, price_of_checkpoint
from pytest_moeperf.judge.noise import StartValue, noise_of, spread_of, start_value
from pytest_moeperf.judge.steadiness import Unsteadiness, surely_scattered, unsteadiness
from pytest_moeperf.metrics import describe
from pytest_moeperf.policy import Policy, directed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_moeperf.judge.noise import Noise, Prior, Spread
    from pytest_moeperf.records import Direction

__all__ = ["SCREENING_STARTS", "Case", "Evidence", "StoredStart"]

SCREENING_STARTS = 2
"""Starts that a doubtful cell is given before the old engine is called."""

NEARLY = 0.75
"""A start that lost so much of the effect is called as slow."""

GROSS = 5
"""A loss of more tolerances than this no drift explains: two boards of H200 differ by one."""
BETWEEN_GPUS_LOG = 0.03
"""Two H200 differed by 0.1 to 3.0 % in a decode step (docs/hardware.md)."""
GROSS_STARTS = 3
"""Fresh starts that show such a loss to be the engine's, and not one of a bad start; two do where
there will be no third."""


@dataclass(frozen=True, slots=True)
class StoredStart:
    """A metric in one start of the baseline."""

    session: str
    repeats: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Every value of one metric of one cell, in the metric's unit; a tuple of repeats a start."""

    metric: str
    today: tuple[tuple[float, ...], ...]
    """Fresh starts of the engine under test."""
    stored: tuple[StoredStart, ...]
    """The baseline; empty where there is none."""
    old: tuple[tuple[float, ...], ...] = ()
    """A/B: starts of the old engine, in order."""
    new: tuple[tuple[float, ...], ...] = ()
    """A/B: starts of the engine under test, in order; none of them is in `today`."""
    can_pair: bool = False
    """An old engine is at hand."""
    other_gpu: bool = False
    """Today's GPUs are not those that the baseline was measured on, though of the same product."""
    last: bool = False
    """There will be no further start: a limit of the session is reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The evidence as one oriented logarithm a start, and when its differences count."""

    evidence: Evidence
    policy: Policy
    prior: Prior
    p_limit: float
    unit: str
    direction: Direction
    today: Sequence[float]
    stored: Sequence[StartValue]
    old: Sequence[float]
    new: Sequence[float]
    spread: Spread
    """Of the stored starts."""

    @classmethod
    def of(cls, evidence: Evidence, policy: Policy, prior: Prior, p_limit: float) -> Case:
        """Reduce every start; those without a value are left out."""
        metric, _ = describe(evidence.metric)
        direction = directed(evidence.metric, metric.direction)

        def reduced(starts: Sequence[Sequence[float]]) -> list[float]:
            values = (start_value(start, direction) for start in starts)
            return [value for value in values if value is not None]

        stored = [
            StartValue(value, start.session)
            for start in evidence.stored
            if (value := start_value(start.repeats, direction)) is not None
        ]
        return cls(
            evidence=evidence,
            policy=policy,
            prior=prior,
            p_limit=p_limit,
            unit=metric.unit,
            direction=direction,
            today=reduced(evidence.today),
            stored=stored,
            old=reduced(evidence.old),
            new=reduced(evidence.new),
            spread=spread_of(stored),
        )

    @property
    def can_pair(self) -> bool:
        """Whether the old engine can be asked, or asked again; it may have failed meanwhile."""
        return self.evidence.can_pair

    @property
    def pairs(self) -> int:
        """Complete pairs of the A/B."""
        return min(len(self.old), len(self.new))

    def screened(self, starts: Sequence[float]) -> Contrast:
        """Starts of this session against the baseline."""
        return against_stored(starts, self.spread, self._noise(self.spread.joined(starts)))

    def fought(self, pairs: int) -> Contrast:
        """The first pairs of the A/B, up to a checkpoint: session and machine are the same."""
        old, new = self.old[:pairs], self.new[:pairs]
        checkpoints = self.policy.checkpoints
        price = price_of_checkpoint(checkpoints.index(pairs) + 1, of=len(checkpoints))
        noise = self._noise(self.spread.joined(old, new))
        return against_old(old, new, noise, price=price)

    def _noise(self, spread: Spread) -> Noise:
        return noise_of(spread, self.prior, floor=self.policy.noise, drift=self.policy.drift)

    def unsteady(self, contrast: Contrast, *groups: Sequence[float]) -> Unsteadiness | None:
        """How starts of one engine differ beyond the tolerance and beyond what is to be judged."""
        # Below three times the known noise, what looks like scatter is the noise.
        known = max(self.policy.tolerance_log, 3 * self.policy.noise)
        # It fails a test, so it has to be as sure as a regression.
        if not surely_scattered(groups, limit_log=known, p_limit=self.p_limit):
            return None
        return unsteadiness(groups, limit_log=max(known, abs(contrast.effect_log)))

    def seen_before(self, contrast: Contrast) -> bool:
        """Whether a start without the change was about as slow, so that few pairs may be luck."""
        groups = ([start.value for start in self.stored], self.old)
        return any(
            value - centre < NEARLY * contrast.effect_log
            for group in groups
            if group
            for centre in (statistics.median(group),)
            for value in group
        )

    def worse(self, contrast: Contrast) -> bool:
        """Beyond the tolerance, and noise does not explain it."""
        beyond = contrast.effect_log < -self.policy.tolerance_log
        return beyond and contrast.p_worse <= self.p_limit

    def gross(self, contrast: Contrast) -> bool:
        """So much worse that neither noise nor drift explains it."""
        beyond = contrast.effect_log < -GROSS * self.policy.tolerance_log
        return beyond and self.worse(contrast)

    def explained_by_gpu(self, contrast: Contrast) -> bool:
        """Whether one GPU of a product may be so much slower than another one."""
        limit_log = -self.policy.tolerance_log - BETWEEN_GPUS_LOG
        return self.evidence.other_gpu and contrast.effect_log >= limit_log

    def starts_to_blame(self, contrast: Contrast) -> int:
        """Fresh starts that blaming the engine takes without the old one."""
        usual = self.policy.unpaired_starts
        if self.explained_by_gpu(contrast) and self.worse(contrast):
            # More of them would show the same.
            return min(usual, SCREENING_STARTS)
        if not self.gross(contrast):
            return usual
        return min(usual, SCREENING_STARTS if self.evidence.last else GROSS_STARTS)

    def better(self, contrast: Contrast) -> bool:
        """The mirror of `worse`."""
        beyond = contrast.effect_log > self.policy.tolerance_log
        return beyond and contrast.p_better <= self.p_limit

    def sound(self, contrast: Contrast) -> bool:
        """Within the tolerance, and what must be caught is ruled out."""
        low, _ = contrast.interval(self.policy.beta)
        within = contrast.effect_log >= -self.policy.tolerance_log
        return within and low >= -self.policy.catch_log

    def drifted(self, contrast: Contrast) -> bool:
        """Below the baseline beyond tolerance and interval."""
        _, high = contrast.interval(self.policy.beta)
        return contrast.effect_log < -self.policy.tolerance_log and high < 0
