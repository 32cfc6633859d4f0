"""One epoll loop that sends the chunks of many streams at the times of an absolute schedule.

Streams differ only in when they begin. So whoever was served last is due last, and two queues
keep the whole schedule in order: streams that wait for their first chunk, and those that run.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from array import array
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_moeperf.testing.paced_wire import (
    MODEL,
    STREAM_HEAD,
    CompletionRequest,
    HttpRequest,
    answer,
    end_of_stream,
    payloads,
    take_request,
)
from pytest_moeperf.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PacedLoop", "Schedule", "Stream"]

SPIN_NS = 60_000
"""A sleep may end so much too late; the rest of a wait is spent asking for new requests."""
SENDS_BETWEEN_POLLS = 16
"""How many sends a new request may have to wait for: some 0.1 ms."""
READ_BYTES = 1 << 18
SO_TIMESTAMPNS = 35
"""Of Linux; the socket module does not name it."""
TIMESPEC = struct.Struct("=qq")
ANCILLARY_BYTES = socket.CMSG_SPACE(TIMESPEC.size)
AT_ONCE_NS = 20_000
BACKLOG = 4096
IDLE_S = 0.1
"""How often a server without streams looks whether it was told to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When the chunks of a stream are due."""

    mode: str
    """`spread`: by the stream's own arrival. `step`: all streams together, at the ticks of one
    clock, as an engine sends a token of every running request after each step."""
    ttft_ns: int
    itl_ns: int
    merge: int = 1
    """Events in one send; sends are then so many times `itl_ns` apart."""
    origin_ns: int
    """A tick of the clock of `step`."""

    @property
    def period_ns(self) -> int:
        """Between two sends of a stream."""
        return self.itl_ns * self.merge

    def first_due_ns(self, arrival_ns: int) -> int:
        """When a stream that was asked for at `arrival_ns` is to get its first chunk."""
        due_ns = arrival_ns + self.ttft_ns
        if self.mode == "step":
            due_ns += (self.origin_ns - due_ns) % self.period_ns
        return due_ns


class Connection:
    """One socket of a client."""

    __slots__ = ("fileno", "pending", "received", "send", "socket")

    def __init__(self, accepted: socket.socket, *, split: bool) -> None:
        accepted.settimeout(0)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.socket = accepted
        self.fileno = accepted.fileno()
        self.received = b""
        self.pending = b""
        """What the socket did not take yet."""
        self.send: Callable[[bytes], int] = _Splitter(accepted) if split else accepted.send


class Stream:
    """One completion, from its arrival to its last chunk."""

    __slots__ = ("arrival_ns", "connection", "due_ns", "left", "note", "request", "sent_ns")

    def __init__(
        self, request: CompletionRequest, connection: Connection, *, arrival_ns: int
    ) -> None:
        self.request = request
        self.connection = connection
        self.arrival_ns = arrival_ns
        self.due_ns = 0
        self.left: deque[bytes] = deque()
        self.sent_ns = array("q")
        """The time just before each send."""
        self.note = self.sent_ns.append


class _Splitter:
    """Sends in two segments, cut at another place every time."""

    def __init__(self, accepted: socket.socket) -> None:
        self._send = accepted.send
        self._turn = 0

    def __call__(self, data: bytes) -> int:
        self._turn += 1
        cut = 1 + self._turn * 37 % max(1, len(data) - 1)
        sent = self._send(data[:cut])
        try:
            return sent + self._send(data[cut:]) if sent == cut < len(data) else sent
        except BlockingIOError:
            return sent


def _arrival_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    """When the kernel received what was read: requests that come at once wait to be read."""
    now_ns = time.monotonic_ns()
    if not ancillary:
        return now_ns
    seconds, nanoseconds = TIMESPEC.unpack(ancillary[0][2])
    while True:
        wall_ns, read_ns = time.time_ns(), time.monotonic_ns()
        # Both clocks at one moment, unless the kernel took the core away between them.
        if read_ns - now_ns < AT_ONCE_NS:
            break
        now_ns = time.monotonic_ns()
    waited_ns: int = wall_ns - seconds * 1_000_000_000 - nanoseconds
    return now_ns - max(0, waited_ns)


class PacedLoop:
    """Serves on a listening socket until it is told to stop."""

    def __init__(
        self,
        listener: socket.socket,
        schedule: Schedule,
        *,
        split: bool = False,
        on_flush: Callable[[], None],
    ) -> None:
        """`on_flush` is called by `POST /flush`, and answered when it returns."""
        listener.settimeout(0)
        listener.listen(BACKLOG)
        self.schedule = schedule
        self.streams: list[Stream] = []
        """All that were asked for, in order of arrival; whoever keeps a log empties it."""
        self.short_sends = 0
        self.broken_streams = 0
        self.stopping = False
        self._listener = listener
        self._split = split
        self._on_flush = on_flush
        self._starting: deque[Stream] = deque()
        self._running: deque[Stream] = deque()
        self._connections: dict[int, Connection] = {}
        self._watched = -1
        self._epoll = select.epoll()
        self._epoll.register(listener, select.EPOLLIN)

    def stop_at_end_of(self, descriptor: int) -> None:
        """Stop when the other end of this pipe is closed."""
        self._watched = descriptor
        self._epoll.register(descriptor, select.EPOLLIN)

    def run(self) -> None:
        """Serve; returns after `stopping` was set, which a signal may do."""
        while not self.stopping:
            self._wait()
            self._send_due()
        for connection in list(self._connections.values()):
            self._close(connection)
        self._epoll.close()
        self._listener.close()

    def _wait(self) -> None:
        """Sleep until shortly before the next chunk is due, and take in what came meanwhile."""
        queues = (self._starting, self._running)
        dues = [queue[0].due_ns for queue in queues if queue]
        sleep_ns = min(dues) - time.monotonic_ns() - SPIN_NS if dues else None
        # The timeout of epoll itself counts in whole milliseconds.
        if sleep_ns is None:
            select.select((self._epoll,), (), (), IDLE_S)
        elif sleep_ns > 0:
            select.select((self._epoll,), (), (), sleep_ns / NS_PER_S)
        for fileno, events in self._epoll.poll(0):
            self._attend(fileno, events)

    def _attend(self, fileno: int, events: int) -> None:
        connection = self._connections.get(fileno)
        if connection is not None:
            if events & select.EPOLLOUT:
                self._write(connection, b"")
            if events & ~select.EPOLLOUT:
                self._read(connection)
        elif fileno == self._listener.fileno():
            self._accept()
        elif fileno == self._watched and not os.read(fileno, READ_BYTES):
            self.stopping = True

    def _send_due(self) -> None:
        """Send chunks that are due, a few at most."""
        clock, starting, running = time.monotonic_ns, self._starting, self._running
        period_ns, write = self.schedule.period_ns, self._write
        for _ in range(SENDS_BETWEEN_POLLS):
            if starting and (not running or starting[0].due_ns < running[0].due_ns):
                queue = starting
            elif running:
                queue = running
            else:
                return
            stream = queue[0]
            now = clock()
            if stream.due_ns > now:
                return
            queue.popleft()
            stream.note(now)
            if not write(stream.connection, stream.left.popleft()):
                self.broken_streams += 1
            elif stream.left:
                stream.due_ns += period_ns
                running.append(stream)
            else:
                write(stream.connection, end_of_stream(stream.request))

    def _write(self, connection: Connection, data: bytes) -> bool:
        """Send, or keep for later what the socket does not take; False if nobody reads."""
        if connection.pending:
            data = connection.pending + data
        try:
            sent = connection.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return False
        if sent != len(data) or connection.pending:
            self._hold(connection, data[sent:])
        return True

    def _hold(self, connection: Connection, rest: bytes) -> None:
        self.short_sends += bool(rest)
        connection.pending = rest
        writable = select.EPOLLOUT if rest else 0
        self._epoll.modify(connection.fileno, select.EPOLLIN | writable)

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            connection = Connection(accepted, split=self._split)
            self._connections[connection.fileno] = connection
            self._epoll.register(connection.fileno, select.EPOLLIN)

    def _read(self, connection: Connection) -> None:
        try:
            data, ancillary, _, _ = connection.socket.recvmsg(READ_BYTES, ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        arrival_ns = _arrival_ns(ancillary)
        if not data:
            self._close(connection)
            return
        connection.received += data
        try:
            request, connection.received = take_request(connection.received)
            if request is not None:
                self._answer(connection, request, arrival_ns)
        except (ValueError, TypeError) as error:
            self._write(connection, answer(400, {"error": {"message": str(error), "code": 400}}))
            self._close(connection)

    def _answer(self, connection: Connection, request: HttpRequest, arrival_ns: int) -> None:
        match request.method, request.path.partition(b"?")[0]:
            case b"POST", b"/v1/completions":
                self._begin(connection, CompletionRequest.of(request.body), arrival_ns)
            case b"GET", b"/v1/models":
                card = {"id": MODEL, "object": "model", "owned_by": "pytest-moeperf"}
                listing = {"object": "list", "data": [card]}
                self._write(connection, answer(200, listing))
            case b"GET", b"/health":
                self._write(connection, answer(200, {}))
            case b"POST", b"/flush":
                self._on_flush()
                self._write(connection, answer(200, {}))
            case method, path:
                message = f"no {method.decode()} {path.decode()} here"
                self._write(connection, answer(404, {"error": {"message": message, "code": 404}}))

    def _begin(self, connection: Connection, request: CompletionRequest, arrival_ns: int) -> None:
        stream = Stream(request, connection, arrival_ns=arrival_ns)
        stream.left.extend(payloads(request.output_tokens, self.schedule.merge))
        stream.due_ns = self.schedule.first_due_ns(arrival_ns)
        self._enqueue(stream)
        self.streams.append(stream)
        self._write(connection, STREAM_HEAD)

    def _enqueue(self, stream: Stream) -> None:
        """Requests are not always read in the order in which they arrived."""
        starting, at = self._starting, len(self._starting)
        while at and starting[at - 1].due_ns > stream.due_ns:
            at -= 1
        starting.insert(at, stream)

    def _close(self, connection: Connection) -> None:
        """Forget a connection, if it is not forgotten yet; its stream notices at its next send.

        By then its descriptor may belong to another connection, hence the look at who has it.
        """
        if self._connections.get(connection.fileno) is connection:
            del self._connections[connection.fileno]
            self._epoll.unregister(connection.fileno)
            connection.socket.close()
