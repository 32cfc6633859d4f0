import pytest

from pytest_moeperf.judge.steadiness import Unsteadiness, surely_scattered, unsteadiness


def test_starts_that_agree_are_steady():
    assert unsteadiness([[0.0, 0.01, -0.01, 0.005]], limit_log=0.03) is None


def test_one_odd_start_is_no_second_mode():
    assert unsteadiness([[0.0, 0.01, -0.01, -0.4]], limit_log=0.03) is None


def test_two_odd_starts_are_a_second_mode():
    found = unsteadiness([[0.0, 0.01, -0.2, 0.0, -0.21]], limit_log=0.03)
    assert found == Unsteadiness(pytest.approx(0.2), two_modes=True)


def test_a_mode_is_found_beside_an_odd_start():
    found = unsteadiness([[0.0, 0.01, 0.0, -0.2, -0.21, -0.9]], limit_log=0.03)
    assert found == Unsteadiness(pytest.approx(0.2), two_modes=True)


def test_what_distinguishes_the_groups_counts_for_nothing():
    assert unsteadiness([[0.0, 0.01, 0.0], [-0.5, -0.51, -0.5]], limit_log=0.03) is None


def test_a_mode_may_show_in_both_groups_together():
    found = unsteadiness([[0.0, 0.0, -0.2], [1.0, 1.0, 0.8]], limit_log=0.03)
    assert found == Unsteadiness(pytest.approx(0.2), two_modes=True)


def test_starts_that_lie_everywhere_scatter():
    found = unsteadiness([[0.0, 0.02, 0.04, 0.06, 0.08]], limit_log=0.03)
    # Distances from the median of 0, 2, 2, 4 and 4 %: 1.4826 times 2 % is 3 %, just below it.
    assert found is None
    found = unsteadiness([[0.0, 0.03, 0.06, 0.09, 0.12]], limit_log=0.031)
    assert found == Unsteadiness(pytest.approx(1.4826 * 0.03), two_modes=False)


def test_three_starts_are_too_few():
    assert unsteadiness([[0.0, 0.5, 1.0]], limit_log=0.03) is None
    assert unsteadiness([[0.0], [0.5], [1.0], [7.0]], limit_log=0.03) is None


@pytest.mark.parametrize(("limit", "sure"), [(0.03, False), (0.02, True)])
def test_scatter_is_sure_where_chi_square_says_so(limit, sure):
    # Squares around the mean of 0.05 add up to 0.01; chi-square of 3 df exceeds 16.27 in 0.1 %.
    starts = [0.0, 0.0, 0.1, 0.1]
    assert surely_scattered([starts], limit_log=limit, p_limit=0.001) is sure


def test_single_starts_do_not_scatter():
    assert not surely_scattered([[0.0], [5.0], []], limit_log=0.0, p_limit=0.001)
