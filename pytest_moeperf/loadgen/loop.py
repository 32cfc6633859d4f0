"""The event loop of a load worker.

One thread, one epoll. Its accuracy rests on three things: arrival times come from the kernel, so
that a late read is no error; requests are encoded and connections open before the clock starts; and
under heavy traffic it naps for a fraction of a millisecond, so that one wake-up serves many reads,
which harms no time stamp.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import time
from typing import TYPE_CHECKING

from pytest_moeperf.loadgen import stamps
from pytest_moeperf.loadgen.agenda import Agenda
from pytest_moeperf.loadgen.connection import Connection, channel_factory
from pytest_moeperf.loadgen.job import Done, Progress, RequestFile
from pytest_moeperf.loadgen.traffic import Traffic
from pytest_moeperf.request import RequestRecord
from pytest_moeperf.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_moeperf.loadgen.job import Job

__all__ = ["Loop"]

READ_BYTES = 16_384
"""More waits for the next turn; a larger buffer costs more than it saves."""
CONNECT_TIMEOUT_S = 30.0
KEEPALIVE_NS = 3 * NS_PER_S
"""Connections that were idle for longer are not used: uvicorn closes them after 5 s, and a request
written at that moment would fail."""
AHEAD_NS = NS_PER_S
"""So long before a request is due there should be a connection for it."""
POLL_FLOOR_NS = 2_000_000
"""epoll sleeps whole milliseconds, rounded up: what is due sooner is waited for by naps."""
NAP_EARLY_NS = 60_000
POLL_S = 0.002
"""While streams run it sleeps no longer, so that it notices if it could not run for a while."""
PROMPT_NS = 200_000
"""A poll that took longer has slept, so it found nothing when it began."""

unpack_timespec = stamps.TIMESPEC.unpack
ANCILLARY_BYTES = stamps.ANCILLARY_BYTES
Message = tuple[bytes, int]
"""What a read brought, and when it arrived; no bytes: the end."""
OUT = select.EPOLLOUT
IN = select.EPOLLIN


class Loop:
    """Plays the share of one worker in what is in the `RequestFile` of `requests_fd`.

    `on_control` is called when something is to be read from `control_fd`.
    """

    def __init__(
        self,
        job: Job,
        *,
        requests_fd: int,
        control_fd: int,
        on_control: Callable[[], None],
        report: Callable[[Progress], None],
    ) -> None:
        self._job = job
        self._on_control = on_control
        self._report = report
        self._control_fd = control_fd
        self._epoll = select.epoll()
        self._epoll.register(control_fd, IN)
        self._connections: dict[int, Connection] = {}
        self._idle: list[Connection] = []
        self._dropped: list[Connection] = []
        self._requests = memoryview(mmap.mmap(requests_fd, 0, prot=mmap.PROT_READ))
        self._agenda = Agenda(job, requests_fd=requests_fd)
        self._channel = channel_factory(job.address.tls_host)
        self.records: list[RequestRecord] = []
        self._start_ns = 0
        self._tokens = 0
        self._in_flight = 0
        self._freed = False
        self._waiting_since_ns = 0
        self._polled_ns = 0
        self._earlier_ns = 0
        """No data that is read now can have arrived before: a poll that began then found none."""
        self._offset_ns = stamps.clock_offset_ns()
        self._step_ns = 0
        self._traffic = Traffic()

    def open_connections(self) -> str | None:
        """Open what the play will need; return why that failed, None if it did not."""
        deadline_ns = time.perf_counter_ns() + int(CONNECT_TIMEOUT_S * NS_PER_S)
        try:
            for _ in range(self._job.connections):
                self._open()
        except OSError as error:
            return f"no {self._job.connections} connections: {os.strerror(error.errno or 0)}"
        while len(self._idle) < self._job.connections:
            if time.perf_counter_ns() > deadline_ns:
                return f"cannot connect to {self._job.address.name} (timed out)"
            for fd, mask in self._epoll.poll(0.1):
                if fd == self._control_fd:
                    self._on_control()
                    continue
                try:
                    self._advance(self._connections[fd], mask)
                except ConnectionError as error:
                    return str(error)
        return None

    def play(self, start_ns: int) -> Done:
        """Send and receive until every request of this worker has ended."""
        self._start_ns = start_ns
        cpu_s = time.process_time()
        self._polled_ns = time.perf_counter_ns()
        tick_ns = 0
        while self._agenda or self._in_flight:
            now_ns = time.perf_counter_ns()
            if now_ns >= tick_ns:
                self._tick(now_ns)
                tick_ns = now_ns + int(self._job.progress_s * NS_PER_S)
            self._traffic.adapt(now_ns, streams=self._in_flight)
            self._send_due(now_ns)
            self._poll(tick_ns)
        self._tick(time.perf_counter_ns())
        return Done(
            ended_ns=time.perf_counter_ns(),
            cpu_s=time.process_time() - cpu_s,
            reads=self._traffic.reads,
            unstamped_reads=self._traffic.unstamped,
            merged_reads=self._traffic.merged,
            lost_arrivals=self._traffic.lost,
            clock_step_ns=self._step_ns,
            lags_ns=self._traffic.lags_ns,
        )

    def close(self) -> None:
        """Close all connections; the loop is of no more use."""
        for connection in (*self._connections.values(), *self._dropped):
            connection.close()
        self._epoll.close()

    def _tick(self, now_ns: int) -> None:
        """What need not happen often."""
        step_ns = abs(stamps.clock_offset_ns() - self._offset_ns)
        self._step_ns = max(self._step_ns, step_ns)
        for connection in [c for c in self._idle if now_ns - c.idle_since_ns > KEEPALIVE_NS]:
            self._idle.remove(connection)
            self._drop(connection)
        for connection in list(self._connections.values()):
            if connection.index >= 0:
                asked = self._job.asked_tokens[connection.index]
                if reason := connection.hopeless(now_ns, asked, silence_s=self._job.silence_s):
                    self._fail(connection, reason)
        self._open_ahead(now_ns)
        self._report(
            Progress(
                done=len(self.records),
                tokens=self._tokens,
                in_flight=self._in_flight,
                waiting_since_ns=self._waiting_since_ns,
            )
        )

    def _open_ahead(self, now_ns: int) -> None:
        """Have connections for what an open loop sends soon, so that it finds them open."""
        if self._job.include_connect:
            return
        coming = sum(not connection.ready for connection in self._connections.values())
        soon = self._agenda.due_until(now_ns + AHEAD_NS - self._start_ns)
        with contextlib.suppress(OSError):
            for _ in range(soon - len(self._idle) - coming):
                self._open()

    def _send_due(self, now_ns: int) -> None:
        while (due := self._agenda.take(now_ns - self._start_ns)) is not None:
            index, at_ns = due
            scheduled_ns = None if at_ns is None else self._start_ns + at_ns
            if self._in_flight == 0:
                self._waiting_since_ns = now_ns
            sent_ns = time.perf_counter_ns()
            fresh = self._job.include_connect or not self._idle
            try:
                connection = self._open() if fresh else self._idle.pop()
            except OSError as error:
                self._record_unsent(index, scheduled_ns, f"no connection: {error.strerror}")
                continue
            self._in_flight += 1
            connection.index = index
            connection.scheduled_ns = scheduled_ns
            connection.sent_ns = sent_ns
            if connection.ready:
                self._begin(connection)

    def _record_unsent(self, index: int, scheduled_ns: int | None, reason: str) -> None:
        now_ns = time.perf_counter_ns()
        self.records.append(
            RequestRecord(
                index=index,
                sent_ns=now_ns,
                scheduled_ns=scheduled_ns,
                asked_output_tokens=self._job.asked_tokens[index],
                ended_ns=now_ns,
                error=reason,
            )
        )
        if self._job.slots is not None:
            self._agenda.free_slot(now_ns - self._start_ns)

    def _begin(self, connection: Connection) -> None:
        """Send the request of a connection that is ready."""
        ends, index = self._job.ends, connection.index
        request = self._requests[RequestFile.start_of(index, ends) : ends[index]]
        if not self._job.include_connect:
            connection.sent_ns = time.perf_counter_ns()
        try:
            connection.begin(request)
        except ConnectionError as error:
            self._fail(connection, str(error))
            return
        if connection.wants_to_write:
            self._epoll.modify(connection.sock.fileno(), IN | OUT)

    def _poll(self, tick_ns: int) -> None:
        """Wait for data, the next send or the next tick, and handle what came."""
        now_ns = time.perf_counter_ns()
        next_ns = self._agenda.next_ns()
        until_ns = tick_ns if next_ns is None else min(self._start_ns + next_ns, tick_ns)
        remaining_ns = until_ns - now_ns
        timeout_s = 0.0
        traffic = self._traffic
        if traffic.napping or remaining_ns < POLL_FLOOR_NS:
            # The kernel ends a nap a little late.
            nap_ns = min(traffic.longest_nap_ns, remaining_ns - NAP_EARLY_NS)
            if nap_ns > 0:
                time.sleep(nap_ns / NS_PER_S)
        else:
            timeout_s = (remaining_ns - POLL_FLOOR_NS // 2) / NS_PER_S
            if self._in_flight:
                timeout_s = min(timeout_s, POLL_S)
        began_ns = time.perf_counter_ns()
        events = self._epoll.poll(timeout_s, len(self._connections) + 1)
        slept = timeout_s > 0 and time.perf_counter_ns() - began_ns > PROMPT_NS
        self._earlier_ns = began_ns if slept else self._polled_ns
        self._polled_ns = began_ns
        self._handle(events)
        for connection in self._dropped:
            connection.close()
        self._dropped.clear()

    def _handle(self, events: list[tuple[int, int]]) -> None:
        unusual = []
        for fd, mask in events:
            connection = self._connections.get(fd)
            if connection is None:
                if fd == self._control_fd:
                    self._on_control()
            elif mask & OUT or not connection.ready:
                self._serve(connection, mask, None)
            elif (message := self._read(connection)) is not None:
                unusual.append((connection, message))
        # Later: these take longer, and meanwhile the chunks of other streams may be merged.
        for connection, message in unusual:
            self._serve(connection, IN, message)

    def _serve(self, connection: Connection, mask: int, message: Message | None) -> None:
        """Handle an event, or what was read because of it."""
        try:
            if message is None:
                self._advance(connection, mask)
            else:
                self._receive(connection, message)
        except ConnectionError as error:
            self._fail(connection, str(error))
        if self._freed:
            # What waits for this slot need not wait for the other connections of this turn.
            self._freed = False
            self._send_due(time.perf_counter_ns())

    def _advance(self, connection: Connection, mask: int) -> None:
        """Get a connection further that is not ready or has something to send."""
        was_ready = connection.ready
        if mask & OUT and connection.wants_to_write:
            connection.flush()
        elif not was_ready and mask & ~IN:
            connection.connected()
        # A plain connection that is ready now sends first, and is read in the next turn.
        readable = mask & IN and connection.ready == was_ready
        if readable and (message := self._read(connection)) is not None:
            self._receive(connection, message)
        wanted = IN | OUT if connection.wants_to_write else IN
        self._epoll.modify(connection.sock.fileno(), wanted)
        if connection.ready and not was_ready:
            if connection.index >= 0:
                self._begin(connection)
            else:
                self._rest(connection)

    def _read(self, connection: Connection) -> Message | None:
        """One read; None if it brought nothing or only a usual chunk. This is the hot path."""
        try:
            data, ancillary, _, _ = connection.recvmsg(READ_BYTES, ANCILLARY_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            # A broken connection has ended.
            data, ancillary = b"", []
        traffic = self._traffic
        traffic.reads += 1
        if not ancillary:
            traffic.unstamped += bool(data)
            return data, time.perf_counter_ns()
        seconds, nanoseconds = unpack_timespec(ancillary[0][2])
        arrival_ns = seconds * NS_PER_S + nanoseconds - self._offset_ns
        if not traffic.reads % traffic.lag_stride:
            traffic.lags_ns.append(time.perf_counter_ns() - arrival_ns)
        take = connection.quick
        if take is not None and take(data, arrival_ns):
            self._waiting_since_ns = arrival_ns
            return None
        return data, arrival_ns

    def _receive(self, connection: Connection, message: Message) -> None:
        """Take what is not one usual chunk."""
        data, arrival_ns = message
        connection.arrival_ns = arrival_ns
        connection.fresh_chunks = 0
        connection.receive(data)
        fresh = connection.fresh_chunks
        if fresh:
            self._waiting_since_ns = arrival_ns
            if fresh > 1:
                self._traffic.note_merged(fresh, within_ns=arrival_ns - self._earlier_ns)
        if connection.complete:
            self._finish(connection, None)

    def _finish(self, connection: Connection, failure: str | None) -> None:
        """Turn an exchange into its record, and free its slot."""
        now_ns = time.perf_counter_ns()
        completion = connection.stream.completion()
        error = connection.refusal() or failure or completion.error
        record = RequestRecord(
            index=connection.index,
            sent_ns=connection.sent_ns,
            scheduled_ns=connection.scheduled_ns,
            chunk_ns=completion.chunk_ns,
            chunk_tokens=completion.chunk_tokens,
            prompt_tokens=completion.prompt_tokens,
            output_tokens=completion.output_tokens,
            asked_output_tokens=self._job.asked_tokens[connection.index],
            # A refusal may have come before there was a request.
            ended_ns=now_ns if failure else max(connection.arrival_ns, connection.sent_ns),
            error=error,
        )
        self.records.append(record)
        self._tokens += sum(completion.chunk_tokens)
        self._in_flight -= 1
        # An error is a sign of life too.
        self._waiting_since_ns = now_ns
        connection.index = -1
        if failure or not connection.reusable or self._job.include_connect:
            self._drop(connection)
        else:
            self._rest(connection)
        if self._job.slots is not None:
            self._agenda.free_slot(now_ns - self._start_ns)
            self._freed = True

    def _fail(self, connection: Connection, reason: str) -> None:
        if connection.index >= 0:
            self._finish(connection, reason)
            return
        if connection in self._idle:
            self._idle.remove(connection)
        self._drop(connection)

    def _rest(self, connection: Connection) -> None:
        connection.idle_since_ns = time.perf_counter_ns()
        self._idle.append(connection)

    def _open(self) -> Connection:
        connection = Connection(self._job.address, self._channel())
        self._connections[connection.sock.fileno()] = connection
        self._epoll.register(connection.sock.fileno(), IN | OUT)
        return connection

    def _drop(self, connection: Connection) -> None:
        """Forget a connection; it is closed when no event at hand can be meant for it any more."""
        del self._connections[connection.sock.fileno()]
        self._dropped.append(connection)
