import pytest

from pytest_moeperf.judge import Night


def test_every_gate_has_an_equal_share():
    assert Night(60, q=0.03).limit == pytest.approx(0.0005)


def test_a_regression_makes_room_for_the_next():
    night = Night(60, q=0.03)
    night.note(rejected=True)
    assert night.limit == pytest.approx(0.001)
    night.note(rejected=False)
    assert night.limit == pytest.approx(0.001)


def test_more_gates_than_planned_share_what_there_is():
    night = Night(2, q=0.03)
    for _ in range(5):
        night.note(rejected=False)
    assert night.limit == pytest.approx(0.005)


def test_a_night_without_gates_still_has_a_limit():
    assert Night(0, q=0.03).limit == pytest.approx(0.03)
