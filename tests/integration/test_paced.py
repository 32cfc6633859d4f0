"""The paced server beside a client that is simple enough to be believed."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import pytest

from pytest_moeperf.errors import ServerStartError
from pytest_moeperf.selftest import PacedServer
from pytest_moeperf.truth import Truth

MS = 1_000_000
TTFT_MS, ITL_MS = 6, 3
END_S = 20.0


@dataclass
class Seen:
    sent_ns: int
    events: list
    """Arrival in ns and text of each event with a token."""
    usage: dict | None


@pytest.fixture
def serve():
    with contextlib.ExitStack() as stack:

        def start(mode="spread", *options):
            server = PacedServer(mode=mode, ttft_ms=TTFT_MS, itl_ms=ITL_MS, options=options)
            return stack.enter_context(server)

        yield start


def body(key, tokens, **fields):
    options = {"stream_options": {"include_usage": True}}
    prompt = {"prompt": [key, 1, 2], "max_tokens": tokens, "stream": True}
    return json.dumps(prompt | options | fields)


def connect(server):
    return http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=END_S)


def complete(server, key, tokens, connection=None):
    """Stream one completion with the standard library's HTTP client."""
    with contextlib.ExitStack() as stack:
        if connection is None:
            connection = stack.enter_context(contextlib.closing(connect(server)))
        seen = Seen(time.monotonic_ns(), [], None)
        connection.request("POST", "/v1/completions", body(key, tokens))
        with connection.getresponse() as response:
            assert response.status == 200
            for line in response:
                arrival_ns = time.monotonic_ns()
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    seen.usage = event["usage"]
                    if event["choices"]:
                        seen.events.append((arrival_ns, event["choices"][0]))
    return seen


