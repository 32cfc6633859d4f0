"""When data arrived, by the kernel's own clock reading.

Linux notes the time at which a packet came in and gives it to the reader, however late he is. So
arrival times stay exact while the client is busy, as long as it reads before the next packet of
the same stream comes: the kernel merges waiting packets and keeps only the last time.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import Final

from pytest_moeperf.units import NS_PER_S

__all__ = ["ANCILLARY_BYTES", "TIMESPEC", "clock_offset_ns", "enable", "supported"]

SO_TIMESTAMPNS: Final = 35
"""As in Linux's include/uapi/asm-generic/socket.h; Python has no name for it."""
TIMESPEC: Final = struct.Struct("@ll")
ANCILLARY_BYTES: Final = socket.CMSG_SPACE(TIMESPEC.size)
_ATTEMPTS = 5
_PLAUSIBLE_NS = 10**9


def enable(connection: socket.socket) -> None:
    """Ask for a time stamp with every read; where the system has none, reads bring none."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)


def clock_offset_ns() -> int:
    """Wall clock, which the kernel stamps by, minus the monotonic clock of all records.

    Of several readings the one counts that the least time passed around.
    """
    readings = []
    for _ in range(_ATTEMPTS):
        before = time.perf_counter_ns()
        wall = time.time_ns()
        after = time.perf_counter_ns()
        readings.append((after - before, wall - (before + after) // 2))
    return min(readings)[1]


def supported() -> bool:
    """Whether the stamps of this system are there and right, by a try on the loopback."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as sender,
    ):
        receiver, _ = listener.accept()
        with receiver:
            enable(receiver)
            receiver.settimeout(1.0)
            # The kernel switches stamping on in the background, so the first ones may lack.
            return any(_stamped(sender, receiver) for _ in range(_ATTEMPTS))


def _stamped(sender: socket.socket, receiver: socket.socket) -> bool:
    before = time.time_ns()
    sender.send(b"?")
    _, ancillary, _, _ = receiver.recvmsg(1, ANCILLARY_BYTES)
    if not ancillary:
        time.sleep(0.001)
        return False
    seconds: int
    nanoseconds: int
    seconds, nanoseconds = TIMESPEC.unpack(ancillary[0][2])
    # A clock that steps at this moment must not decide, hence the wide margin.
    return abs(seconds * NS_PER_S + nanoseconds - before) < _PLAUSIBLE_NS
