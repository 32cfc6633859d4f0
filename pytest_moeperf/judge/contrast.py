"""The difference between two sides, and how sure it is.

All values are natural logarithms, oriented so that larger is better.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_moeperf import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_moeperf.judge.noise import Noise, Spread

__all__ = ["Contrast", "against_old", "against_stored", "price_of_checkpoint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One side less the other."""

    measured_log: float
    expected_log: float
    standard_error: float
    df: float
    price: float = 1.0
    """What a p is multiplied by, as this is not the only checkpoint of its A/B."""

    @property
    def effect_log(self) -> float:
        """Below 0 where the engine under test is worse."""
        return self.measured_log - self.expected_log

    @property
    def p_worse(self) -> float:
        """Chance of so bad an effect, or a worse one, if the engine were no worse."""
        return self._p(self.effect_log)

    @property
    def p_better(self) -> float:
        """Chance of so good an effect, or a better one, if the engine were no better."""
        return self._p(-self.effect_log)

    def _p(self, effect_log: float) -> float:
        if not self.standard_error:
            return 0.0 if effect_log < 0 else 1.0
        return min(1.0, self.price * stats.t_below(effect_log / self.standard_error, self.df))

    def interval(self, beta: float) -> tuple[float, float]:
        """Confidence interval of the effect; `beta` is shared by its two ends."""
        half = stats.t_quantile(1 - beta / 2, self.df) * self.standard_error
        return self.effect_log - half, self.effect_log + half

    def visible_log(self, p_limit: float) -> float:
        """The smallest loss whose p stays within `p_limit`."""
        if not self.standard_error:
            return 0.0
        return -stats.t_quantile(p_limit / self.price, self.df) * self.standard_error


def against_stored(today: Sequence[float], stored: Spread, noise: Noise) -> Contrast:
    """Hold today's starts against the mean of the stored sessions.

    However many starts today has, they share one session, and its drift stays in the error.
    """
    stored_starts = stored.sessions * stored.starts_per_session
    drift = noise.between**2 * (1 + 1 / stored.sessions)
    scatter = noise.within**2 * (1 / len(today) + 1 / stored_starts)
    return Contrast(
        measured_log=statistics.fmean(today),
        expected_log=stored.mean,
        standard_error=math.sqrt(drift + scatter),
        df=_satterthwaite((drift, noise.between_df), (scatter, noise.df)),
    )


def against_old(
    old: Sequence[float], new: Sequence[float], noise: Noise, *, price: float
) -> Contrast:
    """Hold the starts of an A/B against each other; both sides had the same session."""
    return Contrast(
        measured_log=statistics.fmean(new),
        expected_log=statistics.fmean(old),
        standard_error=noise.within * math.sqrt(1 / len(old) + 1 / len(new)),
        df=noise.df,
        price=price,
    )


def price_of_checkpoint(number: int, *, of: int) -> float:
    """What the p at checkpoint `number` (from 1) is multiplied by.

    The later one gets the larger share of the chance of a false alarm, as more will have been paid
    for it: 3 and 1.5 where there are two. The shares add up to 1, so all together are no more often
    wrong than one (Bonferroni).
    """
    return of * (of + 1) / 2 / number


def _satterthwaite(*parts: tuple[float, float]) -> float:
    """Degrees of freedom of a sum of variances, each given with its own."""
    total = sum(variance for variance, _ in parts)
    if not total:
        return min(df for _, df in parts)
    return total**2 / sum(variance**2 / df for variance, df in parts)
