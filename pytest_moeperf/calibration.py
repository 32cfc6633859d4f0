"""Replays the judge on starts that are known: how often it is wrong, and what it can see. Pure."""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pytest_moeperf.judge import Evidence, Need, Night, StoredStart, assess
from pytest_moeperf.metrics import describe
from pytest_moeperf.policy import directed
from pytest_moeperf.records import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_moeperf.judge import Prior
    from pytest_moeperf.policy import Policy
    from pytest_moeperf.records import Direction, Verdict

__all__ = [
    "Gate",
    "History",
    "QuietNights",
    "Replayed",
    "Supply",
    "false_alarms",
    "replay",
    "smallest_caught",
]

Repeats = tuple[float, ...]

MOST_STARTS = 60
"""No rule of the judge wants so many starts; one that did would never end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a metric of one cell is judged with."""

    metric: str
    policy: Policy
    prior: Prior
    stored: tuple[StoredStart, ...]


class Supply(Protocol):
    """Server starts of one cell in one session, as the judge asks for them."""

    def start(self) -> tuple[Repeats, ...]:
        """A further start of the engine under test: its repeats, gate by gate."""

    def pair(self) -> tuple[tuple[Repeats, ...], tuple[Repeats, ...]]:
        """A further start of the old engine and one of the engine under test."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """How a cell ended."""

    verdicts: tuple[Verdict, ...]
    starts: int
    """Server starts that it took, of both engines."""

    @property
    def regressed(self) -> bool:
        """Whether any of its gates is red."""
        return any(verdict.outcome is Outcome.REGRESSED for verdict in self.verdicts)


@dataclass(slots=True)
class _Samples:
    """What was bought for one gate so far."""

    today: list[Repeats] = field(default_factory=list)
    old: list[Repeats] = field(default_factory=list)
    new: list[Repeats] = field(default_factory=list)

    def evidence(self, gate: Gate, *, can_pair: bool) -> Evidence:
        return Evidence(
            metric=gate.metric,
            today=tuple(self.today),
            stored=gate.stored,
            old=tuple(self.old),
            new=tuple(self.new),
            can_pair=can_pair,
        )


def replay(
    gates: Sequence[Gate], supply: Supply, night: Night, *, can_pair: bool = True
) -> Replayed:
    """Buy starts for a cell until no gate wants more, as a session does, and tell the night."""
    samples = [_Samples() for _ in gates]
    settled: dict[int, Verdict] = {}
    need: Need | None = Need.START
    bought = 0
    p_limits = [night.limit(share) for share in night.take(len(gates))]
    while need is not None:
        bought += _buy(need, supply, samples, checkpoints=gates[0].policy.checkpoints)
        wanted = set()
        for index, gate in enumerate(gates):
            if index not in settled:
                made = assess(
                    samples[index].evidence(gate, can_pair=can_pair),
                    gate.policy,
                    prior=gate.prior,
                    p_limit=p_limits[index],
                )
                if made.need is None or bought >= MOST_STARTS:
                    settled[index] = made.verdict
                    night.note(made.verdict.outcome is Outcome.REGRESSED)
                else:
                    wanted.add(made.need)
        # A further start is cheaper than a pair, and may make the pair needless.
        need = Need.START if Need.START in wanted else Need.PAIR if wanted else None
    return Replayed(tuple(settled[index] for index in range(len(gates))), bought)


def _buy(
    need: Need, supply: Supply, samples: Sequence[_Samples], *, checkpoints: Sequence[int]
) -> int:
    if need is Need.START:
        for sample, repeats in zip(samples, supply.start(), strict=True):
            sample.today.append(repeats)
        return 1
    # Between two checkpoints nothing is decided.
    have = len(samples[0].new)
    pairs = min((each - have for each in checkpoints if each > have), default=1)
    for _ in range(pairs):
        old, new = supply.pair()
        for sample, before, after in zip(samples, old, new, strict=True):
            sample.old.append(before)
            sample.new.append(after)
    return 2 * pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The stored starts of one gate, taken apart so that nights can be drawn from them.

    Session, start and repeat are drawn anew each: the effect of a session from those of the stored
    sessions, that of a start from those within sessions, the repeats of a start as one piece.
    """

    metric: str
    policy: Policy
    prior: Prior
    layout: tuple[int, ...]
    """Starts of each stored session, oldest first."""
    level: float
    sessions: tuple[float, ...]
    starts: tuple[float, ...]
    repeats: tuple[tuple[float, ...], ...]

    @classmethod
    def of(
        cls, metric: str, stored: Sequence[StoredStart], policy: Policy, prior: Prior
    ) -> History:
        """Take stored starts apart; those without a value are left out."""
        sign = _sign(metric)
        by_session: defaultdict[str, list[list[float]]] = defaultdict(list)
        for start in stored:
            logs = [sign * math.log(value) for value in start.repeats if value > 0]
            if logs:
                by_session[start.session].append(logs)
        groups = [[statistics.median(logs) for logs in group] for group in by_session.values()]
        means = [statistics.fmean(group) for group in groups]
        return cls(
            metric=metric,
            policy=policy,
            prior=prior,
            layout=tuple(len(group) for group in groups),
            level=statistics.fmean(means) if means else 0.0,
            sessions=_centred([means]),
            starts=_centred(groups),
            repeats=tuple(
                tuple(value - statistics.median(logs) for value in logs)
                for group in by_session.values()
                for logs in group
            ),
        )

    @property
    def replayable(self) -> bool:
        """Whether there are starts enough to be drawn from: three, of which two may differ."""
        return sum(self.layout) >= 3  # noqa: PLR2004 - as said.

    def session(self, rng: random.Random) -> float:
        """The level of one more session."""
        return self.level + (rng.choice(self.sessions) if self.sessions else 0.0)

    def start(self, rng: random.Random, session: float, *, loss: float = 0.0) -> Repeats:
        """The repeats of one more start in it, in the unit of the metric."""
        base = session + (rng.choice(self.starts) if self.starts else 0.0) - loss
        sign = _sign(self.metric)
        return tuple(math.exp(sign * (base + value)) for value in rng.choice(self.repeats))

    def gate(self, rng: random.Random) -> Gate:
        """The gate with a baseline as it might have been recorded instead."""
        stored = [
            StoredStart(session=f"session {number}", repeats=self.start(rng, session))
            for number, starts in enumerate(self.layout)
            for session in (self.session(rng),)
            for _ in range(starts)
        ]
        return Gate(metric=self.metric, policy=self.policy, prior=self.prior, stored=tuple(stored))