def together(server, keys, tokens):
    """Several streams at a time, by key."""
    seen = {}

    def one(key):
        seen[key] = complete(server, key, tokens)

    threads = [threading.Thread(target=one, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def check(truth, seen):
    """Each chunk left before it came, and each request was sent before it arrived."""
    assert sorted(truth.keys.tolist()) == sorted(seen)
    ends = np.cumsum(truth.arrivals.counts)
    for number, key in enumerate(truth.keys.tolist()):
        sends = truth.arrivals.chunk_ns[: ends[number]][-truth.arrivals.counts[number] :]
        client = seen[key]
        assert len(sends) == len(client.events)
        assert client.sent_ns <= truth.arrivals.start_ns[number] <= sends[0]
        assert all(
            sent <= came for sent, (came, _) in zip(sends.tolist(), client.events, strict=True)
        )
    # Never early.
    assert truth.lateness_ms().min() >= 0


def test_streams_of_one_connection(serve):
    server = serve()
    with contextlib.closing(connect(server)) as connection:
        seen = {key: complete(server, key, 4, connection) for key in (11, 12, 13)}
    truth = server.flush()
    check(truth, seen)
    assert truth.keys.tolist() == [11, 12, 13]
    assert truth.arrivals.counts.tolist() == [4, 4, 4]
    choices = [choice for _, choice in seen[11].events]
    assert [choice["token_ids"] for choice in choices] == [[1000], [1001], [1002], [1003]]
    assert seen[11].usage == {"prompt_tokens": 3, "total_tokens": 7, "completion_tokens": 4}


@pytest.mark.parametrize("mode", ["spread", "step"])
def test_many_streams_at_a_time(serve, mode):
    server = serve(mode)
    seen = together(server, range(100, 112), 5)
    truth = server.flush()
    check(truth, seen)
    assert truth.mode == mode
    assert truth.short_sends == 0


def test_streams_in_step_share_their_ticks(serve):
    """Chunks of one tick lie together: nothing but the sends of other streams is between them."""
    server = serve("step")
    together(server, range(8), 4)
    truth = server.flush()
    sent = truth.arrivals
    ticks = (sent.chunk_ns - truth.origin_ns) // truth.itl_ns
    # Of each stream one chunk a tick, unless the machine was away for a whole one.
    by_stream = np.split(ticks, np.cumsum(sent.counts)[:-1])
    assert all((np.diff(stream) >= 0).all() for stream in by_stream)
    first_due = (sent.start_ns + truth.ttft_ns - truth.origin_ns + truth.itl_ns - 1) // truth.itl_ns
    assert all(stream[0] >= due for stream, due in zip(by_stream, first_due, strict=True))


def test_merged_events_share_one_send(serve):
    server = serve("spread", "--merge", "3")
    seen = {5: complete(server, 5, 7)}
    truth = server.flush()
    check(truth, seen)
    times = truth.arrivals.chunk_ns.tolist()
    assert times[0] == times[1] == times[2] < times[3] == times[4] == times[5] < times[6]


def test_split_events_are_whole_behind_the_socket(serve):
    server = serve("spread", "--split")
    seen = together(server, range(4), 40)
    check(server.flush(), seen)


def test_a_flush_begins_a_new_log(serve):
    server = serve()
    complete(server, 1, 2)
    assert server.flush().keys.tolist() == [1]
    complete(server, 2, 2)
    assert server.flush().keys.tolist() == [2]
    assert server.flush().keys.tolist() == []


def test_a_reader_that_lags_gets_everything_and_is_counted():
    tokens = 30_000
    with (
        PacedServer(mode="spread", ttft_ms=1, itl_ms=0.001) as server,
        socket.socket() as slow,
    ):
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        address = urlsplit(server.url)
        slow.settimeout(END_S)
        slow.connect((address.hostname, address.port))
        content = body(1, tokens).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nContent-Length: {len(content)}\r\n\r\n"
        slow.sendall(head.encode() + content)
        await_short_sends(server)
        received = bytearray()
        while not received.endswith(b"0\r\n\r\n"):
            data = slow.recv(1 << 20)
            assert data
            received += data
    assert received.count(b"data: ") == tokens + 2


def await_short_sends(server):
    deadline = time.monotonic() + END_S
    while not server.flush().short_sends:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_readers_that_leave_do_not_disturb_the_others(serve):
    server = serve()
    for key in range(10):
        with contextlib.closing(connect(server)) as leaving:
            leaving.request("POST", "/v1/completions", body(key, 10_000))
            leaving.getresponse().readline()
        # At once, so that it gets the descriptor on which chunks of the other are still due.
        assert len(complete(server, 100 + key, 5).events) == 5
    truth = server.flush()
    counts = dict(zip(truth.keys.tolist(), truth.arrivals.counts.tolist(), strict=True))
    assert all(counts[100 + key] == 5 and counts[key] < 10_000 for key in range(10))


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        (("GET", "/v1/models", ""), 200, '"id": "paced"'),
        (("GET", "/health", ""), 200, "{}"),
        (("GET", "/metrics", ""), 404, "no GET /metrics here"),
        (("POST", "/v1/chat/completions", "{}"), 404, "no POST /v1/chat/completions here"),
        (("POST", "/v1/completions", "{"), 400, "error"),
        (("POST", "/v1/completions", '{"prompt": "x"}'), 400, "'stream': true"),
        (("POST", "/v1/completions", body(1, 0)), 400, "max_tokens = 0: at least 1 is needed"),
    ],
)
def test_other_requests(serve, request_, status, said):
    server = serve()
    with contextlib.closing(connect(server)) as connection:
        connection.request(*request_)
        with connection.getresponse() as response:
            assert response.status == status
            assert said in response.read().decode()


def refused(url):
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def await_end(url):
    deadline = time.monotonic() + END_S
    while not refused(url):
        assert time.monotonic() < deadline
        time.sleep(0.02)


OWNER = """
import sys, time
from pytest_moeperf.selftest import PacedServer
with PacedServer(mode="spread") as server:
    print(server.url, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_its_owner(number):
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as owner:
        url = owner.stdout.readline().decode().strip()
        assert not refused(url)
        owner.send_signal(number)
        owner.wait(END_S)
    await_end(url)


def test_sigterm_writes_the_log(tmp_path):
    log = tmp_path / "sends.log"
    command = [sys.executable, "-m", "pytest_moeperf.testing.paced", "--log", log]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        url = process.stdout.readline().decode().split()[-1]
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=END_S)
        with contextlib.closing(connection):
            seen = complete(None, 9, 3, connection)
        process.terminate()
        assert process.wait(END_S) == 0
    check(Truth.decode(log.read_bytes()), {9: seen})


def test_a_server_that_cannot_start_is_told():
    with pytest.raises(ServerStartError, match="the scripted server did not start"):
        PacedServer(mode="spread", options=("--core", "99999")).__enter__()


def test_a_taken_port_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "pytest_moeperf.testing.paced", "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
            timeout=END_S,
        )
    assert done.returncode == 1
    assert done.stderr == f"127.0.0.1:{port}: {os.strerror(98)}\n"
