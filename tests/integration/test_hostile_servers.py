"""What servers, proxies and networks do to a stream, byte by byte.

Whatever it is, every request is in the record once, with its tokens or with a short reason.
"""

import contextlib
import itertools
import socket
import ssl
import struct
import threading
import time
from pathlib import Path

import pytest

from pytest_moeperf.client import Target
from pytest_moeperf.driver import play
from pytest_moeperf.errors import LoadError, ServerHungError
from pytest_moeperf.records import RequestSpec
from pytest_moeperf.testing import FakeEngine, Script
from pytest_moeperf.workload import Plan

NS_PER_MS = 10**6
LARGE = "word " * 1_200_000
"""More than Linux takes from a sender at once, which is 2.8 MB by its defaults."""
TLS = Path(__file__).parents[1] / "data" / "tls"


def event(text):
    return b"data: " + text.encode() + b"\n\n"


def tokens(*ids):
    listed = ",".join(map(str, ids))
    return event(f'{{"choices":[{{"index":0,"text":"x","token_ids":[{listed}]}}]}}')


def usage(prompt=2, output=3):
    return event(
        f'{{"choices":[],"usage":{{"prompt_tokens":{prompt},"completion_tokens":{output}}}}}'
    )


def chunk(data, extension=b""):
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


def sized(body, status=b"200 OK", *headers):
    lines = [b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


DONE = event("[DONE]")
EVENTS = (tokens(7), tokens(8, 9), usage(), DONE)
BODY = b"".join(EVENTS)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
GOOD = CHUNKED + b"".join(map(chunk, EVENTS)) + LAST

CLOSE = "close"
RESET = "reset"
PAUSE = 0.05
"""Long enough for a client that is not starved to read what came before."""


class HostileServer:
    """Answers requests on raw sockets, one thread a connection, until the `with` block ends.

    `script(number)` gives the answer to request `number` (from 0, in the order of arrival) step
    by step: bytes to send, seconds to wait, CLOSE or RESET.
    """

    def __init__(
        self,
        script,
        *,
        host="127.0.0.1",
        context=None,
        greeting=(),
        read_after_s=0.0,
        reads_bodies=True,
    ):
        self.requests = []
        self.accepted_ns = []
        self._script = script
        self._context = context
        self._greeting = greeting
        self._read_after_s = read_after_s
        self._reads_bodies = reads_bodies
        self._numbers = itertools.count()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family)
        # Small, so that a large request does not fit.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind((host, 0))
        self._listener.listen(512)
        self.port = self._listener.getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self.port}"
        self._connections = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted_ns.append(time.perf_counter_ns())
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=[connection]))
                self._threads[-1].start()

    def _serve(self, connection):
        # A client that went away is no error here.
        with contextlib.suppress(OSError):
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            self._play(connection, self._greeting)
            time.sleep(self._read_after_s)
            while (request := read_request(connection, whole=self._reads_bodies)) is not None:
                number = next(self._numbers)
                self.requests.append(request)
                self._play(connection, self._script(number))
        with contextlib.suppress(OSError):
            connection.close()

    def _play(self, connection, steps):
        for step in steps:
            if isinstance(step, bytes):
                connection.sendall(step)
            elif isinstance(step, float):
                time.sleep(step)
            else:
                if step == RESET:
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.close()


