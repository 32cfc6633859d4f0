"""Server-sent events from bytes that may be cut anywhere.

After the event stream format of the HTML standard,
https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream.
Only the data of events is kept: their types and ids say nothing about tokens, and reconnection
(`retry`) has no meaning for a measurement.
"""

from __future__ import annotations

__all__ = ["SSEDecoder", "SSEError"]

LIMIT_BYTES = 16 * 1024 * 1024
"""The ids of a prompt of a million tokens in one event are half of it."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FIELD = b"data: "
END = b"\n\n"
# As numbers: `in` takes them at once, but tries a bytes object as a number first.
LF = 0x0A
CR = 0x0D


class SSEError(ValueError):
    """A stream that holds more in one line or event than this client will keep."""

    def __init__(self, message: str, events: list[bytes]) -> None:
        super().__init__(message)
        self.events = events
        """What the same bytes completed before."""


class SSEDecoder:
    """Incremental decoder of one stream: bytes in, the data of events out.

    The data is as sent, in UTF-8 that nobody has checked.
    """

    __slots__ = ("_after_cr", "_at_start", "_data", "_idle", "_limit", "_line", "_overrun")

    def __init__(self, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._reset()

    def _reset(self) -> None:
        self._idle = True
        self._at_start = True
        self._after_cr = False
        self._overrun = False
        # Byte arrays grow in place: a line that comes byte by byte costs linear time.
        self._line = bytearray()
        self._data = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes and return the data of the events that they complete.

        Raises SSEError, now and ever after, when a line and the unfinished event before it hold
        over `limit_bytes`.
        """
        # What every engine sends: whole events of one line. The lines need not be looked at
        # one by one if every line feed belongs to a boundary of two such events.
        if (
            self._idle
            and chunk.startswith(FIELD)
            and chunk.endswith(END)
            and CR not in chunk
            and len(chunk) <= self._limit
        ):
            self._at_start = False
            data = chunk[6:-2]
            if LF not in data:
                return [data]
            events = data.split(END + FIELD)
            if data.count(b"\n") == 2 * len(events) - 2:
                return events
        return self._feed_lines(chunk)

    @property
    def idle(self) -> bool:
        """Whether the next byte begins an event."""
        return self._idle and not self._at_start

    def close(self) -> bool:
        """Drop what is unfinished, as the standard wants; tell whether there was anything."""
        unfinished = bool(self._data or self._line or self._overrun)
        self._reset()
        return unfinished

    def _feed_lines(self, chunk: bytes) -> list[bytes]:
        events: list[bytes] = []
        # A CR ends its line at once; the LF of a CR LF that was cut in two is dropped here.
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if not chunk:
            return events
        self._after_cr = chunk.endswith(b"\r")
        lines = chunk.splitlines()
        unfinished = b"" if chunk.endswith((b"\n", b"\r")) else lines.pop()
        if lines and self._line:
            lines[0] = bytes(self._line) + lines[0]
            self._line.clear()
        for line in lines:
            self._check(line, events)
            event = self._take(line)
            if event is not None:
                events.append(event)
        self._line += unfinished
        self._check(self._line, events)
        self._idle = not (self._line or self._data or self._after_cr)
        return events

    def _check(self, line: bytes | bytearray, events: list[bytes]) -> None:
        if self._overrun or len(self._data) + len(line) > self._limit:
            self._overrun, self._idle = True, False
            self._line, self._data = bytearray(), bytearray()
            raise SSEError(f"no end of an event within {self._limit} bytes", events)

    def _take(self, line: bytes) -> bytes | None:
        if self._at_start:
            line = line.removeprefix(BYTE_ORDER_MARK)
            self._at_start = False
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data += value.removeprefix(b" ") + b"\n"
        return None

    def _dispatch(self) -> bytes | None:
        if not self._data:
            return None
        event = bytes(self._data[:-1])
        self._data.clear()
        return event
