"""How much starts of one engine differ: within a session, between sessions, and among cells.

All values are natural logarithms, oriented so that larger is better.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_moeperf import stats
from pytest_moeperf.judge.values import usable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_moeperf.policy import Policy
    from pytest_moeperf.records import Direction

__all__ = [
    "PRIOR_DF",
    "PRIOR_DF_LIMIT",
    "Noise",
    "Prior",
    "Spread",
    "StartValue",
    "default_prior",
    "fit_prior",
    "noise_of",
    "spread_of",
    "start_value",
]

PRIOR_DF = 20
"""What the noise table of a hardware class weighs against the stored starts, in degrees of
freedom: with the usual 1 to 10 starts a cell's own spread alone would be a guess."""

PRIOR_DF_LIMIT = 60
"""What a fitted prior weighs at most: cells that happen to look alike must not silence one that
scatters."""

_FOREIGN = 1e-6
"""A cell whose variance is so unlikely beside that of the others is not one of them. An odd start
now and then leaves it above; two modes do not."""

_FEWEST_CELLS = 5
"""Of fewer variances the variance cannot be told."""


@dataclass(frozen=True, slots=True)
class StartValue:
    """One start: the median of its repeats, as an oriented logarithm, and when it ran."""

    value: float
    session: str


def start_value(repeats: Sequence[float | None], direction: Direction) -> float | None:
    """Reduce a start to one value; None where no repeat has any.

    Values that are no finite numbers from 0 up raise ValueError.
    """
    values = usable(repeats)
    if not values:
        return None
    median = stats.log_median(values)
    return median if direction == "higher" else -median


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How the stored starts of one cell scatter, before anything is borrowed from other cells."""

    within_variance: float
    """Between starts of one session, pooled over sessions."""
    within_df: float
    """0 where no session has two starts."""
    between_variance: float
    """Between the means of sessions; the noise of the starts in them is a part of it."""
    sessions: int = 0
    starts_per_session: float = 1.0
    """Harmonic mean."""
    mean: float = 0.0
    """Of the means of sessions."""

    def joined(self, *groups: Sequence[float]) -> Spread:
        """This spread with the scatter within further groups of starts, each of one session."""
        df = self.within_df + sum(len(group) - 1 for group in groups if group)
        squares = self.within_variance * self.within_df + math.fsum(
            _squares(group) for group in groups if group
        )
        return replace(self, within_variance=squares / df if df else 0.0, within_df=df)


def spread_of(starts: Sequence[StartValue]) -> Spread:
    """Split the scatter of starts into that within and that between sessions."""
    sessions = _by_session(starts)
    within_df = len(starts) - len(sessions)
    squares = math.fsum(map(_squares, sessions))
    means = list(map(statistics.fmean, sessions))
    return Spread(
        within_variance=squares / within_df if within_df else 0.0,
        within_df=within_df,
        between_variance=_squares(means) / (len(means) - 1) if len(means) > 1 else 0.0,
        sessions=len(sessions),
        starts_per_session=_harmonic_mean([len(values) for values in sessions]),
        mean=statistics.fmean(means) if means else 0.0,
    )


def _squares(values: Sequence[float]) -> float:
    """Sum of the squared distances from the mean."""
    mean = statistics.fmean(values)
    return math.fsum((value - mean) ** 2 for value in values)


def _harmonic_mean(counts: Sequence[int]) -> float:
    return len(counts) / math.fsum(1 / count for count in counts) if counts else 1.0


def _by_session(starts: Sequence[StartValue]) -> list[list[float]]:
    sessions: defaultdict[str, list[float]] = defaultdict(list)
    for start in starts:
        sessions[start.session].append(start.value)
    return list(sessions.values())


@dataclass(frozen=True, slots=True)
class Prior:
    """What is known of the variance within a session before a cell has any starts."""

    variance: float
    df: float
    """How much it weighs, as if it came from so many degrees of freedom."""


def default_prior(policy: Policy) -> Prior:
    """The table's own figure."""
    return Prior(policy.noise**2, PRIOR_DF)


def fit_prior(spreads: Sequence[Spread], *, default: Prior) -> Prior:
    """Fit the prior that variances of many cells seem drawn from.

    By the moments of their logarithms, as limma's fitFDist does (Smyth 2004). `default` stands in
    where the cells together know less than it does.
    """
    told = [spread for spread in spreads if spread.within_df > 0]
    df = sum(spread.within_df for spread in told)
    if len(told) < _FEWEST_CELLS or df < default.df:
        return default
    median = statistics.median(spread.within_variance for spread in told)
    if not median:
        return default
    from scipy.special import digamma, polygamma  # noqa: PLC0415 - 0.1 s, only to judge

    logs = [
        # As limma: a variance of 0 is luck, and its logarithm would decide everything.
        math.log(max(spread.within_variance, 1e-5 * median))
        - float(digamma(spread.within_df / 2))
        + math.log(spread.within_df / 2)
        for spread in told
    ]
    mean = statistics.fmean(logs)
    sampling = statistics.fmean(float(polygamma(1, spread.within_df / 2)) for spread in told)
    excess = statistics.variance(logs) - sampling
    if excess <= 0:
        return Prior(math.exp(mean), PRIOR_DF_LIMIT)
    half = _trigamma_inverse(excess)
    variance = math.exp(mean + float(digamma(half)) - math.log(half))
    return Prior(variance, min(2 * half, PRIOR_DF_LIMIT))


def _trigamma_inverse(value: float) -> float:
    """Solve trigamma(x) = value by Newton's method on 1 / trigamma, which is nearly a line."""
    from scipy.special import polygamma  # noqa: PLC0415 - 0.1 s, only to judge

    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-8:  # noqa: PLR2004 - as limma.
            break
    return x


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Standard deviations that a cell is judged with."""

    within: float
    """Between starts of one session."""
    between: float
    """Between sessions, beyond what their starts explain."""
    df: float
    """Degrees of freedom of `within`."""
    between_df: float = PRIOR_DF


def noise_of(spread: Spread, prior: Prior, *, floor: float = 0.0, drift: float = 0.0) -> Noise:
    """Shrink the cell's own scatter towards what is known beforehand.

    `floor` and `drift` are the least standard deviations within and between sessions: few starts
    agree by luck more often than a machine is quiet.
    """
    variance, df = _moderated(spread, prior)
    within = max(variance, floor**2)
    of_mean = within / spread.starts_per_session
    sessions_df = max(spread.sessions - 1, 0)
    means = stats.shrunk_variance(
        spread.between_variance,
        sessions_df,
        prior_variance=drift**2 + of_mean,
        prior_df=PRIOR_DF,
    )
    return Noise(
        within=math.sqrt(within),
        between=math.sqrt(max(drift**2, means - of_mean)),
        df=df,
        between_df=PRIOR_DF + sessions_df,
    )


def _moderated(spread: Spread, prior: Prior) -> tuple[float, float]:
    """The variance within a session and its degrees of freedom.

    A cell that scatters as the others hardly ever do is none of them, and is judged by its own
    variance alone: averaging would hide its modes and bad starts (as limma's robust variant).
    """
    own, df = spread.within_variance, spread.within_df
    ratio = own / prior.variance if prior.variance else 0.0
    if df and stats.f_above(ratio, df, prior.df) < _FOREIGN:
        return own, df
    shrunk = stats.shrunk_variance(own, df, prior_variance=prior.variance, prior_df=prior.df)
    return shrunk, prior.df + df
