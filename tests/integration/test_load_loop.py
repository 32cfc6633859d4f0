"""The loop of a load worker, turn by turn, where what matters is which of two things is first."""

import contextlib
import os
import socket
import struct
import time
from array import array

import pytest

from pytest_moeperf.client import Target, request_head
from pytest_moeperf.loadgen import stamps
from pytest_moeperf.loadgen.connection import Connection
from pytest_moeperf.loadgen.job import Address, Job, RequestFile
from pytest_moeperf.loadgen.loop import Loop
from pytest_moeperf.records import RequestSpec

REFUSAL = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nfull"
LARGE = "word " * 1_200_000
"""More than Linux takes from a sender at once, which is 2.8 MB by its defaults."""
NS_PER_S = 10**9


def fail():
    raise AssertionError("nothing was sent over the control connection")


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def address(listener):
    return Address(
        family=socket.AF_INET, sockaddr=listener.getsockname(), name="server", tls_host=None
    )


@pytest.fixture
def start(address):
    """Starts a loop with one request on a connection that is not open yet."""
    with contextlib.ExitStack() as stack:

        def start(prompt=(1, 2)):
            head = request_head(Target("http://server", "m"))
            file = stack.enter_context(RequestFile(head, model="m", continuous_usage=False))
            file.write([RequestSpec(index=0, prompt=prompt, output_tokens=3)])
            control, other_side = os.pipe()
            stack.callback(os.close, control)
            stack.callback(os.close, other_side)
            job = Job(
                address=address,
                ends=file.ends,
                asked_tokens=array("L", [3]),
                slots=1,
                connections=0,
            )
            loop = Loop(
                job,
                requests_fd=file.fd,
                control_fd=control,
                on_control=fail,
                report=lambda _: None,
            )
            stack.callback(loop.close)
            loop._start_ns = time.perf_counter_ns()
            loop._send_due(time.perf_counter_ns())
            return loop

        yield start


def turn_until(loop, met):
    deadline = time.monotonic() + 10
    while not met():
        assert time.monotonic() < deadline, "it did not happen in time"
        loop._poll(time.perf_counter_ns() + NS_PER_S // 100)


def outcome(loop):
    turn_until(loop, lambda: loop.records)
    [record] = loop.records
    assert record.sent_ns <= record.ended_ns
    return record.error


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_refusal_that_is_there_before_the_request_is_told(start, listener):
    loop = start()
    server, _ = listener.accept()
    with server:
        server.sendall(REFUSAL)
        assert outcome(loop) == "HTTP 503: full"
    assert len(loop._idle) == 1


def test_a_connection_that_was_reset_at_once_is_told(start, listener):
    loop = start()
    server, _ = listener.accept()
    reset(server)
    assert outcome(loop) == "cannot connect to server (Connection reset by peer)"
    assert (loop._idle, loop._connections) == ([], {})


@pytest.mark.parametrize("end", [socket.socket.close, reset])
def test_a_refusal_in_the_middle_of_the_request_is_told(start, listener, end):
    loop = start(prompt=LARGE)
    server, _ = listener.accept()
    [connection] = loop._connections.values()
    turn_until(loop, lambda: connection.wants_to_write)
    server.sendall(REFUSAL)
    end(server)
    assert outcome(loop) == "HTTP 503: full"
    assert (loop._idle, loop._connections) == ([], {})


def test_an_end_in_the_middle_of_the_request_is_told(start, listener):
    loop = start(prompt=LARGE)
    server, _ = listener.accept()
    [connection] = loop._connections.values()
    turn_until(loop, lambda: connection.wants_to_write)
    server.close()
    assert outcome(loop) == "connection lost"
    assert (loop._idle, loop._connections) == ([], {})


def test_data_before_the_request_belongs_to_none(address):
    connection = Connection(address)
    connection.index = 0
    try:
        connection.connected()
        with pytest.raises(ConnectionError, match=r"^data that nobody asked for$"):
            connection.receive(REFUSAL)
    finally:
        connection.close()


def test_a_connection_that_idled_for_3_seconds_is_not_used_again(start, listener):
    """Uvicorn closes it after 5 s, and a request that is written then would fail."""
    loop = start()
    server, _ = listener.accept()
    with server:
        server.sendall(REFUSAL)
        outcome(loop)
        [idle] = loop._idle
        loop._tick(idle.idle_since_ns + 3 * NS_PER_S)
        assert loop._idle == [idle]
        loop._tick(idle.idle_since_ns + 3 * NS_PER_S + 1)
        assert (loop._idle, loop._connections) == ([], {})


def test_an_answer_ends_when_it_came_however_late_it_is_read(start, listener):
    loop = start()
    server, _ = listener.accept()
    with server:
        [connection] = loop._connections.values()
        turn_until(loop, lambda: connection.asked)
        came_ns = connection.sent_ns + 5
        loop._receive(connection, (REFUSAL, came_ns))
    assert [record.ended_ns for record in loop.records] == [came_ns]


def test_the_largest_step_of_the_wall_clock_counts(start, monkeypatch):
    """Also where it was set back again before the end."""
    loop = start()
    steps = iter([loop._offset_ns + 700_000, loop._offset_ns])
    monkeypatch.setattr(stamps, "clock_offset_ns", lambda: next(steps))
    for _ in range(2):
        loop._tick(time.perf_counter_ns())
    assert loop._step_ns == 700_000


@pytest.mark.parametrize("waits", [False, True])
def test_a_poll_that_slept_found_nothing_when_it_began(start, listener, waits):
    """So what it brings came since; what waits may have come since the poll before."""
    loop = start()
    server, _ = listener.accept()
    with server:
        [connection] = loop._connections.values()
        turn_until(loop, lambda: connection.asked)
        if waits:
            server.sendall(b"HTTP/1.1 200 OK\r\n")
            time.sleep(0.05)
        before_ns = loop._polled_ns = time.perf_counter_ns() - NS_PER_S
        loop._poll(time.perf_counter_ns() + NS_PER_S // 10)
    assert (loop._earlier_ns == before_ns) is waits
    assert loop._polled_ns - before_ns >= NS_PER_S


def test_a_stream_is_silent_since_its_last_token(address):
    connection = Connection(address)
    try:
        connection.sent_ns = 1
        connection.stream.feed(
            b'data: {"choices":[{"text":"a","token_ids":[5]}]}\n\n', 100 * NS_PER_S
        )
        assert connection.hopeless(160 * NS_PER_S, 10, silence_s=60) is None
        told = connection.hopeless(161 * NS_PER_S, 10, silence_s=60)
        assert told == "no token for 61 s, while other requests went on"
    finally:
        connection.close()
