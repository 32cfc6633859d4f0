import math
from dataclasses import replace

import pytest

from pytest_moeperf.errors import UsageError
from pytest_moeperf.judge import Evidence, Need, StoredStart, assess, default_prior
from pytest_moeperf.policy import Policy, policy_for
from pytest_moeperf.records import Outcome

LIMIT = 0.0005
"""0.03 for 60 gates."""

GPU = policy_for("h200", "tpot_ms.p50")
CPU = policy_for("cpu", "tpot_ms.p50")
FIVE = (20.0,) * 5


def evidence(
    today, stored=FIVE, *, old=(), new=(), metric="tpot_ms.p50", can_pair=False, **changes
):
    """One repeat a start, and a session of its own for every stored one."""
    return Evidence(
        metric=metric,
        today=tuple((value,) for value in today),
        stored=tuple(StoredStart(f"s{number}", (value,)) for number, value in enumerate(stored)),
        old=tuple((value,) for value in old),
        new=tuple((value,) for value in new),
        can_pair=can_pair or bool(old),
        **changes,
    )


def judged(*args, policy=GPU, limit=LIMIT, **kwargs):
    return assess(evidence(*args, **kwargs), policy, prior=default_prior(policy), p_limit=limit)


def test_an_engine_that_is_as_it_was_passes_with_one_start():
    found = judged([20.3])
    assert found.verdict.outcome is Outcome.PASS
    assert (found.need, found.p) == (None, 1.0)
    assert found.verdict.reason == (
        "tpot_ms.p50 is 1.5 % above the baseline (20.3 ms against 20.0 ms; allowed up to 20.6 ms), "
        "unpaired: one start today against 5 stored starts"
    )


def test_a_verdict_carries_its_figures():
    verdict = judged([20.0, 20.4]).verdict
    assert (verdict.metric, verdict.unit, verdict.direction) == ("tpot_ms.p50", "ms", "lower")
    assert verdict.measured == pytest.approx(math.sqrt(20.0 * 20.4))
    assert verdict.expected == pytest.approx(20.0)
    assert (verdict.lower, verdict.upper) == (None, pytest.approx(20.6))
    assert verdict.change == pytest.approx(0.00995, abs=1e-5)
    assert verdict.effect == pytest.approx(-0.00985, abs=1e-5)
    assert (verdict.tolerance, verdict.p_limit) == (0.03, LIMIT)
    assert (verdict.starts, verdict.paired, verdict.visible) == (2, False, None)
    assert verdict.spread == pytest.approx(0.2)


def test_the_interval_and_the_p_are_those_of_students_t():
    verdict = judged([20.0]).verdict
    # Drift 0.005^2 * 6/5 with 24 df and scatter 0.01^2 * 6/5 with 20 make 0.01225 with 29.7;
    # printed tables give 2.043 for 97.5 %.
    half = 2.043 * math.sqrt(0.00015)
    assert verdict.interval == pytest.approx((math.expm1(-half), math.expm1(half)), abs=1e-5)
    assert verdict.p == pytest.approx(0.5)


