"""Our rule on drawn nights: the product's own functions decide.

A first look that settles a cell at once is the bulk of the work. It is taken for all cells at a
time, by the same formula; whatever it does not settle goes through `calibration.replay`.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.judge.world import CELLS, GATES
from pytest_moeperf import judge
from pytest_moeperf.calibration import Gate, replay
from pytest_moeperf.metrics import describe
from pytest_moeperf.policy import policy_for
from pytest_moeperf.records import Outcome

METRICS = ("output_throughput", "tpot_ms.p50")
HARDWARE = "h200"


@dataclass
class Draws:
    """One night's starts, drawn whether they are bought or not: (cells, gates, starts, repeats)."""

    today: np.ndarray
    old: np.ndarray
    new: np.ndarray


class Supply:
    """Hands the drawn starts of one cell to the product, in the units of the metrics."""

    def __init__(self, draws, cell):
        self.draws, self.cell = draws, cell
        self.starts = self.pairs = 0

    def start(self):
        self.starts += 1
        return repeats_of(self.draws.today[self.cell, :, self.starts - 1])

    def pair(self):
        self.pairs += 1
        old, new = (each[self.cell, :, self.pairs - 1] for each in (self.draws.old, self.draws.new))
        return repeats_of(old), repeats_of(new)


def repeats_of(values):
    """Repeats of one start, gate by gate; none where too many of them were invalid."""
    return tuple(
        tuple(in_unit(metric, repeats)) if np.isfinite(repeats).all() else ()
        for metric, repeats in zip(METRICS, values, strict=True)
    )


def in_unit(metric, logs):
    sign = 1 if describe(metric)[0].direction == "higher" else -1
    return (100 * np.exp(sign * logs)).tolist()


class Rule:
    """The judge with the baselines of all cells."""

    def __init__(self, baseline, sessions, *, release=False):
        """Take stored starts, (cells, gates, starts, repeats), and the session of each."""
        self.policies = [policy_for(HARDWARE, metric, release=release) for metric in METRICS]
        stored = [
            [
                tuple(
                    judge.StoredStart(session=session, repeats=repeats)
                    for session, start in zip(sessions, gate, strict=True)
                    if (repeats := tuple(in_unit(metric, start[np.isfinite(start)])))
                )
                for metric, gate in zip(METRICS, cell, strict=True)
            ]
            for cell in baseline
        ]
        spreads = [
            [judge.spread_of(start_values(*each)) for each in zip(METRICS, of, strict=True)]
            for of in stored
        ]
        self.priors = [
            judge.fit_prior([cell[gate] for cell in spreads], default=judge.default_prior(policy))
            for gate, policy in enumerate(self.policies)
        ]
        self.gates = [
            [
                Gate(metric=metric, policy=policy, prior=prior, stored=starts)
                for metric, policy, prior, starts in zip(
                    METRICS, self.policies, self.priors, cell, strict=True
                )
            ]
            for cell in stored
        ]
        looks = np.array([[first_look(gate) for gate in cell] for cell in self.gates])
        self.expected, self.half = looks[..., 0], looks[..., 1]

    def settled(self, first):
        """Which cells the first start passes; `first` has its values, (cells, gates)."""
        effect = first + BASE - self.expected
        catch = np.array([policy.catch_log for policy in self.policies])
        tolerance = np.array([policy.tolerance_log for policy in self.policies])
        passed = (effect - self.half > -catch) & (np.abs(effect) < tolerance)
        return passed.all(axis=1)

    def night(self, draws, night):
        """Judge every cell of one night, in order; None stands for a first look that passed."""
        quiet = self.settled(np.median(draws.today[:, :, 0], axis=-1))
        made = []
        for cell in range(CELLS):
            if quiet[cell]:
                night.take(len(METRICS))
                made.append(None)
            else:
                made.append(replay(self.gates[cell], Supply(draws, cell), night))
        return made


BASE = np.array([np.log(100.0), -np.log(100.0)])
"""Values are about 100 in the unit of their metric; latencies are negated logarithms."""


def first_look(gate):
    """What a first start is held against, and half the interval of its effect, as logarithms.

    Taken from a verdict: neither depends on what the start measured.
    """
    evidence = judge.Evidence(
        metric=gate.metric, today=((100.0,),), stored=gate.stored, can_pair=True
    )
    made = judge.assess(evidence, gate.policy, prior=gate.prior, p_limit=1e-4).verdict
    effect, low = np.log1p(made.effect), np.log1p(made.interval[0])
    return BASE[METRICS.index(gate.metric)] - effect, effect - low


def start_values(metric, starts):
    direction = describe(metric)[0].direction
    return [
        judge.StartValue(value=value, session=start.session)
        for start in starts
        if (value := judge.start_value(start.repeats, direction)) is not None
    ]


def starts_of(made):
    return sum(1 if each is None else each.starts for each in made)


def outcomes(made):
    """How many gates ended with each outcome."""
    counts = dict.fromkeys(Outcome, 0)
    for each in made:
        for outcome in (
            [Outcome.PASS] * GATES if each is None else [v.outcome for v in each.verdicts]
        ):
            counts[outcome] += 1
    return counts
