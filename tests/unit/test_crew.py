"""What the workers of a play found out about themselves, together."""

from array import array

import pytest

from pytest_moeperf.loadgen.crew import Crew, Worker
from pytest_moeperf.loadgen.job import Done

MS = 1_000_000
STARTED_NS = 5_000 * MS


def done(*, ended_ms=2_000, **fields):
    """A worker that used a quarter of a core for 2 s."""
    return Done(
        **{
            "ended_ns": STARTED_NS + ended_ms * MS,
            "cpu_s": 0.5,
            "reads": 10,
            "unstamped_reads": 0,
            "merged_reads": 0,
            "lost_arrivals": 0,
            "clock_step_ns": 0,
            "lags_ns": array("q"),
            **fields,
        }
    )


def recorded(*parts):
    crew = Crew(0)
    crew.workers = [Worker(hand=None, done=part) for part in parts]
    return crew.record(started_ns=STARTED_NS)


def test_the_busiest_worker_is_what_limits_the_client():
    found = recorded(done(cpu_s=0.5), done(cpu_s=0.9, ended_ms=1_000), done(cpu_s=0.1))
    assert found.workers == 3
    assert found.cpu_s == pytest.approx(1.5)
    # 0.25, 0.9 and 0.05 of a core.
    assert found.cpu_share == pytest.approx(0.9)


def test_counts_of_all_workers_are_added():
    found = recorded(done(reads=10, merged_reads=2, lost_arrivals=3), done(reads=5, merged_reads=1))
    assert (found.reads, found.merged_reads, found.lost_arrivals) == (15, 3, 3)


def test_a_clock_that_one_worker_saw_set_was_set():
    found = recorded(done(), done(clock_step_ns=300_000), done(clock_step_ns=100_000))
    assert found.clock_step_ms == pytest.approx(0.3)


def test_lags_of_all_workers_are_one_sample():
    # 1 to 100 ms, the late ones with the first worker, in no order.
    late, soon = (
        array("q", [ms * MS for ms in lags]) for lags in (range(100, 50, -1), range(1, 51))
    )
    found = recorded(done(lags_ns=late), done(lags_ns=soon))
    assert found.read_lag_ms_p50 == pytest.approx(50.5, abs=0.5)
    assert found.read_lag_ms_p99 == pytest.approx(99.5, abs=0.5)
    none = recorded(done())
    assert (none.read_lag_ms_p50, none.read_lag_ms_p99) == (None, None)


@pytest.mark.parametrize(
    ("unstamped", "timestamps"), [((0, 0), "kernel"), ((10, 10), "read"), ((1, 0), "mixed")]
)
def test_whose_stamps_they_are_is_said(unstamped, timestamps):
    parts = [done(unstamped_reads=count) for count in unstamped]
    assert recorded(*parts).timestamps == timestamps