def test_a_throughput_regresses_downwards():
    verdict = judged([95.0] * 5, [100.0] * 5, metric="output_throughput").verdict
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.effect == pytest.approx(-0.05)
    # 3 % are symmetric as a ratio: 100 / 1.03.
    assert (verdict.lower, verdict.upper) == (pytest.approx(97.09, abs=0.01), None)
    assert verdict.reason == (
        "output_throughput is 5 % below the baseline (95.0 tok/s against 100 tok/s; allowed down "
        "to 97.1 tok/s), unpaired: 5 starts today against 5 stored starts"
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_starts_never_blame_an_engine_without_the_old_one(count):
    found = judged([22.0] * count)
    assert found.verdict.outcome is Outcome.INCONCLUSIVE
    assert (found.need, found.p) == (Need.START, 1.0)
    assert found.verdict.reason.endswith("to blame the engine takes 5 starts today")


def test_a_loss_that_no_day_explains_takes_three_starts():
    # 20 %: over five times the tolerance of 3 %.
    for count in (1, 2):
        found = judged([24.0] * count)
        assert (found.verdict.outcome, found.need) == (Outcome.INCONCLUSIVE, Need.START)
        assert found.verdict.reason.endswith("to blame the engine takes 3 starts today")
    assert judged([24.0] * 3).verdict.outcome is Outcome.REGRESSED


def test_where_there_will_be_no_third_start_such_a_loss_takes_two():
    found = judged([24.0] * 2, last=True)
    assert (found.verdict.outcome, found.need) == (Outcome.REGRESSED, None)
    # One start may be a bad one, and a loss of five tolerances or less still takes five of them.
    for starts, least in (([24.0], 2), ([22.0] * 2, 5)):
        found = judged(starts, last=True)
        assert (found.verdict.outcome, found.need) == (Outcome.INCONCLUSIVE, Need.START)
        assert found.verdict.reason.endswith(f"to blame the engine takes {least} starts today")


def test_an_old_engine_that_cannot_be_asked_any_more_hides_no_such_loss():
    found = judged([24.0] * 2, last=True, can_pair=True)
    assert (found.verdict.outcome, found.need) == (Outcome.REGRESSED, None)
    assert judged([24.0], last=True, can_pair=True).need is Need.START
    assert judged([22.0] * 2, last=True, can_pair=True).need is Need.PAIR
    # It ran once, and was as slow: the machine may be to blame.
    found = judged([24.0] * 2, old=[24.0], new=[24.0], last=True, can_pair=True)
    assert (found.verdict.outcome, found.need) == (Outcome.INCONCLUSIVE, Need.PAIR)


def test_eager_mode_on_an_h200_is_blamed_by_two_starts():
    """Llama-3.1-8B, one stream, vLLM 0.24.0: as stored, and with --enforce-eager."""
    found = judged([12.45, 13.18], stored=[4.85, 4.77, 4.84], last=True)
    assert found.verdict.outcome is Outcome.REGRESSED
    assert found.verdict.change == pytest.approx(1.66, abs=0.01)


def test_another_gpu_of_the_product_may_be_to_blame():
    # 5 %: beyond the tolerance of 3 %, but not by more than two GPUs of a product differ.
    assert judged([21.0] * 5).verdict.outcome is Outcome.REGRESSED
    assert judged([21.0], other_gpu=True).need is Need.START
    found = judged([21.0, 21.0], other_gpu=True)
    assert (found.verdict.outcome, found.need) == (Outcome.INCONCLUSIVE, None)
    assert found.verdict.reason.endswith(
        "; the baseline is of another GPU, and two of a product differ by up to 3 %"
    )
    assert judged([21.5] * 5, other_gpu=True).verdict.outcome is Outcome.REGRESSED
    assert judged([20.3], other_gpu=True).verdict.outcome is Outcome.PASS


def test_on_another_gpu_a_loss_that_noise_explains_takes_all_starts():
    # 3.44 errors of 0.01 with some 33 degrees of freedom: 0.08 %.
    found = judged([20.7] * 2, other_gpu=True)
    assert (found.verdict.outcome, found.need) == (Outcome.INCONCLUSIVE, Need.START)


def test_an_a_b_ran_on_one_gpu():
    found = judged([], old=[20.0] * 5, new=[21.0] * 5, other_gpu=True)
    assert found.verdict.outcome is Outcome.REGRESSED


def test_with_the_old_engine_at_hand_a_gross_loss_is_left_to_it():
    assert judged([24.0] * 3, can_pair=True).need is Need.PAIR


def test_the_old_engine_is_called_after_two_doubtful_starts():
    assert judged([24.0], can_pair=True).need is Need.START
    found = judged([24.0, 24.1], can_pair=True)
    assert found.need is Need.PAIR
    assert found.verdict.outcome is Outcome.INCONCLUSIVE
    assert found.verdict.reason.endswith(
        "whether engine or machine is slower, the old engine has to show"
    )


def test_a_loss_that_noise_explains_says_what_would_be_seen():
    found = judged([20.7])
    assert found.verdict.outcome is Outcome.INCONCLUSIVE
    # 3.65 for 0.05 % with 29.7 degrees of freedom, times 0.01225: exp of 0.0447 is 1.046.
    assert found.verdict.visible == pytest.approx(0.0457, abs=2e-4)
    assert found.verdict.reason == (
        "tpot_ms.p50 is 3.5 % above the baseline (20.7 ms against 20.0 ms; allowed up to 20.6 ms), "
        "unpaired: one start today against 5 stored starts; only a loss of more than 4.6 % stands "
        "out from noise"
    )


def test_the_loss_of_a_rate_is_a_share_of_it():
    # 0.0447 as a logarithm, as above: 1 - exp of -0.0447 is 4.4 %.
    found = judged([96.6], [100.0] * 5, metric="output_throughput")
    assert found.verdict.outcome is Outcome.INCONCLUSIVE
    assert found.verdict.reason.endswith("; only a loss of more than 4.4 % stands out from noise")


def test_what_cannot_be_ruled_out_is_no_pass_even_within_the_tolerance():
    found = judged([20.5])
    assert found.verdict.outcome is Outcome.INCONCLUSIVE
    # 2.47 % and the half interval of 2.50 %, both as logarithms: exp of 0.0497 is 1.051.
    assert found.verdict.reason.endswith(
        "a loss of 5.1 % cannot be ruled out, and only a loss of more than 4.6 % would have been "
        "seen"
    )


def test_the_visible_loss_is_at_least_the_tolerance():
    found = judged([20.7] * 3, old=[20.0] * 3, new=[20.7] * 3, policy=replace(GPU, noise=0.004))
    assert found.verdict.outcome is Outcome.REGRESSED
    loud = replace(GPU, noise=0.012)
    found = judged([], (), old=[20.0] * 3, new=[20.59] * 3, policy=loud, limit=0.05)
    assert found.verdict.outcome is Outcome.INCONCLUSIVE
    # 2.26 for a third of 5 % with 24 degrees of freedom, times 0.0098, is 0.022 and less than 3 %.
    assert found.verdict.visible == pytest.approx(0.03)


def test_five_doubtful_starts_settle_what_they_can():
    found = judged([20.7] * 5, [20.0] * 2)
    assert (found.verdict.outcome, found.need) == (Outcome.INCONCLUSIVE, None)
    assert found.p == found.verdict.p > LIMIT


def test_a_gain_is_the_mirror_of_a_loss():
    verdict = judged([19.0] * 2).verdict
    assert verdict.outcome is Outcome.IMPROVED
    assert verdict.effect == pytest.approx(20 / 19 - 1)
    assert verdict.reason.startswith("tpot_ms.p50 is 5 % below the baseline (19.0 ms against 20.0")


def test_a_gain_that_noise_explains_is_a_pass():
    assert judged([19.4]).verdict.outcome is Outcome.PASS


def test_an_a_b_names_the_old_engine():
    found = judged([24.0] * 2, old=[20.0, 20.1, 19.9], new=[24.0, 24.1, 23.9])
    assert found.verdict.outcome is Outcome.REGRESSED
    assert found.verdict.paired
    assert (found.verdict.starts, found.need) == (3, None)
    assert found.p == found.verdict.p < 1e-6
    assert found.verdict.reason == (
        "tpot_ms.p50 is 20 % above the old engine (24.0 ms against 20.0 ms; allowed up to 20.6 "
        "ms), by 3 pairs of starts in turns"
    )


def test_an_a_b_clears_an_engine_that_the_baseline_accused():
    found = judged([20.7] * 2, old=[20.0, 20.1, 19.9], new=[20.1, 20.0, 19.9])
    assert (found.verdict.outcome, found.need) == (Outcome.PASS, None)
    assert found.verdict.reason == (
        "tpot_ms.p50 is as in the old engine (20.0 ms against 20.0 ms; allowed up to 20.6 ms), "
        "by 3 pairs of starts in turns"
    )


def test_a_machine_that_slows_both_engines_is_to_blame_itself():
    found = judged([22.0] * 2, old=[22.0, 22.1, 21.9], new=[22.1, 22.0, 21.9])
    assert (found.verdict.outcome, found.need) == (Outcome.ENV_DRIFT, None)
    assert found.verdict.reason.endswith(
        "by 3 pairs of starts in turns; but both are worse than the baseline by 10 % or more: the "
        "machine or what else both share has changed since it was recorded, not the engine"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (20.58, 20.58),  # Both are 2.9 % below, which the tolerance accepts.
        (20.5, 20.75),  # Only the new one is below it.
        (20.8, 20.5),  # Only the old one is.
    ],
)
def test_engines_that_are_not_both_below_the_tolerance_show_no_drift(old, new):
    found = judged([20.8] * 2, [20.0] * 10, old=[old] * 3, new=[new] * 3)
    assert found.verdict.outcome is Outcome.PASS


