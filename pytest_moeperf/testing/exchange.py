"""HTTP/1.1 for the fake engine: on asyncio alone, for it starts anew in almost every test."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Self, cast

import httptools

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Exchange", "Port"]

BACKLOG = 4096


class Exchange(asyncio.Protocol):
    """One connection: the request that came last, and what answers it.

    A client that goes away cancels the answer to its request.
    """

    def __init__(
        self, respond: Callable[[Exchange], Awaitable[None]], others: set[Exchange]
    ) -> None:
        """`respond` answers every request; the connection is in `others` while it is open."""
        self._respond = respond
        self._others = others
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._answering: asyncio.Task[None] | None = None
        self.on_message_begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Told by the loop."""
        self._transport = cast("asyncio.Transport", transport)
        self._others.add(self)

    def data_received(self, data: bytes) -> None:
        """Told by the loop."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        """Told by the loop."""
        self._others.discard(self)
        if self._answering is not None:
            self._answering.cancel()

    def on_message_begin(self) -> None:
        """Told by the parser."""
        self.path = ""
        self.headers: dict[str, str] = {}
        self.body = b""

    def on_url(self, url: bytes) -> None:
        """Told by the parser."""
        self.path += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Told by the parser."""
        self.headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        """Told by the parser."""
        self.body += data

    def on_message_complete(self) -> None:
        """Told by the parser."""
        self._answering = asyncio.create_task(self._answer())

    async def _answer(self) -> None:
        reusable = False
        try:
            await self._respond(self)
            reusable = self._parser.should_keep_alive()
        finally:
            if not reusable and self._transport is not None:
                self._transport.close()

    @property
    def asked(self) -> tuple[str, str]:
        """Method and path."""
        return self._parser.get_method().decode(), self.path.partition("?")[0]

    def answer(self, status: int, body: str = "") -> None:
        """Send a whole response."""
        data = body.encode()
        self._send(f"HTTP/1.1 {status} \r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)

    def answer_json(self, status: int, body: Any) -> None:
        """Send a whole response in JSON."""
        self.answer(status, json.dumps(body))

    def begin_stream(self) -> None:
        """Send the head of a stream of events."""
        self._send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )

    def send_chunk(self, data: bytes) -> None:
        """Send a part of the stream; an empty one ends it."""
        self._send(b"%x\r\n%b\r\n" % (len(data), data))

    def _send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()


class Port:
    """A listening port and the connections that were made to it."""

    def __init__(self, server: asyncio.Server, connections: set[Exchange]) -> None:
        self._server = server
        self._connections = connections
        self.number: int = server.sockets[0].getsockname()[1]

    @classmethod
    async def open(
        cls, respond: Callable[[Exchange], Awaitable[None]], *, host: str, port: int
    ) -> Self:
        """Serve in the running loop, on a free port if `port` is 0."""
        connections: set[Exchange] = set()
        server = await asyncio.get_running_loop().create_server(
            lambda: Exchange(respond, connections), host, port, backlog=BACKLOG
        )
        return cls(server, connections)

    async def close(self) -> None:
        """Close the port and all connections, whatever streams on them."""
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        # The loop tells each connection of its end before it comes back here.
        await asyncio.sleep(0)
