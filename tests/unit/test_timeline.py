import pytest

from pytest_moeperf.records import ServerSpec
from pytest_moeperf.timeline import Life, Timeline, TimeSpent


def test_phases_add_up_with_what_servers_cost():
    clock = iter([10.0, 12.5, 20.0, 21.0, 30.0, 34.0, 40.0, 100.0])
    timeline = Timeline(clock=clock.__next__)
    with timeline.during("measuring"):
        pass
    with pytest.raises(KeyError), timeline.during("measuring"):
        raise KeyError
    with timeline.during("warm-up"):
        pass
    with timeline.during("waiting"):
        pass
    timeline.seconds["starting"] += 7.0  # One that never became ready.
    moe, dense = ServerSpec("moe"), ServerSpec("dense")
    lives = [Life(moe, 50.0, 3.0), Life(moe, 40.0, 2.0), Life(dense, 30.0, 0.0)]
    assert timeline.spent(lives) == TimeSpent(
        starting_s=127.0,
        warmup_s=4.0,
        measuring_s=3.5,
        stopping_s=5.0,
        waiting_s=60.0,
        starts=3,
        specs=2,
    )


def test_what_two_processes_spent_is_added():
    one = TimeSpent(starting_s=1.0, starts=1, specs=1)
    two = TimeSpent(starting_s=2.0, measuring_s=5.0, starts=2, specs=1)
    assert one + two == TimeSpent(starting_s=3.0, measuring_s=5.0, starts=3, specs=2)