def test_drift_is_beyond_its_interval():
    policy = policy_for("h200", "ttft_ms.p50")
    # 35 % where 30 % are accepted, against one stored start: 0.06^2 * 2 + 0.12^2 * (1/3 + 1) make
    # an error of 0.163, and twice that is more than the 0.30 of the loss.
    vague = {"metric": "ttft_ms.p50", "policy": policy, "old": [135.0] * 3, "new": [135.0] * 3}
    assert judged([135.0] * 2, [100.0], **vague).verdict.outcome is Outcome.PASS
    # Against ten: 0.06^2 * 1.1 + 0.12^2 * (1/3 + 1/10), an error of 0.101.
    assert judged([135.0] * 2, [100.0] * 10, **vague).verdict.outcome is Outcome.ENV_DRIFT


def test_drift_is_told_by_the_engine_that_lost_less():
    found = judged([22.0] * 2, old=[22.0] * 3, new=[22.4] * 3)
    assert found.verdict.outcome is Outcome.ENV_DRIFT
    assert "both are worse than the baseline by 10 % or more" in found.verdict.reason


def test_the_first_look_at_an_a_b_pays_more_than_the_last():
    three = judged([20.7] * 2, old=[20.0] * 3, new=[20.7] * 3, limit=0.0003)
    # The effect 0.0344 is 4.21 errors of 0.00816, with 20 + 4 degrees of freedom: 0.00015, thrice.
    assert (three.verdict.outcome, three.need) == (Outcome.INCONCLUSIVE, Need.PAIR)
    assert three.verdict.p == pytest.approx(3 * 0.00015, rel=0.05)
    five = judged([20.7] * 2, old=[20.0] * 5, new=[20.7] * 5, limit=0.0003)
    # The effect 0.0344 is 5.44 errors of 0.00632, with 20 + 8 degrees of freedom.
    assert (five.verdict.outcome, five.need) == (Outcome.REGRESSED, None)


