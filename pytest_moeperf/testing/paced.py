"""`python -m pytest_moeperf.testing.paced`: a server whose own send times are the truth.

It answers `POST /v1/completions` with chunks at the times of an absolute schedule, and logs when
each request came, by the kernel's stamp, and each chunk went, all by the monotonic clock of the
machine. A load client on the same machine can so be checked arrival by arrival.

The log is one line of JSON and, after it, 8-byte integers in the machine's byte order: the key,
the arrival in ns, and the number of chunks of every request in order of arrival, then all send
times in ns, request by request. The JSON counts both (`requests`, `sends`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import signal
import socket
import sys
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.testing.paced_loop import PacedLoop, Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_moeperf.testing.paced_loop import Stream

__all__ = ["LOG_VERSION", "log_of", "main"]

LOG_VERSION = 1
NS_PER_MS = 1e6
STDIN = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT or, if so asked, the end of standard input."""
    args = _parser().parse_args(argv)
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    schedule = Schedule(
        mode=args.mode,
        ttft_ns=round(args.ttft_ms * NS_PER_MS),
        itl_ns=round(args.itl_ms * NS_PER_MS),
        merge=args.merge,
        origin_ns=time.monotonic_ns(),
    )
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((args.host, args.port))
        except OSError as error:
            sys.stderr.write(f"{args.host}:{args.port}: {os.strerror(error.errno or 0)}\n")
            return 1
        _serve(listener, schedule, args)
    return 0


def _serve(listener: socket.socket, schedule: Schedule, args: argparse.Namespace) -> None:
    def flush() -> None:
        if args.log is not None:
            args.log.write_bytes(log_of(loop))
        loop.streams.clear()
        loop.short_sends = loop.broken_streams = 0

    def stop(_number: int, _frame: object) -> None:
        loop.stopping = True

    loop = PacedLoop(listener, schedule, split=args.split, on_flush=flush)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if args.until_eof:
        loop.stop_at_end_of(STDIN)
    host, port = listener.getsockname()
    sys.stdout.write(f"paced server on http://{host}:{port}\n")
    sys.stdout.flush()
    # Nothing of it makes cycles that matter, and a collection would be late chunks.
    gc.freeze()
    gc.disable()
    loop.run()
    flush()


def log_of(loop: PacedLoop) -> bytes:
    """What a loop has served since its streams were last cleared."""
    schedule, streams = loop.schedule, loop.streams
    sends = [_event_times(stream, schedule.merge) for stream in streams]
    head = {
        "version": LOG_VERSION,
        "mode": schedule.mode,
        "ttft_ns": schedule.ttft_ns,
        "itl_ns": schedule.itl_ns,
        "merge": schedule.merge,
        "origin_ns": schedule.origin_ns,
        "requests": len(streams),
        "sends": sum(map(len, sends)),
        "short_sends": loop.short_sends,
        "broken_streams": loop.broken_streams,
    }
    numbers = array("q", (stream.request.key for stream in streams))
    numbers.extend(stream.arrival_ns for stream in streams)
    numbers.extend(map(len, sends))
    for times in sends:
        numbers.extend(times)
    return json.dumps(head).encode() + b"\n" + numbers.tobytes()


def _event_times(stream: Stream, merge: int) -> array[int]:
    """The send time of every chunk; chunks that went together share theirs."""
    if merge == 1:
        return stream.sent_ns
    times = array("q", (time_ns for time_ns in stream.sent_ns for _ in range(merge)))
    return times[: stream.request.output_tokens]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_moeperf.testing.paced",
        description="A scripted server that logs when it sent what",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="0 takes a free one; it is printed")
    add("--ttft-ms", type=float, default=50.0, help="from a request to its first chunk")
    add("--itl-ms", type=_positive, default=10.0, help="from chunk to chunk")
    add("--mode", choices=("spread", "step"), default="spread", help="see Schedule.mode")
    add("--merge", type=_count, default=1, metavar="N", help="send N events at a time")
    add("--split", action="store_true", help="cut every send into two segments")
    add("--core", type=int, help="run on this core alone")
    add("--log", type=Path, metavar="FILE", help="written at the end and by POST /flush")
    add("--until-eof", action="store_true", help="end when standard input is closed")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    sys.exit(main())