def read_request(connection, *, whole=True):
    """Head and body of the next request; None at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(65536)
        if not received:
            return None
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    parts = [body]
    while whole and (missing := length - sum(map(len, parts))) > 0:
        parts.append(connection.recv(min(missing, 65536)))
        if not parts[-1]:
            return None
    return head, b"".join(parts)


def closed(requests, *, concurrency=1, prompt=(1, 2)):
    specs = (RequestSpec(index=index, prompt=prompt, output_tokens=3) for index in range(requests))
    return Plan(requests=tuple(specs), concurrency=concurrency)


def open_loop(*offsets_ms):
    specs = (
        RequestSpec(index=index, prompt=(1, 2), output_tokens=3, offset_ns=offset * NS_PER_MS)
        for index, offset in enumerate(offsets_ms)
    )
    return Plan(requests=tuple(specs), concurrency=None)


def records(url, plan, *, stall_timeout_s=20.0, **options):
    """Play the plan; every request must be recorded once."""
    repeat = play(Target(url, "m", **options), plan, stall_timeout_s=stall_timeout_s)
    assert [record.index for record in repeat.requests] == list(range(len(plan.requests)))
    for record in repeat.requests:
        stamps = [record.sent_ns, *record.chunk_ns, record.ended_ns]
        assert stamps == sorted(stamps)
        assert record.error is None or record.error.isprintable()
    return repeat.requests


def is_whole(record):
    return (
        record.error is None
        and sum(record.chunk_tokens) == 3
        and (record.prompt_tokens, record.output_tokens) == (2, 3)
    )


def answer_once(steps):
    """A script that answers the second request so, and all others well."""
    return lambda number: steps if number == 1 else [GOOD]


def test_a_response_may_be_cut_at_every_byte():
    requests = len(GOOD) - 1
    with HostileServer(lambda n: [GOOD[: n + 1], 0.002, GOOD[n + 1 :]]) as server:
        played = records(server.url, closed(requests, concurrency=8))
    assert requests > 300
    assert all(map(is_whole, played))


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([GOOD], id="all at once"),
        pytest.param([bytes([byte]) for byte in GOOD], id="byte by byte"),
        pytest.param([CHUNKED, *itertools.chain(*((chunk(e), PAUSE) for e in EVENTS)), LAST]),
        pytest.param([CHUNKED + b"".join(chunk(bytes([b])) for b in BODY) + LAST], id="1-byte"),
        pytest.param([CHUNKED + chunk(BODY, b';name="value";x=1') + LAST], id="extension"),
        pytest.param(
            [CHUNKED + chunk(BODY) + b"0\r\nX-Checksum: 1\r\nX-More: 2\r\n\r\n"], id="trailers"
        ),
        pytest.param([sized(BODY)], id="content length"),
        pytest.param([sized(BODY, b"200 OK", b"Connection: close"), CLOSE], id="announced close"),
        pytest.param([HEAD + b"Connection: close\r\n\r\n" + BODY, CLOSE], id="length by close"),
        pytest.param([b"HTTP/1.0 200 OK\r\n\r\n" + BODY, CLOSE], id="HTTP/1.0"),
        pytest.param([b"HTTP/1.0 200 OK\r\n\r\n", PAUSE, BODY, PAUSE, CLOSE], id="HTTP/1.0 slow"),
        pytest.param([sized(BODY).replace(b"/1.1", b"/1.0"), CLOSE], id="HTTP/1.0 with length"),
        pytest.param([b"HTTP/1.1 100 Continue\r\n\r\n", GOOD], id="100"),
        pytest.param(
            [
                b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
                PAUSE,
                b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD,
            ],
            id="103 and 100",
        ),
        pytest.param([sized(BODY.replace(b"\n", b"\r\n"))], id="CRLF"),
        pytest.param([sized(BODY.replace(b"\n", b"\r"))], id="CR"),
        pytest.param([sized(b": ping\n\nretry: 5\nevent: x\nid: 4\n" + BODY)], id="comments"),
        pytest.param([HEAD + b"X-Long: " + b"x" * 200_000 + b"\r\n" + CHUNKED[len(HEAD) :],
                      GOOD[len(CHUNKED) :]], id="huge header"),
        # What says [DONE] is whole, however its connection ends.
        pytest.param([GOOD.removesuffix(LAST), CLOSE], id="no last chunk, closed"),
        pytest.param([sized(BODY + b"x").removesuffix(b"x"), CLOSE], id="less than announced"),
        pytest.param([sized(BODY, b"200 OK", b"Connection: close"), RESET], id="reset at the end"),
        pytest.param([GOOD + b"rubbish"], id="rubbish behind"),
        pytest.param([GOOD + GOOD], id="the response twice"),
        pytest.param([GOOD + sized(b"no", b"500 Oh")], id="a refusal behind"),
    ],
)  # fmt: skip
def test_a_stream_is_whole_however_it_is_sent(steps):
    with HostileServer(answer_once(steps)) as server:
        played = records(server.url, closed(4))
    assert [record.error for record in played] == [None] * 4
    assert all(map(is_whole, played))
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        ([CLOSE], "connection lost"),
        ([RESET], "connection lost"),
        ([HEAD[:30], CLOSE], "connection lost"),
        ([HEAD[:30], RESET], "connection lost"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", CLOSE], "connection lost"),
        ([CHUNKED, CLOSE], "connection lost"),
        ([CHUNKED + chunk(EVENTS[0])[:-9], CLOSE], "connection lost"),
        ([HEAD + b"\r\n" + BODY.removesuffix(DONE), CLOSE], "connection lost"),
        ([b"garbage\r\n\r\n"], "not HTTP (Expected HTTP/, RTSP/ or ICE/)"),
        ([b"\x00" * 100_000], "not HTTP (Expected HTTP/, RTSP/ or ICE/)"),
        ([b"HTTP/1.1 abc\r\n\r\n"], "not HTTP (Invalid status code)"),
        ([CHUNKED + b"zz\r\n"], "not HTTP (Invalid character in chunk size)"),
        ([CHUNKED + b"5\r\ndata: x\r\n"], "not HTTP (Expected LF after chunk data)"),
        ([CHUNKED + b"f" * 20 + b"\r\n"], "not HTTP (Chunk size overflow)"),
        ([sized(b"", b"500 Internal Server Error")], "HTTP 500"),
        ([b"HTTP/1.1 502 Bad Gateway\r\n\r\n<h1>no\nupstream</h1>", CLOSE],
         "HTTP 502: <h1>no upstream</h1>"),
        ([b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 99\r\n\r\nhalf", RESET],
         "HTTP 502: half"),
        ([CHUNKED.replace(b"200 OK", b"429 Slow") + chunk(b'{"error":') +
          chunk(b'{"message":"too many requests"}}') + LAST], "HTTP 429: too many requests"),
        ([sized(b'{"object":"error","message":"no"}', b"400 Bad Request")], "HTTP 400: no"),
        ([sized(b"x" * 10**6, b"400 Bad Request")], "HTTP 400: " + "x" * 199 + "…"),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], "HTTP 204"),
        ([sized(b"", b"302 Found", b"Location: /elsewhere")], "HTTP 302"),
        ([b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n??"],
         "HTTP 101"),
        ([sized(b'{"choices":[{"text":"all at once"}]}', b"200 OK")],
         "stream ended after 0 tokens without [DONE]"),
        ([sized(b"")], "stream ended after 0 tokens without [DONE]"),
        ([sized(DONE)], "stream without tokens"),
        ([sized(BODY.removesuffix(DONE))], "stream ended after 3 tokens without [DONE]"),
        ([sized(EVENTS[0] + event('{"error":{"message":"out of memory"}}') + DONE)],
         "out of memory"),
        ([sized(tokens(1) + usage(output=-3) + DONE)],
         ("impossible 'completion_tokens' in the stream: "
          '{"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":-3}}')),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_told_and_the_next_request_is_well(steps, error):
    with HostileServer(answer_once(steps)) as server:
        played = records(server.url, closed(4))
    assert [record.error for record in played] == [None, error, None, None]
    assert len(server.requests) == 4


def test_tokens_before_an_end_in_the_middle_are_kept():
    broken = [CHUNKED + chunk(EVENTS[0]), PAUSE, chunk(EVENTS[1]) + b"5", RESET]
    with HostileServer(answer_once(broken)) as server:
        record = records(server.url, closed(2))[1]
    assert record.error == "connection lost"
    assert list(record.chunk_tokens) == [1, 2]
    assert record.output_tokens is None


def test_a_usage_that_lies_is_recorded_as_it_came():
    with HostileServer(lambda _: [sized(EVENTS[0] + usage(prompt=0, output=99) + DONE)]) as server:
        [record] = records(server.url, closed(1))
    assert list(record.chunk_tokens) == [1]
    assert (record.prompt_tokens, record.output_tokens, record.error) == (0, 99, None)


def test_tokens_behind_an_early_done_count():
    body = DONE + EVENTS[0] + DONE + EVENTS[1] + usage()
    with HostileServer(lambda _: [sized(body)]) as server:
        assert is_whole(records(server.url, closed(1))[0])


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([], id="silence"),
        pytest.param([b"HTTP/1.1 100 Continue\r\n\r\n"], id="interim only"),
        pytest.param([HEAD[:-5]], id="half a head"),
        pytest.param([CHUNKED], id="head only"),
        pytest.param([GOOD.removesuffix(LAST)], id="no last chunk"),
        pytest.param([CHUNKED + chunk(BODY.removesuffix(DONE))], id="no done"),
        pytest.param([CHUNKED, *[chunk(b": ping\n\n"), 0.1] * 100], id="comments only"),
    ],
)
def test_a_server_that_goes_silent_is_found(steps):
    with (
        HostileServer(answer_once(steps)) as server,
        pytest.raises(ServerHungError, match=r"1 requests in flight, 1 of 4 done"),
    ):
        records(server.url, closed(4), stall_timeout_s=0.2)


@pytest.mark.parametrize(
    ("greeting", "errors"),
    [
        ([sized(b"full", b"503 Busy", b"Connection: close"), CLOSE], {"HTTP 503: full"}),
        ([b"SSH-2.0-OpenSSH_9.6\r\n"], {"not HTTP (Expected HTTP/, RTSP/ or ICE/)"}),
        ([CLOSE], {"connection lost"}),
        ([RESET], {"connection lost"}),
    ],
)
@pytest.mark.parametrize("include_connect", [False, True])
def test_a_server_that_speaks_first_harms_nobody(greeting, errors, include_connect):
    lost = {"connection lost", "data that nobody asked for"}
    with HostileServer(lambda _: [], greeting=greeting) as server:
        failed = f"cannot connect to 127.0.0.1:{server.port} (Connection reset by peer)"
        try:
            played = records(
                server.url,
                closed(6, concurrency=2),
                include_connect=include_connect,
                stall_timeout_s=1.0,
            )
        except LoadError as error:
            # It was so fast that not even the connections ahead could be opened.
            reason = str(error).partition("does not answer: ")[2]
            assert reason in lost | {failed}
        else:
            assert {record.error for record in played} <= errors | lost | {failed}


def test_an_idle_connection_that_the_server_closes_is_not_used():
    with HostileServer(lambda _: [GOOD, PAUSE, CLOSE]) as server:
        played = records(server.url, open_loop(0, 400, 800))
    assert all(map(is_whole, played))


def test_rubbish_on_an_idle_connection_spoils_only_that():
    with HostileServer(lambda _: [GOOD, PAUSE, b"\r\nrubbish"]) as server:
        played = records(server.url, open_loop(0, 400, 800))
    assert all(map(is_whole, played))


def test_connections_are_used_again():
    with HostileServer(lambda _: [GOOD]) as server:
        records(server.url, closed(20, concurrency=2))
        # One more asks whether anybody listens.
        assert len(server.accepted_ns) == 3


def test_every_request_has_its_own_connection_where_the_set_up_counts():
    with HostileServer(lambda _: [GOOD]) as server:
        played = records(server.url, closed(5, concurrency=1), include_connect=True)
    assert all(map(is_whole, played))
    sent_ns = [record.sent_ns for record in played]
    assert len(server.accepted_ns) == 1 + 5
    assert all(
        sent < accepted for sent, accepted in zip(sent_ns, server.accepted_ns[1:], strict=True)
    )


@pytest.fixture
def tls_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    return context


def https(server, host="localhost"):
    return f"https://{host}:{server.port}"


@pytest.mark.parametrize("include_connect", [False, True])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_with_a_certificate_that_is_trusted(monkeypatch, tls_context, version, include_connect):
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "cert.pem"))
    tls_context.minimum_version = tls_context.maximum_version = version
    with HostileServer(lambda _: [GOOD], context=tls_context) as server:
        played = records(https(server), closed(4, concurrency=1), include_connect=include_connect)
    assert all(map(is_whole, played))
    # The handshake cannot end before the server has accepted, so this tells where it counts.
    assert len(server.accepted_ns) == 1 + (4 if include_connect else 1)
    first, accepted_ns = played[0], server.accepted_ns[1]
    assert (first.sent_ns < accepted_ns) == include_connect
    assert all(record.chunk_ns[0] > record.sent_ns for record in played)


@pytest.mark.parametrize("steps", [[CLOSE], [RESET], [CHUNKED + chunk(EVENTS[0]), PAUSE, RESET]])
def test_tls_that_breaks_is_told_like_any_connection(monkeypatch, tls_context, steps):
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "cert.pem"))
    with HostileServer(answer_once(steps), context=tls_context) as server:
        played = records(https(server, "127.0.0.1"), closed(3))
    assert [record.error for record in played] == [None, "connection lost", None]


def test_a_large_request_and_many_small_chunks_over_tls(monkeypatch, tls_context):
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "cert.pem"))
    prompt = LARGE
    answer = [CHUNKED, *(bytes([b]) for b in chunk(BODY)), LAST]
    with HostileServer(lambda _: answer, context=tls_context, read_after_s=0.2) as server:
        played = records(https(server), closed(2, prompt=prompt))
    assert all(map(is_whole, played))
    assert all(len(body) > len(prompt) for _, body in server.requests)


def test_a_certificate_that_is_not_trusted_is_told_in_one_line(monkeypatch, tls_context):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with HostileServer(lambda _: [GOOD], context=tls_context) as server:
        with pytest.raises(LoadError) as caught:
            records(https(server), closed(1))
        assert str(caught.value) == (
            f"{https(server)} does not answer: the certificate of localhost is not trusted: "
            "self-signed certificate"
        )


def test_tls_that_is_none_is_told_in_one_line():
    with (
        HostileServer(lambda _: [], greeting=[b"HTTP/1.1 400 Bad Request\r\n\r\n"]) as server,
        pytest.raises(LoadError, match=r"does not answer: no TLS with localhost: \w+$"),
    ):
        records(https(server), closed(1))


def test_an_ipv6_server():
    try:
        server = HostileServer(lambda _: [GOOD], host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with server:
        played = records(server.url, closed(2))
    assert all(map(is_whole, played))
    assert f"\r\nHost: [::1]:{server.port}\r\n".encode() in server.requests[0][0]


def test_a_large_request_is_sent_as_the_server_takes_it():
    prompt = LARGE
    with HostileServer(lambda _: [GOOD], read_after_s=0.2) as server:
        played = records(server.url, closed(4, concurrency=2, prompt=prompt))
    assert all(map(is_whole, played))
    assert len(server.requests) == 4
    assert all(f'"prompt":"{prompt}"'.encode() in body for _, body in server.requests)


@pytest.mark.parametrize("behind", [[], [PAUSE, CLOSE], [CLOSE]])
def test_a_refusal_while_the_request_is_still_being_sent_is_told(behind):
    refusal = [PAUSE, sized(b"", b"413 Content Too Large"), *behind]
    plan = closed(3, prompt=LARGE)
    with HostileServer(lambda _: [], greeting=refusal, read_after_s=0.5) as server:
        played = records(server.url, plan, include_connect=True)
    assert [record.error for record in played] == ["HTTP 413"] * 3


def test_a_connection_is_not_used_again_with_a_rest_to_send():
    refusal = [sized(b"", b"413 Content Too Large")]
    plan = closed(3, prompt=LARGE)
    with HostileServer(lambda _: refusal, reads_bodies=False) as server:
        played = records(server.url, plan)
        assert len(server.accepted_ns) == 1 + 3
    assert [record.error for record in played] == ["HTTP 413"] * 3


def test_one_silent_stream_among_others_fails_alone():
    def script(number):
        return [CHUNKED, chunk(EVENTS[0]), 8.0] if number == 0 else [0.1, GOOD]

    with HostileServer(script) as server:
        played = records(server.url, closed(40, concurrency=2), stall_timeout_s=0.5)
    silent = [record for record in played if record.error is not None]
    assert len(silent) == 1
    assert silent[0].error == "no token for 3 s, while other requests went on"
    assert list(silent[0].chunk_tokens) == [1]


def test_a_stream_without_end_fails():
    endless = itertools.chain([CHUNKED], itertools.repeat(chunk(tokens(1, 2, 3, 4))))
    with HostileServer(lambda number: endless if number == 0 else [GOOD]) as server:
        played = records(server.url, closed(3))
    assert played[0].error.endswith(" tokens came, 3 were asked for, and no end")
    assert [record.error for record in played[1:]] == [None, None]


def test_three_hundred_streams_at_once():
    with FakeEngine(Script(ttft_ms=300, itl_ms=5)) as engine:
        plan = closed(600, concurrency=300)
        repeat = play(Target(engine.url, engine.model), plan)
        assert engine.requests_received == 600
    assert [record.index for record in repeat.requests] == list(range(600))
    assert [record.error for record in repeat.requests] == [None] * 600
    assert all(list(record.chunk_tokens) == [1, 1, 1] for record in repeat.requests)