def test_a_start_that_was_as_slow_before_makes_all_checkpoints_necessary():
    stored = (20.0, 20.0, 25.0, 20.0, 20.0)
    slow = judged([25.0, 25.0], stored, old=[20.0] * 3, new=[25.0] * 3)
    assert (slow.verdict.outcome, slow.need) == (Outcome.INCONCLUSIVE, Need.PAIR)
    known = judged([25.0, 25.0], stored, old=[20.0] * 5, new=[25.0] * 5)
    assert (known.verdict.outcome, known.need) == (Outcome.REGRESSED, None)
    new = judged([25.0, 25.0], FIVE, old=[20.0] * 3, new=[25.0] * 3)
    assert (new.verdict.outcome, new.need) == (Outcome.REGRESSED, None)


def test_of_a_cleared_metric_a_loss_that_may_be_luck_makes_all_checkpoints_necessary():
    # The baseline clears it; one of its starts was 1.6 times as slow, and the pairs, which were
    # bought for another metric, are 1.8 times: logarithms of 0.47 and 0.75 * 0.588 = 0.44.
    stored = (20.0, 20.0, 32.0, 20.0, 20.0)
    assert judged([20.0], stored, policy=CPU).verdict.outcome is Outcome.PASS
    early = judged([20.0], stored, old=[20.0] * 3, new=[36.0] * 3, policy=CPU)
    assert (early.verdict.outcome, early.need) == (Outcome.INCONCLUSIVE, Need.PAIR)
    late = judged([20.0], stored, old=[20.0] * 5, new=[36.0] * 5, policy=CPU)
    assert (late.verdict.outcome, late.need) == (Outcome.REGRESSED, None)


