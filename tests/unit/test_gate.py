import math
from dataclasses import replace

import pytest

from pytest_moeperf import gate
from pytest_moeperf.baseline import Baseline, EngineProvenance, KnownRegression
from pytest_moeperf.errors import UsageError
from pytest_moeperf.judge import Need, Prior
from pytest_moeperf.records import (
    CellResult,
    Finding,
    GpuReading,
    Outcome,
    Sample,
    StartRecord,
    Verdict,
)

KEY = "tpot_ms.p50"


def start(*values, key=KEY, session="today", speed=None, cores="2"):
    environment = {"server_cores": cores}
    if speed is not None:
        environment[gate.SPEED] = speed
    return StartRecord(
        start_id="s",
        session_id=session,
        recorded_at="2026-11-22T00:00:00Z",
        startup_s=1.0,
        engine_version="0.32.0",
        environment=environment,
        repeats=tuple(Sample(seed=seed, values={key: value}) for seed, value in enumerate(values)),
    )


def started(value, *, key=gate.STARTUP, caches="warm", session="today"):
    """A start that tells whether the engine had to compile what it compiles only once."""
    return replace(start(value, key=key, session=session), environment={gate.ENGINE_CACHES: caches})


def on_gpus(begun, *uuids):
    """The start with these GPUs in all its repeats."""
    gpus = tuple(GpuReading(uuid=uuid, samples=9) for uuid in uuids)
    return replace(begun, repeats=tuple(replace(each, gpus=gpus) for each in begun.repeats))


@pytest.fixture
def stored(fingerprint):
    """Builds a baseline of starts of 20 ms, each in a session of its own."""

    def store(*, starts=3, key=KEY, speed=None, **changes):
        fields = {
            "cell": "serving/c",
            "fingerprint": fingerprint,
            "starts": tuple(
                start(20.0, 20.1, 19.9, key=key, session=f"s{number}", speed=speed)
                for number in range(starts)
            ),
            "engine": EngineProvenance(distribution="vllm", version="0.32.0"),
            "created": "2026-11-22T00:00:00Z",
            "expires": "2027-02-20",
            "tool": "0.1.0",
        }
        return Baseline(**{**fields, **changes})

    return store


@pytest.fixture
def assessed(fingerprint, stored):
    """Judges two equal starts against three stored ones of 20 ms."""

    def judge(now, *, key=KEY, baseline=None, hardware="cpu", old=(), new=(), starts=2, **options):
        differing = options.pop("differing", {})
        further = options.pop("further", (now,) * (starts - 1))
        cell = CellResult(
            cell="serving/c",
            test="t",
            server="mini-moe",
            engine="vllm==0.32.0",
            workload="w",
            fingerprint=replace(fingerprint, **differing),
            start=now,
            further=tuple(further),
            old=tuple(old),
            new=tuple(new),
        )
        options.setdefault("p_limit", 0.001)
        reference = gate.Reference(stored=baseline or stored(), date=options.pop("date", ""))
        return gate.judge_metric(cell, key, reference, hardware=hardware, **options)

    return judge


@pytest.fixture
def judged(assessed):
    """Only the verdict."""
    return lambda *args, **options: assessed(*args, **options).verdict


def test_twice_as_slow_is_a_regression_that_names_what_differs(judged):
    verdict = judged(start(40.0, 40.5, 39.5, cores="1"))
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.change == pytest.approx(1.0, abs=0.01)
    assert verdict.notes == (
        "the server may run on 1 core today; it was 2 cores when the baseline was recorded",
    )


def test_the_surroundings_of_the_latest_start_are_told(judged):
    verdict = judged(start(40.0), further=[start(40.0, cores="1")])
    assert verdict.notes == (
        "the server may run on 1 core today; it was 2 cores when the baseline was recorded",
    )


