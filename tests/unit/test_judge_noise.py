import math

import pytest

from pytest_moeperf.judge import (
    Prior,
    Spread,
    StartValue,
    default_prior,
    fit_prior,
    noise_of,
    spread_of,
    start_value,
)
from pytest_moeperf.policy import policy_for

TABLE = Prior(0.01, 20)


def starts(**sessions):
    return [StartValue(value, name) for name, values in sessions.items() for value in values]


def cells(logs, *, df):
    return [
        Spread(within_variance=math.exp(log), within_df=df, between_variance=0.0) for log in logs
    ]


def test_a_start_counts_with_the_median_of_its_repeats():
    assert start_value([20.0, 21.0, 95.0], "higher") == pytest.approx(math.log(21))


def test_a_latency_is_turned_so_that_larger_is_better():
    assert start_value([20.0, 21.0, 95.0], "lower") == pytest.approx(-math.log(21))


def test_a_start_without_values_has_none():
    assert start_value([None, None], "lower") is None


def test_the_scatter_is_split_into_that_within_and_that_between_sessions():
    spread = spread_of(starts(a=[1.0, 3.0], b=[4.0, 6.0]))
    # Each session has squares of 2 and one degree of freedom; the means are 2 and 5.
    assert (spread.within_variance, spread.within_df) == (2.0, 2)
    assert (spread.between_variance, spread.mean) == (4.5, 3.5)
    assert (spread.sessions, spread.starts_per_session) == (2, 2.0)


def test_sessions_of_unequal_size_count_alike():
    spread = spread_of(starts(a=[0.0], b=[1.0, 2.0, 3.0]))
    assert (spread.within_variance, spread.within_df) == (1.0, 2)
    assert (spread.between_variance, spread.mean) == (2.0, 1.0)  # Means 0 and 2.
    assert spread.starts_per_session == pytest.approx(1.5)  # 2 / (1/1 + 1/3)


def test_sessions_of_one_start_tell_nothing_of_the_scatter_within():
    spread = spread_of(starts(a=[1.0], b=[2.0], c=[3.0]))
    assert (spread.within_df, spread.between_variance) == (0, 1.0)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_one_start_or_none_has_no_scatter(values):
    spread = spread_of(starts(a=values))
    assert (spread.within_variance, spread.within_df, spread.between_variance) == (0, 0, 0)


def test_further_groups_of_one_session_join_the_scatter_within():
    spread = spread_of(starts(a=[1.0, 3.0])).joined([0.0, 0.0, 3.0], [5.0])
    # Squares of 2 and 6, one and two degrees of freedom.
    assert (spread.within_variance, spread.within_df) == (pytest.approx(8 / 3), 3)


def test_a_cell_is_shrunk_towards_the_table():
    spread = Spread(within_variance=0.04, within_df=4, between_variance=0.0)
    noise = noise_of(spread, TABLE)
    # 20 times 0.01 and 4 times 0.04 make 0.36, for 24 degrees of freedom.
    assert noise.within == pytest.approx(math.sqrt(0.015))
    assert noise.df == 24


def test_a_cell_unlike_any_other_is_judged_by_itself():
    # 80 times the variance of the others.
    spread = Spread(within_variance=0.8, within_df=4, between_variance=0.0)
    noise = noise_of(spread, TABLE)
    assert (noise.within, noise.df) == (pytest.approx(math.sqrt(0.8)), 4)


def test_a_quiet_cell_is_not_believed_below_the_floor():
    spread = Spread(within_variance=0.0, within_df=4, between_variance=0.0)
    assert noise_of(spread, TABLE, floor=0.2).within == pytest.approx(0.2)


def test_drift_between_sessions_is_what_their_starts_do_not_explain():
    spread = Spread(
        within_variance=0.01,
        within_df=10,
        between_variance=0.055,
        sessions=21,
        starts_per_session=2.0,
    )
    noise = noise_of(spread, TABLE, drift=0.1)
    # Expected of a mean: 0.01 + 0.01 / 2 = 0.015; averaged with 0.055, 20 df each: 0.035.
    assert noise.between == pytest.approx(math.sqrt(0.035 - 0.005))
    assert noise.between_df == 40


def test_without_a_second_session_the_drift_is_the_expected_one():
    assert noise_of(spread_of(starts(a=[1.0])), TABLE, drift=0.1).between == pytest.approx(0.1)


def test_sessions_closer_than_their_starts_have_the_least_drift():
    spread = Spread(within_variance=1.0, within_df=400, between_variance=0.0, sessions=9)
    assert noise_of(spread, TABLE, drift=0.1).between == pytest.approx(0.1)
    assert noise_of(spread, TABLE).between == 0.0


def test_a_prior_is_fitted_as_worked_out_for_two_degrees_of_freedom():
    # trigamma(1) is pi^2 / 6. So if logarithms of variances with 2 df vary by twice that, half is
    # sampling and half the prior's, which then has 2 df; the digammas cancel, and its variance is
    # the geometric mean.
    away = math.sqrt(math.pi**2 / 3 * 9 / 10)
    prior = fit_prior(cells([-5 - away, -5 + away] * 5, df=2), default=TABLE)
    assert prior.df == pytest.approx(2.0)
    assert prior.variance == pytest.approx(math.exp(-5))


def test_a_prior_is_fitted_as_worked_out_for_one_degree_of_freedom():
    # trigamma(1/2) is pi^2 / 2 and trigamma(3/2) is pi^2 / 2 - 4: a prior of 3 df. With digamma
    # -gamma - 2 ln 2 and 2 - gamma - 2 ln 2 its variance is e^2 / 3 geometric means.
    away = math.sqrt((math.pi**2 - 4) * 19 / 20)
    prior = fit_prior(cells([-away, away] * 10, df=1), default=TABLE)
    assert prior.df == pytest.approx(3.0)
    assert prior.variance == pytest.approx(math.exp(2) / 3)


def test_cells_that_vary_no_more_than_chance_are_one_population():
    prior = fit_prior(cells([-5.0] * 20, df=2), default=TABLE)
    # digamma(1) is -0.5772; the weight is bounded although these cells are all alike.
    assert prior.variance == pytest.approx(math.exp(-5 + 0.57722), rel=1e-5)
    assert prior.df == 60


@pytest.mark.parametrize(
    "spreads",
    [
        cells([-5.0] * 4, df=10),  # Four cells.
        cells([-5.0] * 9, df=2),  # 18 degrees of freedom, less than the table weighs.
        [spread_of(starts(a=[1.0], b=[2.0]))] * 30,  # No two starts in a session.
        [Spread(within_variance=0.0, within_df=4, between_variance=0.0)] * 30,
    ],
)
def test_cells_that_know_less_than_the_table_leave_it_in_force(spreads):
    assert fit_prior(spreads, default=TABLE) is TABLE


def test_a_variance_of_zero_counts_as_a_small_one():
    spreads = cells([-5.0] * 30, df=4)

    def fitted(variance):
        lucky = Spread(within_variance=variance, within_df=4, between_variance=0.0)
        return fit_prior([*spreads, lucky], default=TABLE)

    assert fitted(0.0) == fitted(1e-5 * math.exp(-5.0))
    assert fitted(0.0).df < fitted(math.exp(-6.0)).df


def test_the_default_prior_is_the_noise_of_the_policy():
    assert default_prior(policy_for("h200", "tpot_ms.p50")) == Prior(pytest.approx(1e-4), 20)