def test_pairs_between_two_checkpoints_change_nothing():
    three = judged([20.7] * 2, old=[20.0] * 3, new=[20.7] * 3, limit=0.0003)
    four = judged([20.7] * 2, old=[20.0] * 4, new=[20.7] * 3 + [40.0], limit=0.0003)
    assert four == three


def test_pairs_between_two_checkpoints_show_no_drift_either():
    three = judged([22.0] * 2, old=[22.0] * 3, new=[22.0] * 3)
    four = judged([22.0] * 2, old=[22.0] * 3 + [40.0], new=[22.0] * 3 + [40.0])
    assert four == three


def test_pairs_before_the_first_checkpoint_leave_it_to_the_baseline():
    doubtful = judged([20.7] * 2, old=[20.0] * 2, new=[20.7] * 2)
    assert (doubtful.verdict.paired, doubtful.need) == (False, Need.PAIR)
    assert judged([20.0], old=[20.0], new=[24.0]).verdict.outcome is Outcome.PASS


def test_once_pairs_are_run_no_further_start_is_asked_for():
    assert judged([20.7], old=[20.0], new=[20.7]).need is Need.PAIR


def test_the_last_look_settles():
    found = judged([20.7] * 2, old=[20.0, 20.8, 19.2, 20.05, 19.95], new=[20.62] * 5)
    assert (found.verdict.outcome, found.need) == (Outcome.INCONCLUSIVE, None)
    assert "by 5 pairs of starts in turns; only a loss of" in found.verdict.reason


def test_a_metric_that_the_baseline_cleared_stays_clear_of_a_doubtful_a_b():
    # The pairs were run for another metric of the cell.
    found = judged([20.0], old=[20.0] * 3, new=[20.7] * 3, limit=0.0003)
    assert (found.verdict.outcome, found.need) == (Outcome.PASS, None)
    assert judged([20.0], old=[20.0] * 3, new=[24.0] * 3).verdict.outcome is Outcome.REGRESSED


def test_an_improvement_shows_in_an_a_b():
    found = judged([20.7] * 2, old=[20.0] * 3, new=[18.0] * 3)
    assert (found.verdict.outcome, found.need) == (Outcome.IMPROVED, None)


def test_a_gain_of_starts_in_two_modes_is_no_improvement():
    # 18 % better, but one start of five in both arms is 25 % slower than the others.
    found = judged(
        [20.7] * 2,
        old=[20.0, 20.0, 20.0, 20.0, 25.0],
        new=[16.4, 16.4, 16.4, 16.4, 20.5],
        limit=0.015,
    )
    assert (found.verdict.outcome, found.need) == (Outcome.PASS, None)


def test_starts_in_two_modes_cannot_be_judged():
    modes = [20.0, 25.0, 20.1]
    early = judged([20.7] * 2, old=modes, new=modes)
    assert (early.verdict.outcome, early.need) == (Outcome.INCONCLUSIVE, Need.PAIR)
    modes = [20.0, 25.0, 20.1, 20.0, 25.0]
    found = judged([20.7] * 2, old=modes, new=modes)
    assert (found.verdict.outcome, found.need) == (Outcome.UNSTABLE, None)
    assert found.verdict.reason == (
        "tpot_ms.p50 cannot be judged: starts of one and the same engine fall into two groups, "
        "24 % apart; find out what a start decides anew, such as autotuning, memory layout or "
        "clocks"
    )


