"""What a worker and the process that started it talk over: pickled values on a socket pair.

`multiprocessing` has the same, and would be a quarter of what a worker takes to start.
"""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Generic, TypeVar

__all__ = ["Line"]

LENGTH = struct.Struct("=Q")
MOST_AT_ONCE = 2**20
DESCRIPTOR = b"D"
"""A descriptor travels with a byte of data."""

Said = TypeVar("Said")
Heard = TypeVar("Heard")


class Line(Generic[Said, Heard]):
    """One end. What is sent over a line whose other end is gone is an OSError."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self.fileno = end.fileno
        self.close = end.close

    def send(self, value: Said) -> None:
        """Send one value."""
        data = pickle.dumps(value)
        self._socket.sendall(LENGTH.pack(len(data)) + data)

    def recv(self) -> Heard:
        """Wait for the next value; EOFError if none can come any more."""
        (length,) = LENGTH.unpack(self._take(LENGTH.size))
        value: Heard = pickle.loads(self._take(length))  # noqa: S301 - from a process of ours
        return value

    def send_fd(self, fd: int) -> None:
        """Give the other side a descriptor of its own for what `fd` is open on."""
        socket.send_fds(self._socket, [DESCRIPTOR], [fd])

    def recv_fd(self) -> int:
        """Take the descriptor that is sent next; EOFError if none can come any more."""
        _, descriptors, _, _ = socket.recv_fds(self._socket, len(DESCRIPTOR), 1)
        if not descriptors:
            raise EOFError
        return descriptors[0]

    def _take(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._socket.recv(min(size - len(data), MOST_AT_ONCE))
            if not part:
                raise EOFError
            data += part
        return bytes(data)
