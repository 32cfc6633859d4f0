"""Counts, shares and times in words."""

import pytest

from pytest_moeperf.wording import counted, duration, percent


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "0 starts"), (1, "1 start"), (3, "3 starts"), (1024, "1,024 starts")]
)
def test_only_one_is_singular(number, shown):
    assert counted(number, "start") == shown


@pytest.mark.parametrize(
    ("ratio", "shown"), [(0.25, "25 %"), (0.125, "12.5 %"), (1 / 256, "0.391 %"), (1.0, "100 %")]
)
def test_a_share_has_three_digits(ratio, shown):
    assert percent(ratio) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0.0 s"),
        (4.21, "4.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (60.2, "1 min 0 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (5400.0, "1 h 30 min"),
    ],
)
def test_a_time_has_two_units_at_most(seconds, shown):
    assert duration(seconds) == shown
