"""What must hold for every evidence, whatever its figures."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pytest_moeperf.figures import compute
from pytest_moeperf.judge import Evidence, Need, StoredStart, assess, default_prior
from pytest_moeperf.metrics import KEYS, SLO, describe
from pytest_moeperf.policy import policy_for
from pytest_moeperf.records import Outcome, RequestRecord

MS = 1_000_000
LIMIT = 0.0005
DIRECTED = [key for key in KEYS if describe(key)[0].direction]
CONTINUOUS = [key for key in DIRECTED if policy_for("cpu", key).tolerance]

FIGURE = st.floats(15, 25)
START = st.lists(FIGURE, min_size=1, max_size=3).map(tuple)
ARM = st.lists(START, min_size=3, max_size=3).map(tuple)
STORED = st.lists(st.builds(StoredStart, st.sampled_from("abc"), START), max_size=6).map(tuple)


@st.composite
def evidences(draw):
    old, new = draw(st.one_of(st.just(((), ())), st.tuples(ARM, ARM)))
    return Evidence(
        metric=draw(st.sampled_from(CONTINUOUS)),
        today=tuple(draw(st.lists(START, min_size=1, max_size=5))),
        stored=draw(STORED),
        old=old,
        new=new,
        can_pair=draw(st.booleans()) or bool(old),
    )


def judged(evidence, *, hardware="h200", limit=LIMIT):
    policy = policy_for(hardware, evidence.metric)
    return assess(evidence, policy, prior=default_prior(policy), p_limit=limit)


def scaled(evidence, factor):
    def times(starts):
        return tuple(tuple(value * factor for value in start) for start in starts)

    return replace(
        evidence,
        today=times(evidence.today),
        stored=tuple(
            StoredStart(start.session, times([start.repeats])[0]) for start in evidence.stored
        ),
        old=times(evidence.old),
        new=times(evidence.new),
    )


HARDWARE = st.sampled_from(["cpu", "h200"])


@given(evidences(), HARDWARE, st.integers(-6, 6))
def test_the_verdict_does_not_depend_on_the_unit(evidence, hardware, power):
    one = judged(evidence, hardware=hardware)
    other = judged(scaled(evidence, 2.0**power), hardware=hardware)
    assume(not near_a_bound(one))
    assert (one.verdict.outcome, one.need) == (other.verdict.outcome, other.need)
    if one.verdict.effect is not None:
        assert other.verdict.effect == pytest.approx(one.verdict.effect, abs=1e-9)
        assert other.verdict.p == pytest.approx(one.verdict.p, abs=1e-9)


def near_a_bound(assessment):
    """Whether rounding alone may decide."""
    verdict = assessment.verdict
    if verdict.effect is None:
        return False
    policy = policy_for("h200", verdict.metric), policy_for("cpu", verdict.metric)
    bounds = [
        sign * margin
        for each in policy
        for sign in (1, -1)
        for margin in (each.tolerance_log, each.catch_log)
    ]
    figures = [math.log1p(verdict.effect), *(math.log1p(end) for end in verdict.interval)]
    return any(abs(figure - bound) < 1e-9 for figure in figures for bound in bounds)


@given(evidences(), HARDWARE, st.randoms(use_true_random=False))
def test_the_order_of_starts_and_repeats_does_not_matter(evidence, hardware, rng):
    def shuffled(items):
        return tuple(rng.sample(items, len(items)))

    other = replace(
        evidence,
        today=shuffled([shuffled(start) for start in evidence.today]),
        stored=shuffled(evidence.stored),
        old=shuffled(evidence.old),
        new=shuffled(evidence.new),
    )
    one, other = judged(evidence, hardware=hardware), judged(other, hardware=hardware)
    assume(not near_a_bound(one))
    assert (one.verdict.outcome, one.need) == (other.verdict.outcome, other.need)


@given(st.sampled_from(CONTINUOUS), ARM, ARM, HARDWARE)
@example(  # Within what the old arm has shown: blame waits for the last checkpoint.
    key="ttft_ms.mean",
    old=((16.0,), (16.0,), (18.0,)),
    new=((18.0,), (18.0,), (19.0,)),
    hardware="h200",
)
def test_swapping_the_arms_mirrors_the_verdict(key, old, new, hardware):
    def duel(old, new):
        both = Evidence(metric=key, today=(), stored=(), old=old, new=new, can_pair=True)
        return judged(both, hardware=hardware)

    def is_mirrored(one, other):
        """A loss is a gain seen from the other side; the loss alone may need another checkpoint."""
        if one.verdict.outcome is Outcome.REGRESSED:
            return other.verdict.outcome is Outcome.IMPROVED
        if one.verdict.outcome is Outcome.IMPROVED:
            awaited = other.verdict.outcome is Outcome.INCONCLUSIVE and other.need is Need.PAIR
            return awaited or other.verdict.outcome is Outcome.REGRESSED
        return True

    one, other = duel(old, new), duel(new, old)
    assert (1 + one.verdict.effect) * (1 + other.verdict.effect) == pytest.approx(1)
    assert [(1 + end) for end in one.verdict.interval] == pytest.approx(
        [1 / (1 + end) for end in reversed(other.verdict.interval)]
    )
    assert is_mirrored(one, other)
    assert is_mirrored(other, one)


@given(st.floats(15, 25), st.floats(15, 25), st.integers(3, 5), HARDWARE)
def test_latency_and_throughput_are_judged_alike_in_opposite_directions(old, new, count, hardware):
    def duel(key, old, new):
        arms = {"old": ((old,),) * count, "new": ((new,),) * count}
        return judged(Evidence(metric=key, today=(), stored=(), **arms), hardware=hardware)

    latency = duel("tpot_ms.p50", old, new)
    rate = duel("request_throughput", 1 / old, 1 / new)
    assume(not near_a_bound(latency))
    assert (latency.verdict.outcome, latency.need) == (rate.verdict.outcome, rate.need)


ORDER = [Outcome.IMPROVED, Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.REGRESSED]


@given(evidences(), HARDWARE, st.floats(1.001, 3))
def test_getting_worse_never_lifts_a_verdict(evidence, hardware, factor):
    lower = describe(evidence.metric)[0].direction == "lower"
    times = factor if lower else 1 / factor
    worse = replace(
        evidence,
        today=scaled(evidence, times).today,
        new=scaled(evidence, times).new,
    )
    before, after = (judged(each, hardware=hardware).verdict.outcome for each in (evidence, worse))
    assume(before in ORDER and after in ORDER)
    assert ORDER.index(before) <= ORDER.index(after)


@given(
    st.sampled_from(CONTINUOUS),
    st.floats(0.5, 2),
    st.lists(st.floats(-0.04, 0.04), min_size=3, max_size=3),
    st.lists(st.floats(-0.04, 0.04), min_size=3, max_size=3),
    st.floats(1, 5),
    HARDWARE,
)
def test_more_noise_makes_the_same_effect_less_sure(key, ratio, old, new, louder, hardware):  # noqa: PLR0917
    def duel(factor):
        def arm(level, noise):
            mean = sum(noise) / len(noise)
            return tuple((level * math.exp(factor * (each - mean)),) for each in noise)

        both = Evidence(
            metric=key, today=(), stored=(), old=arm(20.0, old), new=arm(20.0 * ratio, new)
        )
        return judged(both, hardware=hardware).verdict

    calm, loud = duel(1.0), duel(louder)
    assert loud.effect == pytest.approx(calm.effect, abs=1e-9)
    if calm.effect < 0:
        assert loud.p >= calm.p * (1 - 1e-9)
    if calm.outcome is Outcome.INCONCLUSIVE:
        assert loud.outcome in {Outcome.INCONCLUSIVE, Outcome.UNSTABLE}


@given(evidences(), HARDWARE)
def test_an_engine_is_only_blamed_beyond_tolerance_and_limit(evidence, hardware):
    found = judged(evidence, hardware=hardware)
    verdict = found.verdict
    if verdict.outcome is Outcome.REGRESSED:
        policy = policy_for(hardware, verdict.metric)
        assert found.need is None
        assert math.log1p(verdict.effect) < -policy.tolerance_log
        assert found.p == verdict.p <= LIMIT
        gross = math.log1p(verdict.effect) < -5 * policy.tolerance_log
        least = min(3, policy.unpaired_starts) if gross else policy.unpaired_starts
        assert verdict.paired or verdict.starts >= least
    if verdict.outcome is Outcome.INCONCLUSIVE:
        assert verdict.visible >= verdict.tolerance - 1e-12
    if found.need is Need.PAIR:
        assert evidence.can_pair


def run(factor=1.0, *, failures=0):
    """A repeat of 700 requests at once, with latencies times `factor`."""
    return [
        RequestRecord(
            index=index,
            sent_ns=0,
            chunk_ns=tuple(round(at * MS * factor) for at in (100, 120, 140)),
            chunk_tokens=(1, 1, 1),
            prompt_tokens=8,
            output_tokens=3,
            asked_output_tokens=3,
            ended_ns=0,
            error="refused" if index < failures else None,
        )
        for index in range(700)
    ]


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("hardware", ["cpu", "h200"])
@pytest.mark.parametrize("key", DIRECTED)
def test_a_slowdown_injected_into_a_metric_is_flagged_in_its_direction(key, hardware, paired):
    options = {"slo": SLO(ttft_ms=400), "gpu_memory_gib": 131.0}
    healthy, slower = compute(run(), **options), compute(run(16.0, failures=7), **options)
    good, bad = healthy[key], slower[key]
    assert good is not None
    assert (bad > good) is (describe(key)[0].direction == "lower")

    def outcome(before, after):
        starts = {"old": ((before,) * 3,) * 5, "new": ((after,) * 3,) * 5} if paired else {}
        evidence = Evidence(
            metric=key,
            today=((after,) * 3,) * 5,
            stored=tuple(StoredStart(session, (before,) * 3) for session in "abcde"),
            **starts,
        )
        return judged(evidence, hardware=hardware).verdict.outcome

    assert outcome(good, bad) is Outcome.REGRESSED
    assert outcome(bad, good) is Outcome.IMPROVED
    assert outcome(good, good) is Outcome.PASS


class Engine:
    """Draws starts as a machine with the noise of a policy gives them."""

    def __init__(self, rng, policy, *, outliers=0.05):
        self.rng, self.policy, self.outliers = rng, policy, outliers

    def session(self):
        return self.rng.gauss(0, self.policy.drift)

    def start(self, session, factor=1.0):
        level = session + self.rng.gauss(0, self.policy.noise)
        return tuple(
            20.0
            * factor
            * math.exp(level + self.rng.gauss(0, 0.7 * self.policy.noise))
            * (1.08 if self.rng.random() < self.outliers else 1)
            for _ in range(3)
        )

    def stored(self, count):
        return tuple(
            StoredStart(str(number), self.start(self.session())) for number in range(count)
        )


def settle(engine, *, key, factor, stored, can_pair):
    """Buy what the judge asks for until it is settled; the verdict and what it took."""
    session = engine.session()
    evidence = Evidence(
        metric=key,
        today=(engine.start(session, factor),),
        stored=engine.stored(stored),
        can_pair=can_pair,
    )
    while True:
        found = assess(evidence, engine.policy, prior=default_prior(engine.policy), p_limit=LIMIT)
        if found.need is None:
            break
        if found.need is Need.START:
            evidence = replace(evidence, today=(*evidence.today, engine.start(session, factor)))
        else:
            evidence = replace(
                evidence,
                old=(*evidence.old, engine.start(session)),
                new=(*evidence.new, engine.start(session, factor)),
            )
    starts = len(evidence.today) + len(evidence.old) + len(evidence.new)
    return found.verdict.outcome, starts


def settled(*, hardware, factor, stored, can_pair, count, seed=1, key="tpot_ms.p50"):
    engine = Engine(random.Random(seed), policy_for(hardware, key))  # noqa: S311 - noise, not secrets.
    found = [
        settle(engine, key=key, factor=factor, stored=stored, can_pair=can_pair)
        for _ in range(count)
    ]
    starts = sum(number for _, number in found) / count
    return Counter(outcome for outcome, _ in found), starts


@pytest.mark.parametrize("can_pair", [False, True])
@pytest.mark.parametrize(("hardware", "stored"), [("h200", 5), ("cpu", 3), ("cpu", 1)])
def test_an_engine_that_did_not_change_is_cleared_cheaply(hardware, stored, can_pair):
    found, starts = settled(
        hardware=hardware, factor=1.0, stored=stored, can_pair=can_pair, count=1000
    )
    assert found[Outcome.REGRESSED] == 0
    assert found[Outcome.PASS] + found[Outcome.IMPROVED] >= 980
    assert starts <= 1.5


@pytest.mark.parametrize(
    ("hardware", "stored", "can_pair", "factor", "share"),
    [
        ("h200", 5, True, 1 / 0.95, 0.90),
        ("h200", 5, True, 1 / 0.90, 0.99),
        ("h200", 5, False, 1 / 0.90, 0.95),
        ("cpu", 3, True, 2.0, 0.90),
        ("cpu", 3, False, 2.5, 0.90),
    ],
)
def test_a_loss_is_caught(hardware, stored, can_pair, factor, share):
    found, _ = settled(
        hardware=hardware, factor=factor, stored=stored, can_pair=can_pair, count=400
    )
    assert found[Outcome.REGRESSED] >= share * 400
