import math
import random
import statistics

import pytest

from pytest_moeperf import calibration, judge
from pytest_moeperf.calibration import Gate, History, QuietNights, Replayed, replay
from pytest_moeperf.judge import Night, StoredStart
from pytest_moeperf.policy import policy_for
from pytest_moeperf.records import Outcome, Verdict

THROUGHPUT, LATENCY = "output_throughput", "tpot_ms.p50"
POLICY = policy_for("h200", THROUGHPUT)
PRIOR = judge.default_prior(POLICY)


def stored(*values, sessions=5):
    return tuple(
        StoredStart(session=f"s{index % sessions}", repeats=(value, value * 1.001, value * 0.999))
        for index, value in enumerate(values)
    )


QUIET = stored(100, 100.3, 99.8, 100.1, 99.9, 100.2, 99.7, 100.0, 100.1, 99.9)


def history(starts=QUIET, metric=THROUGHPUT):
    return History.of(metric, starts, policy_for("h200", metric), PRIOR)


class Scripted:
    """A cell of one gate whose starts are listed; counts what was asked for."""

    def __init__(self, today, old=(), new=()):
        self.today, self.old, self.new = list(today), list(old), list(new)
        self.asked = []

    def start(self):
        self.asked.append("start")
        return ((self.today.pop(0),) * 3,)

    def pair(self):
        self.asked.append("pair")
        return ((self.old.pop(0),) * 3,), ((self.new.pop(0),) * 3,)


def draws(seed=1):
    return random.Random(seed)  # noqa: S311 - statistics, not secrets


def gate(metric=THROUGHPUT):
    return Gate(metric=metric, policy=POLICY, prior=PRIOR, stored=QUIET)


def test_a_sound_cell_ends_after_one_start():
    supply, night = Scripted([100.1]), Night(60)
    made = replay([gate()], supply, night)
    assert ([verdict.outcome for verdict in made.verdicts], made.starts) == ([Outcome.PASS], 1)
    assert supply.asked == ["start"]
    assert (night.taken, night.rejected) == (1, 0)


def test_a_slow_engine_is_asked_for_pairs_and_blamed():
    supply, night = Scripted([90, 90], old=[100] * 5, new=[90] * 5), Night(60)
    made = replay([gate()], supply, night)
    assert made.regressed
    assert supply.asked == ["start"] * 2 + ["pair"] * 3
    assert made.starts == 2 + 2 * 3
    assert night.rejected == 1


def test_without_an_old_engine_it_takes_more_starts():
    supply = Scripted([92] * 10)
    made = replay([gate()], supply, Night(60), can_pair=False)
    assert made.regressed
    assert supply.asked == ["start"] * POLICY.unpaired_starts
    assert not made.verdicts[0].paired


def test_a_slow_machine_is_not_the_engine():
    made = replay([gate()], Scripted([90, 90], old=[90] * 5, new=[90] * 5), Night(60))
    assert made.verdicts[0].outcome is Outcome.ENV_DRIFT
    assert not made.regressed


class Failing(Scripted):
    """After the first start none has a value."""

    def start(self):
        (found,) = super().start()
        return (found if len(self.asked) == 1 else (),)


def test_a_cell_that_no_start_can_settle_ends_all_the_same():
    made = replay([gate()], Failing([92] * 60), Night(60), can_pair=False)
    assert (made.starts, made.verdicts[0].outcome) == (60, Outcome.INCONCLUSIVE)


class Twins(Scripted):
    """Two gates: the one that was listed, and one that never changes."""

    def start(self):
        return (*super().start(), (100.0,) * 3)

    def pair(self):
        old, new = super().pair()
        return (*old, (100.0,) * 3), (*new, (100.0,) * 3)


def test_a_gate_that_is_settled_stays_so_while_another_asks():
    supply = Twins([90, 90], old=[100] * 5, new=[90] * 5)
    made = replay([gate(), gate()], supply, Night(60))
    assert [verdict.outcome for verdict in made.verdicts] == [Outcome.REGRESSED, Outcome.PASS]
    assert made.verdicts[1].starts == 1


def test_a_history_keeps_the_spread_of_its_starts():
    starts = stored(96, 104, 98, 102, 100, 101, 99, 103, 97, 100)
    made = history(starts)
    rng = draws()
    drawn = [
        statistics.median(map(math.log, made.start(rng, made.session(rng)))) for _ in range(4000)
    ]
    medians = [math.log(start.repeats[0]) for start in starts]
    assert statistics.fmean(drawn) == pytest.approx(statistics.fmean(medians), abs=0.002)
    assert statistics.stdev(drawn) == pytest.approx(statistics.stdev(medians), rel=0.4)


