import math

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


def test_compare_with_one_stored_start_rests_on_the_noise_table():
    result = stats.compare([22.0], [[20.0]], noise=0.05, alpha=0.001)
    assert result.distance_log == pytest.approx(math.log(1.1))
    # One start on each side: t(0.999, 20 df) * 0.05 * sqrt(2).
    assert result.resolution_log == pytest.approx(3.5518 * 0.05 * math.sqrt(2), rel=1e-4)


def test_compare_sees_finer_with_more_stored_starts():
    one = stats.compare([1.0], [[1.0]], noise=0.05, alpha=0.001)
    five = stats.compare([1.0], [[1.0]] * 5, noise=0.05, alpha=0.001)
    # The same noise, sqrt(1 + 1/5) instead of sqrt(1 + 1), and 24 degrees of freedom.
    assert five.resolution_log == pytest.approx(3.4668 * 0.05 * math.sqrt(1.2), rel=1e-4)
    assert five.resolution_log < one.resolution_log


def test_compare_sees_coarser_where_stored_starts_scatter():
    calm = stats.compare([1.0], [[1.0], [1.0], [1.0]], noise=0.01, alpha=0.001)
    wild = stats.compare([1.0], [[0.8], [1.0], [1.25]], noise=0.01, alpha=0.001)
    # Variance log(1.25)^2 with 2 df against 0.0001 with 20 df.
    variance = (20 * 0.0001 + 2 * math.log(1.25) ** 2) / 22
    expected = stats.t_quantile(0.999, 22) * math.sqrt(variance * 4 / 3)
    assert wild.resolution_log == pytest.approx(expected)
    assert wild.resolution_log > 5 * calm.resolution_log


def test_compare_counts_a_start_by_the_median_of_its_repeats():
    result = stats.compare([21.0, 20.0, 95.0], [[10.0, 11.0, 70.0]], noise=0.1, alpha=0.01)
    assert result.distance_log == pytest.approx(math.log(21 / 11))