def test_the_same_figure_passes(judged):
    assert judged(start(20.0, 20.2, 19.8), starts=1).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("before", "today", "outcome"),
    [
        (["GPU-a"], ["GPU-a"], Outcome.REGRESSED),
        (["GPU-a"], ["GPU-b"], Outcome.INCONCLUSIVE),
        # A driver that tells nothing leaves nothing to compare.
        (["GPU-a"], [], Outcome.REGRESSED),
        # Of several, a single one that was not there before is another one.
        (["GPU-a", "GPU-b"], ["GPU-a", "GPU-b"], Outcome.REGRESSED),
        (["GPU-a", "GPU-b"], ["GPU-a"], Outcome.REGRESSED),
        (["GPU-a", "GPU-b"], ["GPU-a", "GPU-c"], Outcome.INCONCLUSIVE),
    ],
)
def test_a_small_loss_on_another_gpu_is_not_blamed_on_the_engine(
    judged, stored, before, today, outcome
):
    old = tuple(on_gpus(start(20.0, 20.1, 19.9, session=f"s{n}"), *before) for n in range(5))
    baseline = replace(stored(), starts=old)
    now = on_gpus(start(21.0, 21.1, 20.9), *today)
    assert judged(now, baseline=baseline, hardware="h200", starts=5).outcome is outcome


@pytest.mark.parametrize(
    ("key", "caches", "outcome"),
    [
        ("startup_s", "cold", Outcome.INCOMPARABLE),
        ("startup_s", "warm", Outcome.PASS),
        ("tpot_ms.p50", "cold", Outcome.PASS),
    ],
)
def test_a_start_that_compiled_for_the_first_time_is_not_held_against_later_ones(
    stored, fingerprint, key, caches, outcome
):
    cell = CellResult(
        cell="serving/c",
        test="t",
        server="s",
        engine="vllm==0.24.0",
        workload="w",
        fingerprint=fingerprint,
        start=started(60.0, key=key, caches=caches),
    )
    usual = tuple(started(60.0, key=key, session=f"s{number}") for number in range(3))
    warm = replace(stored(), starts=usual)
    reference = gate.Reference(stored=warm)
    found = gate.judge_metric(cell, key, reference, hardware="h200", p_limit=0.001)
    assert found.verdict.outcome is outcome


@pytest.mark.parametrize("caches", ["cold", "warm"])
def test_a_start_up_time_that_is_missing_is_invalid(judged, stored, caches):
    now = started(1.0, key=KEY, caches=caches)
    verdict = judged(now, key=gate.STARTUP, baseline=stored(key=gate.STARTUP), starts=1)
    assert verdict.outcome is Outcome.INVALID


def test_a_further_start_that_was_cold_counts_for_nothing(judged, stored):
    usual = tuple(started(60.0, session=f"s{number}") for number in range(5))
    baseline = replace(stored(), starts=usual)
    further = [started(200.0, caches="cold")]
    options = {"key": gate.STARTUP, "baseline": baseline, "hardware": "h200"}
    verdict = judged(started(60.0), further=further, **options)
    assert (verdict.outcome, verdict.starts) == (Outcome.PASS, 1)


def test_a_cold_start_of_the_old_engine_hides_no_slow_start_up(assessed, stored):
    """The A/B is where the old engine first runs on a machine: 200 s with what it compiles."""
    usual = tuple(started(60.0, session=f"s{number}") for number in range(5))
    options = {"key": gate.STARTUP, "baseline": replace(stored(), starts=usual)}
    options |= {"hardware": "h200", "can_pair": True}
    # Twice as long, where 1.75 times are accepted.
    slow, warm, cold = started(120.0), started(60.0), started(200.0, caches="cold")
    found = assessed(slow, old=[warm] * 3, new=[slow] * 3, **options)
    assert (found.verdict.outcome, found.verdict.paired) == (Outcome.REGRESSED, True)
    # A cold start is none of the three that it takes.
    found = assessed(slow, old=[cold, warm, warm], new=[slow] * 3, **options)
    assert (found.verdict.outcome, found.need) == (Outcome.INCONCLUSIVE, Need.PAIR)
    found = assessed(slow, old=[cold, *[warm] * 3], new=[slow] * 4, **options)
    assert (found.verdict.outcome, found.verdict.paired) == (Outcome.REGRESSED, True)