@pytest.mark.parametrize(("slow", "outcome"), [(300.0, "INCONCLUSIVE"), (350.0, "UNSTABLE")])
def test_scatter_is_held_against_three_times_the_noise_of_the_table(slow, outcome):
    policy = policy_for("h200", "ttft_ms.p50")
    # Two of five starts 1.099 apart: squares of 1.2 * 1.207 in each arm, 2.90 in all. Chi-square of
    # 8 df exceeds 27.9 in 0.05 %; times 0.36^2, thrice the noise, that is 3.61, but times the
    # tolerance of 0.262^2 only 1.92. With 1.253 apart the squares are 3.77.
    modes = [100.0, slow, 100.0, slow, 100.0]
    found = judged(
        [150.0] * 2, [100.0] * 5, old=modes, new=modes, metric="ttft_ms.p50", policy=policy
    )
    assert found.verdict.outcome == outcome


def test_two_starts_in_a_slow_mode_blame_no_engine():
    found = judged([25.0] * 2, old=[20.0, 20.1, 20.0], new=[25.0, 20.0, 25.1])
    assert (found.verdict.outcome, found.need) == (Outcome.INCONCLUSIVE, Need.PAIR)


def test_a_loss_beyond_the_scatter_is_a_loss():
    old = [20.0, 25.0, 20.1, 20.0, 25.0]
    found = judged([40.0] * 2, old=old, new=[2 * value for value in old])
    assert found.verdict.outcome is Outcome.REGRESSED


def test_starts_that_scatter_cannot_be_judged_without_the_old_engine_either():
    found = judged([18.5, 20.0, 21.0, 22.0, 23.5])
    assert (found.verdict.outcome, found.need) == (Outcome.UNSTABLE, None)
    assert "scatter by" in found.verdict.reason


def test_starts_that_scatter_today_blame_no_engine():
    # Logarithms 7 % around a loss of 10 %: a variance of 0.005 where the table knows 0.0001. Their
    # own noise of 0.0707 makes the error of the mean of five 0.045, and 8.61 of these are needed
    # for 0.05 % with 4 degrees of freedom. That is no proof that they scatter, either.
    found = judged([20.6, 23.7, 20.6, 23.7, 22.1])
    assert (found.verdict.outcome, found.need) == (Outcome.INCONCLUSIVE, None)
    assert judged([22.1] * 5).verdict.outcome is Outcome.REGRESSED


def test_without_a_baseline_the_old_engine_is_asked_at_once():
    found = judged([20.0], (), can_pair=True)
    assert (found.verdict.outcome, found.need) == (Outcome.NO_BASELINE, Need.PAIR)
    found = judged([20.0], (), old=[20.0] * 3, new=[20.0] * 3)
    assert (found.verdict.outcome, found.need) == (Outcome.PASS, None)


def test_nothing_stored_is_no_baseline():
    found = judged([31.0, 31.2], ())
    assert (found.verdict.outcome, found.need, found.p) == (Outcome.NO_BASELINE, None, 1.0)


def test_nothing_measured_is_invalid():
    found = judged([])
    assert (found.verdict.outcome, found.need) == (Outcome.INVALID, None)
    assert found.verdict.measured is None


def test_starts_without_values_are_left_out():
    with_holes = Evidence(
        metric="tpot_ms.p50",
        today=((), (20.0,)),
        stored=(StoredStart("a", ()), StoredStart("b", (20.0,))),
    )
    found = assess(with_holes, GPU, prior=default_prior(GPU), p_limit=LIMIT)
    assert found.verdict.outcome is Outcome.PASS
    assert found.verdict.reason.endswith("one start today against one stored start")


