import math

import pytest

from pytest_moeperf.judge import Noise, StartValue, spread_of
from pytest_moeperf.judge.contrast import Contrast, against_old, against_stored, price_of_checkpoint

NOISE = Noise(within=0.02, between=0.01, df=20, between_df=22)


def stored(*sessions):
    return spread_of(
        [
            StartValue(value, str(number))
            for number, values in enumerate(sessions)
            for value in values
        ]
    )


def test_drift_counts_once_for_today_and_once_for_every_stored_session():
    contrast = against_stored([1.0, 1.2], stored([2.0, 2.0], [1.0, 1.0]), NOISE)
    assert contrast.effect_log == pytest.approx(1.1 - 1.5)
    # 0.0001 * (1 + 1/2) = 0.00015 and 0.0004 * (1/2 + 1/4) = 0.0003.
    assert contrast.standard_error == pytest.approx(math.sqrt(0.00045))
    # Satterthwaite: 4.5^2 / (1.5^2 / 22 + 3^2 / 20).
    assert contrast.df == pytest.approx(36.667, abs=1e-3)


def test_further_starts_today_do_not_lessen_the_drift():
    several = against_stored([1.0] * 10_000, stored([1.0]), NOISE)
    assert several.standard_error == pytest.approx(math.sqrt(2 * 0.0001 + 0.0004), rel=1e-3)


def test_a_session_of_many_starts_counts_as_one_session():
    contrast = against_stored([0.0], stored([0.0], [4.0, 4.0, 4.0]), NOISE)
    assert contrast.expected_log == 2.0
    # The mean of the means has the error of 1 and of 1/3 start, a quarter each: that of 3 starts.
    assert contrast.standard_error == pytest.approx(math.sqrt(0.00015 + 0.0004 * (1 + 1 / 3)))


def test_an_a_b_knows_no_drift():
    contrast = against_old([1.0, 1.2], [0.9, 0.9], NOISE, price=3)
    assert contrast.effect_log == pytest.approx(-0.2)
    assert contrast.standard_error == pytest.approx(0.02)
    assert contrast.df == 20


def test_the_p_is_that_of_students_t_times_the_price():
    # Printed tables: 3.552 for 0.1 % with 20 degrees of freedom.
    worse = Contrast(measured_log=-3.552, expected_log=0, standard_error=1.0, df=20, price=3)
    assert worse.p_worse == pytest.approx(0.003, rel=1e-3)
    assert worse.p_better == 1.0
    assert worse.visible_log(0.003) == pytest.approx(3.552, abs=5e-4)


def test_the_interval_has_its_confidence_on_both_sides():
    # 2.086 for 2.5 % with 20 degrees of freedom.
    contrast = Contrast(measured_log=0.1, expected_log=0, standard_error=0.01, df=20)
    assert contrast.interval(0.05) == pytest.approx((0.1 - 0.02086, 0.1 + 0.02086), abs=1e-5)


@pytest.mark.parametrize(("measured", "p"), [(-0.1, 0.0), (0.0, 1.0), (0.1, 1.0)])
def test_without_noise_every_loss_is_sure(measured, p):
    contrast = Contrast(measured_log=measured, expected_log=0.0, standard_error=0.0, df=20)
    assert contrast.p_worse == p
    assert contrast.visible_log(0.001) == 0.0


@pytest.mark.parametrize(("number", "prices"), [(1, [1]), (2, [3, 1.5]), (3, [6, 3, 2])])
def test_the_checkpoints_share_one_chance_of_a_false_alarm(number, prices):
    assert [price_of_checkpoint(each, of=number) for each in range(1, number + 1)] == prices
    assert sum(1 / price for price in prices) == pytest.approx(1)