def test_what_centring_takes_from_a_spread_is_given_back():
    # Two of a group lie ln 1.1 from their mean; their standard deviation is the root of two of it.
    away = math.log(1.1) * math.sqrt(2)
    one_session, two_sessions = (history(stored(100, 121, sessions=n)) for n in (1, 2))
    assert (one_session.sessions, one_session.starts) == ((), pytest.approx((-away, away)))
    assert (two_sessions.sessions, two_sessions.starts) == (pytest.approx((-away, away)), ())


def test_a_history_redraws_its_baseline_with_the_same_sessions():
    made = history(stored(*[100 + index / 10 for index in range(7)], sessions=3))
    redrawn = made.gate(draws())
    assert made.layout == (3, 2, 2)
    assert [start.session for start in redrawn.stored] == [
        *["session 0"] * 3,
        *["session 1"] * 2,
        *["session 2"] * 2,
    ]
    assert len({start.repeats for start in redrawn.stored}) > 1


@pytest.mark.parametrize("metric", [THROUGHPUT, LATENCY])
def test_a_loss_makes_every_metric_worse(metric):
    made = history(metric=metric)
    calm, slow = (made.start(draws(), made.level, loss=loss) for loss in (0.0, 0.1))
    worse = [after < before for before, after in zip(calm, slow, strict=True)]
    assert all(worse) if metric == THROUGHPUT else not any(worse)


def test_two_starts_are_too_few_to_be_replayed():
    assert not history(stored(100, 101)).replayable
    assert history(stored(100, 101, 99)).replayable
    assert not history((StoredStart(session="a", repeats=()),) * 5).replayable


def test_quiet_starts_raise_no_alarm_and_show_small_losses():
    quiet = calibration.false_alarms([history()] * 3, draws(), nights=20, can_pair=True)
    assert (quiet.alarms, quiet.red) == ([0, 0, 0], 0)
    assert all(1 <= starts < 1.5 for starts in quiet.starts)
    caught = calibration.smallest_caught(history(), draws(), gates=60, replays=20, can_pair=True)
    assert -0.08 < caught < -0.03


def test_noisy_starts_show_large_losses_only():
    noisy = history(stored(80, 125, 90, 110, 100, 85, 115, 95, 105, 120, sessions=1))
    caught = calibration.smallest_caught(noisy, draws(), gates=60, replays=10, can_pair=True)
    assert caught is None or caught < -0.15


def test_both_arms_of_a_pair_are_of_one_session():
    """Sessions 15 % apart hide no small loss from an A/B, as they would if each arm had its own."""
    drifting = history(stored(80, 125, 90, 110, 100, 85, 115, 95, 105, 120, sessions=10))
    caught = calibration.smallest_caught(drifting, draws(), gates=60, replays=10, can_pair=True)
    assert -0.1 < caught < 0


def test_a_night_with_two_alarms_is_one_red_night(monkeypatch):
    nights = []

    def alarm(_gates, _supply, night, *, can_pair):
        assert can_pair
        nights.append(night)
        return Replayed((Verdict(metric=THROUGHPUT, outcome=Outcome.REGRESSED, reason="slow"),), 4)

    monkeypatch.setattr(calibration, "replay", alarm)
    made = calibration.false_alarms([history()] * 3, draws(), nights=2, can_pair=True)
    assert (made.alarms, made.red, made.monthly) == ([2, 2, 2], 2, 30.0)
    assert made.starts == [4.0] * 3
    # The gates of a night share its chance of a false alarm.
    assert [(night.gates, nights.count(night)) for night in nights] == [(3, 3)] * 6


def test_the_upper_bound_of_no_alarm_is_the_rule_of_three():
    quiet = QuietNights(nights=300, alarms=[0], starts=[1.0])
    assert quiet.monthly == 0.0
    assert quiet.monthly_at_most == pytest.approx(30 * 3 / 300, rel=0.01)
    assert QuietNights(nights=2, alarms=[2], starts=[1.0], red=2).monthly_at_most == 30.0


@pytest.mark.parametrize("red", [1, 4])
def test_the_upper_bound_is_where_so_few_red_nights_are_5_percent_likely(red):
    share = QuietNights(nights=100, alarms=[red], starts=[1.0], red=red).monthly_at_most / 30
    likely = sum(
        math.comb(100, count) * share**count * (1 - share) ** (100 - count)
        for count in range(red + 1)
    )
    assert likely == pytest.approx(0.05)
