import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf import stats

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


def test_percentile_interpolates_between_the_closest_ranks():
    # Position 0.9 * 3 = 2.7 lies between 30 and 40.
    assert stats.percentile([10, 20, 30, 40], 90) == pytest.approx(37)


def test_percentile_of_one_value_is_that_value():
    assert stats.percentile([7.0], 99) == 7.0


@given(VALUES, st.floats(0, 100))
def test_percentile_agrees_with_numpy(values, rank):
    ordered = sorted(values)
    assert stats.percentile(ordered, rank) == pytest.approx(np.percentile(ordered, rank))


@given(VALUES, st.floats(0, 100), st.floats(0, 100))
def test_percentiles_rise_with_their_rank_inside_the_range(values, one, other):
    ordered = sorted(values)
    low, high = (stats.percentile(ordered, rank) for rank in sorted((one, other)))
    assert ordered[0] <= low <= high * (1 + 1e-12)
    assert high <= ordered[-1]


def test_log_median_of_two_is_their_geometric_mean():
    assert stats.from_log(stats.log_median([2.0, 8.0])) == pytest.approx(4.0)


def test_log_median_is_not_moved_by_one_outlier_of_three():
    assert stats.from_log(stats.log_median([20.0, 900.0, 21.0])) == pytest.approx(21.0)


def test_zero_survives_the_log_scale():
    assert stats.from_log(stats.log_median([0.0])) == 0.0


def test_half_range_needs_two_values():
    assert stats.half_range([20.0]) is None
    assert stats.half_range([20.0, 26.0, 21.0]) == 3.0


def test_shrunk_variance_weighs_by_degrees_of_freedom():
    # 20 times 0.01 and 4 times 0.04 make 0.36, for 24 degrees of freedom.
    shrunk = stats.shrunk_variance(0.04, 4, prior_variance=0.01, prior_df=20)
    assert shrunk == pytest.approx(0.015)


def test_t_quantile_matches_printed_tables():
    assert stats.t_quantile(0.999, 20) == pytest.approx(3.552, abs=5e-4)
    assert stats.t_quantile(0.99, 4) == pytest.approx(3.747, abs=5e-4)


def test_t_below_is_the_inverse_of_the_quantile():
    assert stats.t_below(3.5518, 20) == pytest.approx(0.999, abs=1e-5)
    assert stats.t_below(0.0, 3.7) == pytest.approx(0.5)


def test_f_above_matches_printed_tables():
    # 7.096 for 0.1 % with 4 and 20 degrees of freedom.
    assert stats.f_above(7.096, 4, 20) == pytest.approx(0.001, rel=1e-3)
