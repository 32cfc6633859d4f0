"""The worker processes of one play, seen from the process that asked for it."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from pytest_moeperf.loadgen.job import Message
    from pytest_moeperf.request import RequestRecord

__all__ = ["Crew", "Worker"]

WORKER = "pytest_moeperf.loadgen.worker"
EXIT_TIMEOUT_S = 5.0
NS_PER_S = 1e9
NS_PER_MS = 1e6


@dataclass(slots=True)
class Worker:
    """One process, and what it has told so far."""

    process: subprocess.Popen[bytes]
    control: Line[Job | int, Message]
    ready: bool = False
    failure: str | None = None
    progress: Progress | None = None
    records: list[RequestRecord] = field(default_factory=list)
    done: Done | None = None

    def tell(self, message: Job | int) -> None:
        """Send one message; LoadError if the process is gone."""
        try:
            self.control.send(message)
        except OSError as error:
            raise LoadError(f"a load worker {self._end()}") from error

    def take(self) -> None:
        """Take one message; LoadError if the process is gone."""
        try:
            message = self.control.recv()
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
            _, written = self.process.communicate(timeout=EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "answers no more"
        lines = written.decode(errors="replace").strip().splitlines() if written else []
        return f"ended with exit code {self.process.returncode}: {lines[-1] if lines else '-'}"


class Crew:
    """Workers that play together; a `with` block in which they live."""

    def __init__(self, size: int, *, pass_fd: int) -> None:
        self.workers: list[Worker] = []
        try:
            for _ in range(size):
                self.workers.append(_hire(pass_fd))
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

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Have every worker open its connections; ConnectionError with the reason if one cannot."""
        for worker, job in zip(self.workers, jobs, strict=True):
            worker.tell(job)
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
        told = wait([worker.control.fileno() for worker in workers], timeout_s)
        for worker in workers:
            if worker.control.fileno() in told:
                worker.take()

    def dismiss(self) -> None:
        """End the processes, wherever they are."""
        for worker in self.workers:
            worker.control.close()
        for worker in self.workers:
            if worker.done is None:
                worker.process.kill()
            try:
                worker.process.wait(EXIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
            if worker.process.stderr is not None:
                worker.process.stderr.close()

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


def _hire(pass_fd: int) -> Worker:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                # -P: no module of the current folder stands in for one of ours.
                [sys.executable, "-P", "-m", WORKER, str(theirs.fileno())],
                env=os.environ | {"PYTHONPATH": _search_path()},
                pass_fds=[theirs.fileno(), pass_fd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # Ctrl-C is for the process that asked for the load; it ends its workers.
                process_group=0,
            )
        except OSError as error:
            ours.close()
            raise LoadError(f"no load worker can be started: {error.strerror}") from error
    return Worker(process, Line(ours))


def _search_path() -> str:
    """Where this package was found, before what the environment says."""
    package = str(Path(__file__).parents[2])
    return os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))


def _quantile_ms(ordered_ns: Sequence[int], share: float) -> float | None:
    if not ordered_ns:
        return None
    return ordered_ns[min(len(ordered_ns) - 1, int(share * len(ordered_ns)))] / NS_PER_MS
