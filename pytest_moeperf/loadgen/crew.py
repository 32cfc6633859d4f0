"""The worker processes of a play, seen from the process that asked for it.

A process takes 0.07 s to start, so those that have done their work wait for the next play.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pytest_moeperf.errors import LoadError
from pytest_moeperf.loadgen.job import Done, Failed, Job, Progress, Ready
from pytest_moeperf.loadgen.line import Line
from pytest_moeperf.records import ClientRecord
from pytest_moeperf.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from pytest_moeperf.loadgen.job import Message
    from pytest_moeperf.request import RequestRecord

__all__ = ["Crew", "Worker", "release_idle"]

WORKER = "pytest_moeperf.loadgen.worker"
EXIT_TIMEOUT_S = 5.0
TRUST = ("SSL_CERT_FILE", "SSL_CERT_DIR", "OPENSSL_CONF")
"""Variables that a process reads only once, for all its certificates."""
NS_PER_MS = 1e6


def _origin() -> tuple[int | str | None, ...]:
    """The process that starts a worker, which a fork of it may not use, and what is trusted."""
    return os.getpid(), *(os.environ.get(name) for name in TRUST)


@dataclass(slots=True)
class _Hand:
    """A worker process and the line to it."""

    process: subprocess.Popen[bytes]
    control: Line[Job | int, Message]
    origin: tuple[int | str | None, ...] = field(default_factory=_origin)

    def end(self, *, at_once: bool) -> None:
        """End the process, which ends by itself unless it is in the middle of something."""
        self.control.close()
        if at_once:
            self.process.kill()
        try:
            self.process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        if self.process.stderr is not None:
            self.process.stderr.close()


_IDLE: list[_Hand] = []


@dataclass(slots=True)
class Worker:
    """One process in one play, and what it has told so far."""

    hand: _Hand
    ready: bool = False
    failure: str | None = None
    progress: Progress | None = None
    records: list[RequestRecord] = field(default_factory=list)
    done: Done | None = None

    def give(self, job: Job, requests_fd: int) -> None:
        """Send what to do; LoadError if the process is gone."""
        self.tell(job)
        try:
            self.hand.control.send_fd(requests_fd)
        except OSError as error:
            raise LoadError(f"a load worker {self._end()}") from error

    def tell(self, message: Job | int) -> None:
        """Send one message; LoadError if the process is gone."""
        try:
            self.hand.control.send(message)
        except OSError as error:
            raise LoadError(f"a load worker {self._end()}") from error

    def take(self) -> None:
        """Take one message; LoadError if the process is gone."""
        try:
            message = self.hand.control.recv()
        except (EOFError, OSError) as error:
            raise LoadError(f"a load worker {self._end()}") from error
        match message:
            case Ready():
                self.ready = True
            case Failed():
                self.failure = message.reason
            case Progress():
                self.progress = message
            case Done():
                self.done = message
            case _:
                self.records += message

    def _end(self) -> str:
        """How the process ended, with the last line that it wrote."""
        try:
            _, written = self.hand.process.communicate(timeout=EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "answers no more"
        lines = written.decode(errors="replace").strip().splitlines() if written else []
        return f"ended with exit code {self.hand.process.returncode}: {lines[-1] if lines else '-'}"


class Crew:
    """Workers that play together in a `with` block, then wait for another play."""

    def __init__(self, size: int) -> None:
        self.workers: list[Worker] = []
        try:
            for _ in range(size):
                self.workers.append(Worker(_idle() or _hire()))
        except BaseException:
            self.dismiss()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.dismiss()

    def prepare(self, jobs: Sequence[Job], *, requests_fd: int) -> None:
        """Have every worker open its connections; ConnectionError with the reason if one cannot."""
        for worker, job in zip(self.workers, jobs, strict=True):
            worker.give(job, requests_fd)
        while waiting := [worker for worker in self.workers if not worker.ready]:
            self._take(waiting, None)
            for worker in waiting:
                if worker.failure is not None:
                    raise ConnectionError(worker.failure)

    def start(self, at_ns: int) -> None:
        """Start the clock of all of them."""
        for worker in self.workers:
            worker.tell(at_ns)

    def listen(self, timeout_s: float) -> bool:
        """Take what is told within that time; return whether all are done."""
        waiting = [worker for worker in self.workers if worker.done is None]
        self._take(waiting, timeout_s)
        return all(worker.done is not None for worker in self.workers)

    def _take(self, workers: Sequence[Worker], timeout_s: float | None) -> None:
        told = wait([worker.hand.control.fileno() for worker in workers], timeout_s)
        for worker in workers:
            if worker.hand.control.fileno() in told:
                worker.take()

    def dismiss(self) -> None:
        """Keep the processes that are done, and end the others wherever they are."""
        for worker in self.workers:
            if worker.done is not None:
                _IDLE.append(worker.hand)
            else:
                worker.hand.end(at_once=True)

    def record(self, *, started_ns: int) -> ClientRecord:
        """What the workers found out about themselves."""
        done = [worker.done for worker in self.workers if worker.done is not None]
        reads = sum(part.reads for part in done)
        unstamped = sum(part.unstamped_reads for part in done)
        lags_ns = sorted(lag for part in done for lag in part.lags_ns)
        return ClientRecord(
            workers=len(done),
            timestamps="kernel" if not unstamped else "read" if unstamped == reads else "mixed",
            cpu_s=sum(part.cpu_s for part in done),
            cpu_share=max(
                part.cpu_s / max((part.ended_ns - started_ns) / NS_PER_S, 1e-9) for part in done
            ),
            read_lag_ms_p50=_quantile_ms(lags_ns, 0.50),
            read_lag_ms_p99=_quantile_ms(lags_ns, 0.99),
            reads=reads,
            merged_reads=sum(part.merged_reads for part in done),
            lost_arrivals=sum(part.lost_arrivals for part in done),
            clock_step_ms=max(part.clock_step_ns for part in done) / NS_PER_MS,
        )


@atexit.register
def release_idle() -> None:
    """End the processes that wait for a play."""
    while (hand := _idle()) is not None:
        hand.end(at_once=False)


def _idle() -> _Hand | None:
    """Take one of the processes that wait, if it would still be started like that."""
    while _IDLE:
        hand = _IDLE.pop()
        if hand.origin == _origin() and hand.process.poll() is None:
            return hand
        if hand.origin[0] == os.getpid():
            hand.end(at_once=False)
    return None


def _hire() -> _Hand:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                # -P: no module of the current folder stands in for one of ours.
                [sys.executable, "-P", "-m", WORKER, str(theirs.fileno())],
                env=os.environ | {"PYTHONPATH": _search_path()},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # Ctrl-C is for the process that asked for the load; it ends its workers.
                process_group=0,
            )
        except OSError as error:
            ours.close()
            raise LoadError(f"no load worker can be started: {error.strerror}") from error
    return _Hand(process, Line(ours))


def _search_path() -> str:
    """Where this package was found, before what the environment says."""
    package = str(Path(__file__).parents[2])
    return os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))


def _quantile_ms(ordered_ns: Sequence[int], share: float) -> float | None:
    if not ordered_ns:
        return None
    return ordered_ns[min(len(ordered_ns) - 1, int(share * len(ordered_ns)))] / NS_PER_MS
