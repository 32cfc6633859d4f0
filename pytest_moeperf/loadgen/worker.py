"""The process of a load worker: `python -m pytest_moeperf.loadgen.worker FD`.

For each play it takes a `Job` over the connection FD, opens its connections and says so, plays from
the moment that it is told, and sends its records when all is over, so that nothing but the load
happens meanwhile. It ends when the other side of FD is gone, however that happened.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import socket
import sys
from typing import TYPE_CHECKING

from pytest_moeperf.loadgen.job import Failed, Ready
from pytest_moeperf.loadgen.line import Line
from pytest_moeperf.loadgen.loop import Loop

if TYPE_CHECKING:
    from pytest_moeperf.loadgen.job import Job, Message

__all__ = ["main"]

RECORDS_AT_ONCE = 500


def main(fd: int) -> None:
    """Serve the plays that come over `fd`, one after the other."""
    control: Line[Message, Job | int] = Line(socket.socket(fileno=fd))
    _raise_descriptor_limit()
    # The heap is as large as it gets, and no collection shall come between two reads.
    gc.disable()
    while True:
        job = control.recv()
        if isinstance(job, int):
            raise TypeError("the start came before the job")
        requests_fd = control.recv_fd()
        _serve(control, job, requests_fd)
        os.close(requests_fd)
        gc.collect()


def _serve(control: Line[Message, Job | int], job: Job, requests_fd: int) -> None:
    def leave() -> None:
        # Nothing is sent during a play: the other side has closed the connection, or has gone.
        sys.exit()

    loop = Loop(
        job,
        requests_fd=requests_fd,
        control_fd=control.fileno(),
        on_control=leave,
        report=control.send,
    )
    with contextlib.closing(loop):
        failure = loop.open_connections()
        if failure is not None:
            control.send(Failed(failure))
            return
        control.send(Ready())
        start_ns = control.recv()
        if not isinstance(start_ns, int):
            raise TypeError("a second job came")
        done = loop.play(start_ns)
    # Who hears that all is done may count on it that no connection is open.
    while records := loop.records[-RECORDS_AT_ONCE:]:
        del loop.records[-RECORDS_AT_ONCE:]
        control.send(records)
    control.send(done)


def _raise_descriptor_limit() -> None:
    """Allow as many connections as the system lets this user have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        main(int(sys.argv[1]))
