"""Plays nights of one world through all rules and counts."""

import zlib
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from benchmarks.judge import noise, ours
from benchmarks.judge.others import RULES
from benchmarks.judge.world import (
    BASELINE_SESSIONS,
    CELLS,
    GATES,
    STARTS_A_SESSION,
    Burst,
    Machine,
    Noise,
)
from pytest_moeperf.cell import FAILING
from pytest_moeperf.judge import Night

NIGHTS_OF_A_BASELINE = 10
MOST_STARTS = SimpleNamespace(night=(5, 9), release=(10, 15))
"""Starts of today and pairs that a rule can ask for, with some for those without a value."""
SESSIONS = [
    f"session {number}" for number in range(BASELINE_SESSIONS) for _ in range(STARTS_A_SESSION)
]
OURS = "moeperf"


@dataclass
class Count:
    """What one rule did."""

    nights: int = 0
    red_nights: int = 0
    cells: int = 0
    caught: int = 0
    starts: int = 0

    def add(self, red, starts):
        """Take in one night: which cells were red, and how many starts they took."""
        self.nights += 1
        self.red_nights += bool(np.any(red))
        self.cells += len(red)
        self.caught += int(np.sum(red))
        self.starts += int(starts)

    @property
    def monthly(self):
        """Nights of 30 with a red cell."""
        return 30 * self.red_nights / self.nights

    @property
    def share(self):
        return self.caught / self.cells

    @property
    def starts_a_cell(self):
        return self.starts / self.cells


@dataclass
class Result:
    """Of one world and one change."""

    world: str
    change: float
    release: bool = False
    counts: dict = field(default_factory=dict)
    outcomes: dict = field(default_factory=dict)
    """Gates by outcome, of ours."""
    failing_nights: int = 0
    """Nights in which any gate of ours fails its test: REGRESSED, UNSTABLE or INVALID."""
    found: float | None = None
    """Share of the compilations that were found."""
    no_value: float = 0.0
    """Share of starts with too many invalid repeats."""


def run(world, *, nights, seed, document, change=0.0, release=False, others=True):
    """Play nights in which every cell changed by `change`; each cell has the limit of the first."""
    rng = np.random.default_rng(
        [seed, zlib.crc32(world.nights.encode()), round(-1000 * change), release]
    )
    burst = Burst(*noise.silence(document))
    kinds = noise.kinds(document)
    result = Result(world.name, change, release, outcomes=dict.fromkeys(ours.Outcome, 0))
    names = [OURS, *RULES] if others else [OURS]
    result.counts = {name: Count() for name in names}
    machine = None
    for number in range(nights):
        if number % NIGHTS_OF_A_BASELINE == 0:
            drawn = Noise.drawn(rng, kinds, spread=noise.SPREAD, factor=world.noise)
            machine = following(machine, rng, world, drawn, burst)
            baseline = machine.baseline()
            rule = ours.Rule(baseline, SESSIONS, release=release)
        draws = one_night(machine, change, release=release)
        made = rule.night(draws, Forgetful(CELLS * GATES) if change else Night(CELLS * GATES))
        red = np.array([each is not None and each.regressed for each in made])
        result.counts[OURS].add(red, ours.starts_of(made))
        outcomes = ours.outcomes(made)
        for outcome, count in outcomes.items():
            result.outcomes[outcome] += count
        result.failing_nights += any(outcomes[outcome] for outcome in FAILING)
        for name, (other, starts) in RULES.items() if others else ():
            red = other(baseline, draws.today).any(axis=1)
            result.counts[name].add(red, starts * CELLS)
    if machine.hit:
        result.found = machine.found / machine.hit
        result.no_value = machine.starts_invalid / machine.starts_drawn
    return result


class Forgetful(Night):
    """Every cell is the only one that changed, so none gains from the regressions of others."""

    def note(self, rejected):  # noqa: ARG002 - forgotten
        super().note(rejected=False)


def following(before, rng, world, drawn, burst):
    """The machine of the next baseline; it goes on counting."""
    machine = Machine(rng, world, drawn, burst)
    for name in ("hit", "found", "starts_drawn", "starts_invalid"):
        setattr(machine, name, getattr(before, name, 0))
    return machine


def one_night(machine, change, *, release):
    today, pairs = MOST_STARTS.release if release else MOST_STARTS.night
    session, duel = machine.session(), machine.session()
    loss = np.log1p(change)
    return ours.Draws(
        today=machine.starts(today, session) + loss,
        old=machine.starts(pairs, duel),
        new=machine.starts(pairs, duel) + loss,
    )