def _sign(metric: str) -> int:
    direction: Direction = directed(metric, describe(metric)[0].direction)
    return 1 if direction == "higher" else -1


def _centred(groups: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Distances from the mean of each group, widened by what centring took from their variance."""
    several = [group for group in groups if len(group) > 1]
    return tuple(
        (value - statistics.fmean(group)) * math.sqrt(len(group) / (len(group) - 1))
        for group in several
        for value in group
    )


@dataclass(slots=True)
class _Drawn:
    """Starts of one gate, drawn from its history; the new engine is slower by `loss`."""

    history: History
    rng: random.Random
    loss: float
    level: float = field(init=False)

    def __post_init__(self) -> None:
        self.level = self.history.session(self.rng)

    def start(self) -> tuple[Repeats, ...]:
        return (self.history.start(self.rng, self.level, loss=self.loss),)

    def pair(self) -> tuple[tuple[Repeats, ...], tuple[Repeats, ...]]:
        return (self.history.start(self.rng, self.level),), self.start()


@dataclass(slots=True)
class QuietNights:
    """What the judge said in nights without a change."""

    nights: int
    alarms: list[int]
    """Of each gate."""
    starts: list[float]
    """Server starts a night that each gate took, on average."""
    red: int = 0
    """Nights with any alarm."""

    @property
    def monthly(self) -> float:
        """Red nights of 30."""
        return 30 * self.red / self.nights

    @property
    def monthly_at_most(self) -> float:
        """Upper bound of the same at 95 % (Clopper and Pearson)."""
        from scipy.special import betaincinv  # noqa: PLC0415 - 0.1 s, for calibration alone

        if self.red == self.nights:
            return 30.0
        return 30 * float(betaincinv(self.red + 1, self.nights - self.red, 0.95))


def false_alarms(
    histories: Sequence[History],
    rng: random.Random,
    *,
    nights: int,
    can_pair: bool,
) -> QuietNights:
    """Replay nights in which nothing changed."""
    made = QuietNights(nights, [0] * len(histories), [0.0] * len(histories))
    for _ in range(nights):
        night, alarms = Night(len(histories)), 0
        for index, history in enumerate(histories):
            drawn = _Drawn(history, rng, 0.0)
            replayed = replay([history.gate(rng)], drawn, night, can_pair=can_pair)
            made.alarms[index] += replayed.regressed
            made.starts[index] += replayed.starts / nights
            alarms += replayed.regressed
        made.red += bool(alarms)
    return made


def smallest_caught(
    history: History,
    rng: random.Random,
    *,
    gates: int,
    replays: int,
    can_pair: bool,
    share: float = 0.9,
) -> float | None:
    """The smallest change for the worse that is REGRESSED in `share` of replays, as a ratio.

    -0.05: 5 % less throughput; 0.05: 5 % more latency. None where not even 8 times as bad is.
    """
    seed = rng.getrandbits(32)
    low, high = 0.0, math.log(8)
    if _caught(history, seed, high, gates=gates, replays=replays, can_pair=can_pair) < share:
        return None
    while high - low > 0.03 * high:
        middle = (low + high) / 2
        if _caught(history, seed, middle, gates=gates, replays=replays, can_pair=can_pair) < share:
            low = middle
        else:
            high = middle
    return math.expm1(-_sign(history.metric) * high)


def _caught(
    history: History, seed: int, loss: float, *, gates: int, replays: int, can_pair: bool
) -> float:
    # The same draws for every loss, so that losses compare.
    rng = random.Random(seed)  # noqa: S311 - statistics, not secrets
    caught = 0
    for _ in range(replays):
        drawn = _Drawn(history, rng, loss)
        caught += replay([history.gate(rng)], drawn, Night(gates), can_pair=can_pair).regressed
    return caught / replays