def test_one_slow_repeat_of_three_does_not_count():
    today = replace(evidence([1.0]), today=((20.0, 20.1, 95.0),))
    found = assess(today, GPU, prior=default_prior(GPU), p_limit=LIMIT)
    assert found.verdict.outcome is Outcome.PASS
    assert found.verdict.measured == pytest.approx(20.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_what_is_no_measurement_is_an_error_and_never_a_pass(value):
    for wrong in ({"today": [value]}, {"today": [20.0], "stored": [value]}):
        with pytest.raises(ValueError, match="is no measurement"):
            judged(**wrong)
    with pytest.raises(ValueError, match="is no measurement"):
        judged([20.0], old=[value], new=[20.0])


def test_a_metric_without_direction_is_refused():
    with pytest.raises(UsageError, match=r"tokens_per_chunk\.mean has no better direction"):
        judged([1.0], metric="tokens_per_chunk.mean")


def test_no_change_reads_as_in_the_baseline():
    assert judged([20.0]).verdict.reason.startswith(
        "tpot_ms.p50 is as in the baseline (20.0 ms against 20.0 ms"
    )


def test_a_large_change_is_given_as_a_multiple():
    assert "is 2.50 times that of the baseline" in judged([50.0] * 5).verdict.reason


def test_a_goodput_that_fell_to_zero_regresses():
    policy = policy_for("h200", "goodput")
    verdict = judged([0.0] * 5, [3.0] * 5, metric="goodput", policy=policy).verdict
    assert verdict.outcome is Outcome.REGRESSED
    assert (verdict.change, verdict.measured) == (-1, 0)
    assert "is 100 % below the baseline (0 req/s against 3.00 req/s" in verdict.reason


@pytest.mark.parametrize("hardware", ["cpu", "h200"])
def test_one_start_with_failures_is_enough(hardware):
    policy = policy_for(hardware, "failed_requests")
    zero = (0.0,) * 3
    found = judged([2.0], zero, metric="failed_requests", policy=policy)
    assert found.verdict.outcome is Outcome.REGRESSED
    assert found.verdict.change is None
    assert "is above 0, which is what the baseline has (2.00 requests" in found.verdict.reason
    same = judged([0.0], zero, metric="failed_requests", policy=policy)
    assert same.verdict.outcome is Outcome.PASS


def test_a_baseline_of_one_start_judges_with_wide_margins():
    assert judged([20.0], [20.0]).verdict.outcome is Outcome.PASS
    found = judged([20.9] * 5, [20.0])
    assert found.verdict.outcome is Outcome.INCONCLUSIVE
    assert found.verdict.visible > 0.045
    assert judged([22.5] * 5, [20.0]).verdict.outcome is Outcome.REGRESSED


def test_a_night_with_many_gates_asks_for_more():
    assert judged([20.9] * 5, limit=0.01).verdict.outcome is Outcome.REGRESSED
    assert judged([20.9] * 5, limit=1e-6).verdict.outcome is Outcome.INCONCLUSIVE


def test_a_cell_with_loud_starts_is_judged_by_its_own_noise():
    loud = [19.4, 19.8, 20.0, 20.2, 20.6]
    assert judged([20.9] * 5, limit=1e-4).verdict.outcome is Outcome.REGRESSED
    assert judged([20.9] * 5, loud, limit=1e-4).verdict.outcome is Outcome.INCONCLUSIVE


def test_a_release_is_looked_at_after_five_and_ten_pairs():
    policy = policy_for("h200", "tpot_ms.p50", release=True)
    five = judged([20.4] * 2, old=[20.0] * 5, new=[20.35] * 5, policy=policy)
    assert five.need is Need.PAIR
    ten = judged([20.4] * 2, old=[20.0] * 10, new=[20.4] * 10, policy=policy)
    assert (ten.verdict.outcome, ten.need) == (Outcome.REGRESSED, None)


@pytest.mark.parametrize("noise", [0.07, 0.10, 0.12])
@pytest.mark.parametrize("stored", [1, 3, 10])
def test_a_shared_cpu_passes_with_one_start_at_twice_its_noise(noise, stored):
    policy = Policy(tolerance=0.5, catch=1.0, noise=noise, drift=0.1, unpaired_starts=2)
    found = judged([20.0 * math.exp(2 * noise)], [20.0] * stored, policy=policy)
    assert found.verdict.outcome is Outcome.PASS