def test_one_slow_start_asks_for_another(assessed):
    assert assessed(start(40.0), starts=1).need is Need.START


def test_repeats_that_were_discarded_count_for_nothing(judged):
    slow = Sample(
        seed=9, values={KEY: 900.0}, findings=(Finding(code="preemptions", message="full"),)
    )
    now = start(20.0)
    assert judged(replace(now, repeats=(slow, *now.repeats, slow)), starts=1).outcome == "PASS"


def test_a_machine_that_copies_half_as_fast_is_to_blame_itself(judged, stored):
    verdict = judged(start(40.0, 40.5, 39.5, speed="7.0"), baseline=stored(speed="14.0"))
    assert verdict.outcome is Outcome.ENV_DRIFT
    assert "copies memory at 7.0 GiB/s today, 14.0 GiB/s when" in verdict.reason


@pytest.mark.parametrize(
    ("speed", "outcome"),
    [
        # The machine was fast once, but it is not slow today.
        ("13.5", Outcome.REGRESSED),
        # Half of the tolerance of 50 % below 14 GiB/s is 10.5 GiB/s.
        ("10.6", Outcome.REGRESSED),
        ("10.4", Outcome.ENV_DRIFT),
    ],
)
def test_the_usual_speed_of_a_machine_is_its_median(judged, stored, speed, outcome):
    starts = tuple(
        start(20.0, 20.1, 19.9, session=f"s{n}", speed=each)
        for n, each in enumerate(("14.0", "13.0", "30.0"))
    )
    baseline = replace(stored(), starts=starts)
    assert judged(start(40.0, speed=speed), baseline=baseline).outcome is outcome


@pytest.mark.parametrize("speed", ["fast", "nan", "inf", "-1", "0", None])
def test_a_stored_speed_that_is_no_speed_excuses_nothing(judged, stored, speed):
    verdict = judged(start(40.0, 40.5, 39.5, speed="7.0"), baseline=stored(speed=speed))
    assert verdict.outcome is Outcome.REGRESSED


def test_a_machine_that_is_as_fast_as_ever_is_not_to_blame(judged, stored):
    verdict = judged(start(40.0, 40.5, 39.5, speed="13.5"), baseline=stored(speed="14.0"))
    assert verdict.outcome is Outcome.REGRESSED


def test_a_gpu_is_not_excused_by_the_memory_of_its_host(judged, stored):
    now = start(40.0, 40.5, 39.5, speed="7.0")
    verdict = judged(now, baseline=stored(speed="14.0"), hardware="h200", starts=5)
    assert verdict.outcome is Outcome.REGRESSED


def test_a_count_that_allows_no_loss_is_not_excused_by_a_slow_machine(judged, stored):
    key = "failed_requests"
    zero = tuple(start(0.0, key=key, session=f"s{n}", speed="14.0") for n in range(3))
    now = start(2.0, key=key, speed="7.0")
    verdict = judged(now, key=key, baseline=replace(stored(), starts=zero), starts=1)
    assert verdict.outcome is Outcome.REGRESSED


def test_an_a_b_is_not_excused_by_a_slow_machine(judged, stored):
    slow, usual = start(60.0, speed="7.0", cores="1"), start(20.0, speed="7.0")
    verdict = judged(slow, baseline=stored(speed="14.0"), old=[usual] * 3, new=[slow] * 3)
    assert (verdict.outcome, verdict.paired) == (Outcome.REGRESSED, True)
    assert len(verdict.notes) == 1
    assert verdict.notes[0].startswith("the server may run on 1 core today")


def test_what_both_arms_of_an_a_b_share_is_no_difference(judged):
    """Though the baseline had 2 cores."""
    slow, usual = start(60.0, cores="1"), start(20.0, cores="1")
    verdict = judged(slow, old=[usual] * 3, new=[slow] * 3)
    assert (verdict.outcome, verdict.paired, verdict.notes) == (Outcome.REGRESSED, True, ())


