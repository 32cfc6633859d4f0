"""What is sent when: send times of an open loop, slots of a closed one."""

from array import array

import pytest

from pytest_moeperf.loadgen.agenda import Agenda
from pytest_moeperf.loadgen.job import Address, Job, RequestFile
from pytest_moeperf.records import RequestSpec

ADDRESS = Address(family=2, sockaddr=("127.0.0.1", 1), name="nobody", tls_host=None)


@pytest.fixture
def file():
    with RequestFile(b"%d", model="m", continuous_usage=False) as made:
        made.write([RequestSpec(index=n, prompt=(1,), output_tokens=2) for n in range(4)])
        yield made


def agenda_of(file, **fields):
    counts = array("L", [2] * 4)
    job = Job(address=ADDRESS, ends=file.ends, asked_tokens=counts, **fields)
    return Agenda(job, requests_fd=file.fd)


def test_an_open_loop_gives_each_request_at_its_time(file):
    agenda = agenda_of(file, slots=None, schedule=((10, 2), (10, 0), (30, 1)))
    assert agenda.take(9) is None
    assert agenda.next_ns() == 10
    assert agenda.due_until(10) == 2
    assert [agenda.take(10), agenda.take(10), agenda.take(10)] == [(2, 10), (0, 10), None]
    assert agenda.due_until(29) == 0
    assert agenda.take(35) == (1, 30)
    assert not agenda
    assert agenda.next_ns() is None


def test_a_slot_takes_the_next_request_and_rests_before_it(file):
    think_ns = array("q", [0, 0, 100, 5])
    agenda = agenda_of(file, slots=2, think_ns=think_ns)
    assert [agenda.take(0), agenda.take(0), agenda.take(0)] == [(0, None), (1, None), None]
    agenda.free_slot(50)
    agenda.free_slot(60)
    # The later slot rests less, so its request comes first.
    assert agenda.next_ns() == 65
    assert agenda.take(149) == (3, None)
    assert agenda.take(149) is None
    assert agenda.take(150) == (2, None)
    agenda.free_slot(160)
    assert not agenda


def test_two_workers_never_take_the_same_request(file):
    first, second = (agenda_of(file, slots=1) for _ in range(2))
    taken = [first.take(0), second.take(0)]
    second.free_slot(0)
    first.free_slot(0)
    taken += [second.take(0), first.take(0)]
    assert taken == [(0, None), (1, None), (2, None), (3, None)]
