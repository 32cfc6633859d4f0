from dataclasses import replace

import pytest

from pytest_moeperf import gate
from pytest_moeperf.baseline import Baseline
from pytest_moeperf.records import CellResult, Outcome, Sample, StartRecord, Verdict


def start(*values, speed=None, cores="2"):
    environment = {"server_cores": cores}
    if speed is not None:
        environment[gate.SPEED] = speed
    return StartRecord(
        start_id="s",
        session_id="s",
        recorded_at="2026-11-22T00:00:00Z",
        startup_s=1.0,
        engine_version="0.32.0",
        environment=environment,
        repeats=tuple(
            Sample(seed=seed, values={"tpot_ms.p50": value}) for seed, value in enumerate(values)
        ),
    )


@pytest.fixture
def judged(fingerprint):
    """Judges a start against three stored ones of 20 ms."""

    def judge(now, *, stored_speed=None, hardware="cpu", **differing):
        cell = CellResult(
            cell="serving/c",
            test="t",
            server="mini-moe",
            engine="vllm==0.32.0",
            workload="w",
            fingerprint=replace(fingerprint, **differing),
            start=now,
        )
        stored = Baseline(
            cell="serving/c",
            fingerprint=fingerprint,
            starts=tuple(start(20.0, 20.1, 19.9, speed=stored_speed) for _ in range(3)),
            created="2026-11-22T00:00:00Z",
            tool="0.1.0",
        )
        (verdict,) = gate.judge_cell(cell, ["tpot_ms.p50"], stored=stored, hardware=hardware)
        return verdict

    return judge


def test_twice_as_slow_is_a_regression_that_names_what_differs(judged):
    verdict = judged(start(40.0, 40.5, 39.5, cores="1"))
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.change == pytest.approx(1.0, abs=0.01)
    assert verdict.notes == (
        "the server may run on 1 core today; it was 2 cores when the baseline was recorded",
    )


def test_the_same_figure_passes(judged):
    assert judged(start(20.0, 20.2, 19.8)).outcome is Outcome.PASS


def test_a_machine_that_copies_half_as_fast_is_to_blame_itself(judged):
    verdict = judged(start(40.0, 40.5, 39.5, speed="7.0"), stored_speed="14.0")
    assert verdict.outcome is Outcome.ENV_DRIFT
    assert "copies memory at 7.0 GiB/s today, 14.0 GiB/s when" in verdict.reason


@pytest.mark.parametrize("stored_speed", ["fast", "nan", "inf", "-1", "0", None])
def test_a_stored_speed_that_is_no_speed_excuses_nothing(judged, stored_speed):
    verdict = judged(start(40.0, 40.5, 39.5, speed="7.0"), stored_speed=stored_speed)
    assert verdict.outcome is Outcome.REGRESSED


def test_a_machine_that_is_as_fast_as_ever_is_not_to_blame(judged):
    verdict = judged(start(40.0, 40.5, 39.5, speed="13.5"), stored_speed="14.0")
    assert verdict.outcome is Outcome.REGRESSED


def test_a_gpu_is_not_excused_by_the_memory_of_its_host(judged):
    verdict = judged(start(40.0, 40.5, 39.5, speed="7.0"), stored_speed="14.0", hardware="h200")
    assert verdict.outcome is Outcome.REGRESSED


def test_another_machine_is_incomparable_and_the_field_is_named(judged):
    verdict = judged(start(40.0), cpu_cores=4)
    assert verdict.outcome is Outcome.INCOMPARABLE
    assert "usable CPU cores is 4 here and 2 in the baseline" in verdict.reason


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


def test_ratios_pair_repeats_and_leave_out_holes():
    assert gate.paired_ratios((10.0, None, 30.0, 8.0), (5.0, 2.0, 0.0)) == (2.0,)


@pytest.mark.parametrize(
    ("value", "outcome"), [(1.3, "REGRESSED"), (1.4, "PASS"), (3.0, "PASS"), (3.1, "REGRESSED")]
)
def test_a_prediction_holds_within_its_factor(value, outcome):
    verdict = gate.judge_prediction("growth", [value], predicted=2.0, factor=1.5, why="bytes")
    assert verdict.outcome == outcome
    assert verdict.expected == 2.0
    assert verdict.change == pytest.approx(value / 2 - 1)