def test_another_machine_is_incomparable_and_the_field_is_named(judged):
    verdict = judged(start(40.0), differing={"cpu_cores": 4})
    assert verdict.outcome is Outcome.INCOMPARABLE
    assert "usable CPU cores is 4 here and 2 in the baseline" in verdict.reason


def test_on_another_machine_the_old_engine_judges_alone(assessed):
    waiting = assessed(start(20.0), differing={"cpu_cores": 4}, can_pair=True)
    assert (waiting.verdict.outcome, waiting.need) == (Outcome.INCOMPARABLE, Need.PAIR)
    arms = {"old": [start(10.0)] * 3, "new": [start(20.0)] * 3}
    found = assessed(start(20.0), differing={"cpu_cores": 4}, **arms)
    assert (found.verdict.outcome, found.verdict.paired) == (Outcome.REGRESSED, True)


def test_an_expired_baseline_is_none(judged, stored):
    old = stored(expires="2026-11-21")
    verdict = judged(start(20.0), baseline=old, date="2026-11-22")
    assert verdict.outcome is Outcome.NO_BASELINE
    assert verdict.reason == (
        "tpot_ms.p50 is 20.0 ms and has no baseline: the stored one expired on 2026-11-21; run "
        "`moeperf baseline refresh`"
    )
    assert judged(start(20.0), baseline=old, date="2026-11-21").outcome is Outcome.PASS
    assert judged(start(20.0), baseline=old).outcome is Outcome.PASS


def test_a_cell_without_a_baseline_says_so(fingerprint):
    cell = CellResult(
        cell="c",
        test="t",
        server="s",
        engine="e",
        workload="w",
        fingerprint=fingerprint,
        start=start(20.0),
    )
    reference = gate.Reference(stored=None)
    found = gate.judge_metric(cell, KEY, reference, hardware="cpu", p_limit=0.001)
    assert (found.verdict.outcome, found.need) == (Outcome.NO_BASELINE, None)


def test_a_cell_without_a_start_is_invalid(fingerprint, stored):
    cell = CellResult(
        cell="c",
        test="t",
        server="s",
        engine="e",
        workload="w",
        fingerprint=fingerprint,
        start=None,
    )
    reference = gate.Reference(stored=stored())
    found = gate.judge_metric(cell, KEY, reference, hardware="cpu", p_limit=0.001)
    assert (found.verdict.outcome, found.verdict.notes) == (Outcome.INVALID, ())


ON_FILE = KnownRegression(
    metric=KEY,
    reason="slow on CPU",
    issue="https://example.org/1",
    expires="2026-12-31",
    extent=1.1,
)
RATE = "output_throughput"


@pytest.fixture
def known(stored):
    """A baseline of 20 ms, with up to 42 ms on file."""
    return stored(known=(ON_FILE,), expires="2027-01-31")


@pytest.fixture
def stored_and_judged(judged, stored):
    """Judges five starts of a metric against 20 in its unit, with a loss of it on file."""

    def judge(key, value, *, extent):
        baseline = stored(key=key, known=(replace(ON_FILE, metric=key, extent=extent),))
        now = start(value, key=key)
        return judged(now, key=key, baseline=baseline, hardware="h200", starts=5)

    return judge


def test_a_loss_that_is_on_file_is_expected(judged, known):
    verdict = judged(start(40.0), baseline=known, date="2026-12-31")
    assert verdict.outcome is Outcome.EXPECTED
    assert verdict.reason.endswith(
        "; a known regression until 2026-12-31: slow on CPU (https://example.org/1)"
    )


def test_a_loss_beyond_what_is_on_file_is_a_regression(judged, known):
    verdict = judged(start(60.0), baseline=known, date="2026-12-31")
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.reason.endswith(
        "; more than the known regression of 110 % allows (up to 42.0 ms): slow on CPU "
        "(https://example.org/1)"
    )


