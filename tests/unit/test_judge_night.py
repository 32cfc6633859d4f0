import pytest

from pytest_moeperf.judge import Night


def take(night):
    """The limit of the next gate."""
    [share] = night.take(1)
    return night.limit(share)


def test_every_gate_has_an_equal_share():
    assert take(Night(60, q=0.03)) == pytest.approx(0.0005)


def test_a_regression_makes_room_for_the_next():
    night = Night(60, q=0.03)
    take(night)
    night.note(rejected=True)
    assert take(night) == pytest.approx(0.001)
    night.note(rejected=False)
    assert take(night) == pytest.approx(0.001)


def test_more_gates_than_planned_share_the_last_share():
    night = Night(3, q=0.03)
    limits = [take(night) for _ in range(5)]
    assert limits == pytest.approx([0.01, 0.01, 0.01 / 2, 0.01 / 6, 0.01 / 12])


@pytest.mark.parametrize("planned", [0, 1, 2, 20, 60])
def test_the_limits_never_add_up_to_more_than_q(planned):
    night = Night(planned, q=0.03)
    spent = 0.0
    for _ in range(3000):
        spent += take(night)
        night.note(rejected=False)
    assert 0.0299 < spent < 0.03


@pytest.mark.parametrize("planned", [2, 20])
def test_gates_that_wait_for_their_verdicts_spend_no_more(planned):
    night = Night(planned, q=0.03)
    assert sum(take(night) for _ in range(3000)) < 0.03


def test_a_night_as_planned_leaves_only_half_a_share():
    assert sum(Night(60, q=0.03).take(60)) == pytest.approx(0.03 - 0.0005 / 2)


def test_gates_that_are_judged_together_have_limits_of_their_own():
    night = Night(3, q=0.03)
    take(night)
    night.note(rejected=True)
    shares = night.take(3)
    assert [night.limit(share) for share in shares] == pytest.approx([0.02, 0.01, 0.02 / 6])


def test_a_gate_that_waits_has_the_room_that_was_made_meanwhile():
    night = Night(60, q=0.03)
    first, second = night.take(2)
    assert night.limit(first) == pytest.approx(0.0005)
    night.note(rejected=True)
    assert night.limit(second) == pytest.approx(0.001)


def test_a_night_without_gates_still_has_a_limit():
    assert take(Night(0, q=0.03)) == pytest.approx(0.015)
