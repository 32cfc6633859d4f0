"""One connection to the server: TCP, TLS where asked for, HTTP/1.1 responses one at a time."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import httptools

from pytest_moeperf.completions import CompletionStream, error_message
from pytest_moeperf.loadgen import stamps
from pytest_moeperf.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_moeperf.loadgen.job import Address
    from pytest_moeperf.loadgen.tls import Channel

__all__ = ["Connection", "channel_factory"]

REFUSAL_BYTES = 65_536
HTTP_OK = 200
CONNECTION_LOST = "connection lost"
EXCESS_TOKENS = 64


class Connection:
    """A connection and the exchange that runs on it. It never blocks.

    Call `connected` when the socket is writable for the first time, `begin` once it is `ready`,
    then `receive` for all that comes until the response is `complete`. What goes wrong is a
    ConnectionError whose text is the reason in one phrase.
    """

    __slots__ = (
        "_address",
        "_chunk_ended",
        "_connect_errno",
        "_parser",
        "_refusal",
        "_tls",
        "_unsent",
        "arrival_ns",
        "asked",
        "complete",
        "fresh_chunks",
        "idle_since_ns",
        "index",
        "quick",
        "ready",
        "recvmsg",
        "reusable",
        "scheduled_ns",
        "sent_ns",
        "sock",
        "status",
        "stream",
    )

    def __init__(self, address: Address, tls: Channel | None = None) -> None:
        self._address = address
        self._tls = tls
        self._parser = httptools.HttpResponseParser(self)
        self._unsent = memoryview(b"")
        self.ready = False
        """Connected, and the TLS handshake done."""
        self.asked = False
        """A request was sent and its response is not complete."""
        self.reusable = True
        self.idle_since_ns = 0
        self.index = -1
        """Of the request that runs; -1: none."""
        self.scheduled_ns: int | None = None
        self.sent_ns = 0
        self._reset()
        self.sock = socket.socket(address.family, socket.SOCK_STREAM)
        self.recvmsg = self.sock.recvmsg
        self.sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stamps.enable(self.sock)
        self._connect_errno = self.sock.connect_ex(address.sockaddr)

    def _reset(self) -> None:
        self.stream = CompletionStream()
        self.status = 0
        self.complete = False
        self.arrival_ns = 0
        self.fresh_chunks = 0
        self.quick: Callable[[bytes, int], bool] | None = None
        """Takes what comes next, and when it came, if it is a chunk as usual; then `receive` is
        not needed. None where there is no such way."""
        self._refusal = b""
        self._chunk_ended = False

    @property
    def wants_to_write(self) -> bool:
        """Whether something waits for the socket to take data again."""
        return bool(self._unsent)

    def connected(self) -> None:
        """Find out how the attempt to connect ended, and start the TLS handshake."""
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if self._connect_errno not in {0, errno.EINPROGRESS}:
            number = self._connect_errno
        if number:
            raise ConnectionError(f"cannot connect to {self._address.name} ({os.strerror(number)})")
        if self._tls is None:
            self.ready = True
        else:
            self._tls.shake_hands()
            self._send(self._tls.outgoing())

    def begin(self, request: memoryview) -> None:
        """Send a request; `flush` sends what the socket does not take at once."""
        self._reset()
        self.asked = True
        self._send(request if self._tls is None else self._tls.encrypt(request))

    def _send(self, data: bytes | memoryview) -> None:
        self._unsent = memoryview(bytes(self._unsent) + data if self._unsent else data)
        self.flush()

    def flush(self) -> None:
        """Send what is left, as far as the socket takes it."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            # What the server said before it closed can still be read, and the end after it.
            self._unsent = memoryview(b"")
            self.reusable = False
        except OSError as error:
            raise ConnectionError(CONNECTION_LOST) from error

    def hopeless(self, now_ns: int, asked_tokens: int, *, silence_s: float) -> str | None:
        """Why the request that runs need not be waited for any longer; None if it may end."""
        if self.stream.tokens > 2 * asked_tokens + EXCESS_TOKENS:
            return f"{self.stream.tokens} tokens came, {asked_tokens} were asked for, and no end"
        silent_s = (now_ns - max(self.sent_ns, self.stream.last_ns)) / NS_PER_S
        if silent_s > silence_s:
            return f"no token for {silent_s:.0f} s, while other requests went on"
        return None

    def receive(self, data: bytes) -> None:
        """Take what arrived at `arrival_ns`; `fresh_chunks` grows by the chunks it completes."""
        if not data:
            self._end()
            return
        if self._tls is not None:
            data = self._tls.decrypt(data)
            self._send(self._tls.outgoing())
            self.ready = self._tls.established
            if not data:
                return
        if not self.asked:
            raise ConnectionError("data that nobody asked for")
        try:
            self._parser.feed_data(data)
            # The parser need not see whole chunks that begin where it is: behind a chunk.
            between_chunks = self._chunk_ended and data.endswith(b"\r\n")
            known = between_chunks and self._tls is None and self.stream.settled
            self.quick = self.stream.feed_frame if known else None
        except httptools.HttpParserUpgrade as error:
            raise ConnectionError(f"HTTP {self._parser.get_status_code()}") from error
        except httptools.HttpParserError as error:
            # Rubbish behind a whole response only spoils the connection.
            self.reusable = False
            if not self.complete:
                raise ConnectionError(f"not HTTP ({error})") from error

    def _end(self) -> None:
        """The server closed: so ends a body without a length, whose stream must be whole."""
        if not (self.asked and self.stream.done):
            raise ConnectionError(CONNECTION_LOST)
        self.asked = self.reusable = False
        self.complete = True

    def refusal(self) -> str | None:
        """Why the server refused the request; None if it did not."""
        # Interim responses (100, 103) refuse nothing.
        if self.status <= HTTP_OK:
            return None
        message = error_message(self._refusal)
        return f"HTTP {self.status}: {message}" if message else f"HTTP {self.status}"

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()
        # It refers back to here, and nobody collects cycles while a load runs.
        del self._parser

    def on_message_begin(self) -> None:
        """Told by the parser."""
        if self.complete:
            raise ConnectionError("a second response to one request")

    def on_headers_complete(self) -> None:
        """Told by the parser."""
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """Told by the parser."""
        if self.status == HTTP_OK:
            self.fresh_chunks += self.stream.feed(data, self.arrival_ns)
        elif len(self._refusal) < REFUSAL_BYTES:
            self._refusal += data

    def on_chunk_header(self) -> None:
        """Told by the parser."""
        self._chunk_ended = False

    def on_chunk_complete(self) -> None:
        """Told by the parser."""
        # The size of the next one may have begun: only bytes that end here end the chunk as well.
        self._chunk_ended = True

    def on_message_complete(self) -> None:
        """Told by the parser."""
        # Interim responses (100, 103) precede the one that counts.
        if self.status >= HTTP_OK:
            self.complete = True
            self.asked = self._chunk_ended = False
            # Nor is a connection of use on which the rest of a request is still to be sent.
            self.reusable &= self._parser.should_keep_alive() and not self._unsent


def channel_factory(host: str | None) -> Callable[[], Channel | None]:
    """What makes the TLS side of a connection to `host`, or nothing where that is None."""
    if host is None:
        return lambda: None
    from pytest_moeperf.loadgen.tls import Channel, client_context  # noqa: PLC0415 - ssl, for https alone

    context = client_context()
    return lambda: Channel(context, host)