@pytest.mark.parametrize(
    ("key", "accepted", "too_bad", "reach"),
    [
        # 20 ms times 1.08 is 21.6 ms; 20 tok/s divided by 1.08 is 18.52 tok/s, 7.4 % less.
        (KEY, 21.5, 21.7, "(up to 21.6 ms)"),
        (RATE, 18.6, 18.45, "(down to 18.5 tok/s)"),
    ],
)
def test_what_is_on_file_bounds_a_latency_and_a_rate_as_a_tolerance_does(
    stored_and_judged, key, accepted, too_bad, reach
):
    verdicts = [stored_and_judged(key, value, extent=0.08) for value in (accepted, too_bad)]
    assert [verdict.outcome for verdict in verdicts] == [Outcome.EXPECTED, Outcome.REGRESSED]
    allowed = f"; more than the known regression of 8 % allows {reach}: slow on CPU"
    assert allowed in verdicts[1].reason


@pytest.mark.parametrize(("value", "outcome"), [(39.9, "EXPECTED"), (40.1, "REGRESSED")])
def test_a_loss_of_100_percent_is_twice_the_latency(stored_and_judged, value, outcome):
    assert stored_and_judged(KEY, value, extent=1).outcome == outcome


def test_a_rate_of_0_is_below_all_that_can_be_on_file(stored_and_judged):
    assert stored_and_judged(RATE, 0.0, extent=10).outcome is Outcome.REGRESSED


def test_an_entry_past_its_date_excuses_nothing(judged, known):
    assert judged(start(40.0), baseline=known, date="2027-01-01").outcome is Outcome.REGRESSED


def test_a_loss_on_file_that_is_gone_must_go(judged, known):
    verdict = judged(start(20.0), baseline=known, date="2026-12-31")
    assert verdict.outcome is Outcome.UNEXPECTED_PASS
    assert "; but a regression is on file, which must go now that it is over: " in verdict.reason


def test_what_is_on_file_does_not_settle_a_doubt(assessed, known):
    found = assessed(start(40.0), baseline=known, date="2026-12-31", starts=1)
    assert (found.verdict.outcome, found.need) == (Outcome.INCONCLUSIVE, Need.START)


def test_what_is_on_file_is_held_against_the_baseline_in_an_a_b_as_well(judged, stored):
    """The old engine has the known loss already; the new one lost as much again."""
    baseline = stored(starts=5, known=(replace(ON_FILE, extent=0.08),))
    old, new = start(21.4), start(22.8)
    # 14 % above the baseline, 8 % are on file; 6.5 % above the old engine, 3 % are accepted.
    options = {"baseline": baseline, "hardware": "h200", "date": "2026-12-01"}
    assert judged(new, starts=5, **options).outcome is Outcome.REGRESSED
    paired = judged(new, old=[old] * 3, new=[new] * 3, **options)
    assert (paired.outcome, paired.paired) == (Outcome.REGRESSED, True)
    assert "; more than the known regression of 8 % allows (up to 21.6 ms)" in paired.reason


def test_engines_that_both_have_the_known_loss_are_not_over_it(judged, stored):
    key = "ttft_ms.p50"
    loss = replace(ON_FILE, metric=key, extent=0.5)
    slow = start(27.0, key=key)  # 35 % above 20 ms, 30 % are accepted.
    options = {"key": key, "hardware": "h200", "date": "2026-12-01"}
    options |= {"baseline": stored(starts=1, key=key, known=(loss,))}
    verdict = judged(slow, old=[slow] * 3, new=[slow] * 3, **options)
    assert (verdict.outcome, verdict.paired) == (Outcome.EXPECTED, True)


def test_the_noise_of_many_cells_is_their_prior(stored):
    quiet = [start(20.0, session="a"), start(20.2, session="a"), start(20.1, session="a")]
    cells = [stored(starts=0) for _ in range(12)]
    cells = [replace(each, starts=tuple(quiet)) for each in cells]
    prior = gate.prior_for(cells, KEY, hardware="h200")
    # Three starts half a percent apart: a variance of 0.000025, in all cells alike.
    assert prior.df == 60
    assert prior.variance == pytest.approx(2.5e-5 * 1.78107, rel=0.01)


def test_too_few_cells_leave_the_table_in_force(stored):
    prior = gate.prior_for([stored(), stored()], KEY, hardware="cpu")
    assert prior == Prior(pytest.approx(0.07**2), 20)


def cell(*outcomes, invalid=False):
    verdicts = tuple(
        Verdict(metric=f"m{number}", outcome=outcome, reason="slow")
        for number, outcome in enumerate(outcomes)
    )
    return CellResult(
        cell="c",
        test="t",
        server="s",
        engine="e",
        workload="w",
        fingerprint=None,
        start=None,
        invalid=invalid,
        verdicts=verdicts,
    )


def test_a_metric_that_was_good_once_stays_good():
    first = cell(Outcome.PASS, Outcome.REGRESSED, Outcome.INCONCLUSIVE)
    second = cell(Outcome.REGRESSED, Outcome.PASS, Outcome.REGRESSED)
    best = gate.best_look(first, second, look=2)
    assert [verdict.outcome for verdict in best.verdicts] == ["PASS", "PASS", "REGRESSED"]
    assert best.verdicts[2].reason == "slow; no better in 2 looks at it"
    assert gate.doubtful(best)
    assert not gate.doubtful(gate.best_look(best, cell(*[Outcome.PASS] * 3), look=3))


def test_an_invalid_look_changes_nothing():
    first = cell(Outcome.REGRESSED)
    assert gate.best_look(first, cell(Outcome.INVALID, invalid=True), look=2) is first


@pytest.mark.parametrize("outcome", ["PASS", "IMPROVED", "RECORDED", "NO_BASELINE", "INVALID"])
def test_other_outcomes_need_no_second_look(outcome):
    assert not gate.doubtful(cell(Outcome(outcome)))


def test_ratios_are_of_the_turns_that_both_have():
    above = {0: 10.0, 2: 30.0, 3: 8.0, 4: None}
    below = {0: 5.0, 1: 2.0, 3: 4.0, 4: 1.0}
    assert gate.paired_ratios(above, below) == (2.0, 2.0)


def test_ratios_of_cells_that_had_no_turn_together_go_by_their_order():
    above, below = {0: 10.0, 1: None, 2: 30.0, 3: 8.0}, {7: 5.0, 8: 2.0, 9: 0.0}
    assert gate.paired_ratios(above, below) == (2.0,)


@pytest.mark.parametrize(
    ("value", "outcome"), [(1.3, "REGRESSED"), (1.4, "PASS"), (3.0, "PASS"), (3.1, "REGRESSED")]
)
def test_a_prediction_holds_within_its_factor(value, outcome):
    verdict = gate.judge_prediction("growth", [value], predicted=2.0, factor=1.5, why="bytes")
    assert verdict.outcome == outcome
    assert verdict.expected == 2.0
    assert verdict.change == pytest.approx(value / 2 - 1)


@pytest.mark.parametrize(("value", "outcome"), [(0.0, "PASS"), (0.1, "REGRESSED")])
def test_a_prediction_of_zero_is_a_verdict(value, outcome):
    verdict = gate.judge_prediction("preemptions", [value], predicted=0.0, factor=1.1, why="none")
    assert (verdict.outcome, verdict.expected, verdict.change) == (outcome, 0.0, None)


def test_a_prediction_may_be_meant_to_the_letter():
    verdict = gate.judge_prediction("growth", [2.0], predicted=2.0, factor=1, why="bytes")
    assert verdict.outcome is Outcome.PASS


@pytest.mark.parametrize("factor", [math.nan, 0.99, 0, -1.5])
def test_a_factor_that_is_no_number_from_1_up_is_refused(factor):
    with pytest.raises(UsageError) as error:
        gate.judge_prediction("growth", [2.0], predicted=2.0, factor=factor, why="bytes")
    assert str(error.value) == f"growth: factor {factor} must be a number from 1 up"


def test_a_prediction_that_is_no_number_is_refused():
    with pytest.raises(UsageError) as error:
        gate.judge_prediction("growth", [2.0], predicted=math.nan, factor=1.5, why="bytes")
    assert str(error.value) == "growth: the bound nan is no number"
