"""What a play hands to its workers, and what comes back."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from pytest_moeperf.completions import request_body

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from pytest_moeperf.request import RequestRecord, RequestSpec

__all__ = ["Address", "Done", "Failed", "Job", "Progress", "Ready", "RequestFile", "Tickets"]

COUNTER_BYTES = 8
WRITE_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A resolved server address."""

    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
    name: str
    """Host and port, as messages and certificates name it."""
    tls_host: str | None
    """The name that the certificate must be for; None: no TLS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The share of one worker in a play."""

    address: Address
    ends: array[int]
    """Where each request ends in the `RequestFile`."""
    asked_tokens: array[int]
    slots: int | None
    """Closed loop: requests to keep in flight; None: each has its own send time."""
    schedule: tuple[tuple[int, int], ...] = ()
    """Open loop: send time after the start in ns and index of each request of this worker."""
    think_ns: array[int] | None = None
    connections: int = 1
    """Opened before the clock starts."""
    include_connect: bool = False
    progress_s: float = 0.25
    silence_s: float = 120.0
    """So long a request may go without a token before it counts as failed."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The connections are open."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The server could not be reached."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a worker is."""

    done: int
    tokens: int
    in_flight: int
    waiting_since_ns: int
    """The last arrival of a token or end of a request, or when the first in flight was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a worker measured of itself; its records came before."""

    ended_ns: int
    cpu_s: float
    reads: int
    unstamped_reads: int
    merged_reads: int
    lost_arrivals: int
    clock_step_ns: int
    lags_ns: array[int] = field(repr=False)
    """From arrival to reading, of a sample of the reads."""


Message = Ready | Failed | Progress | Done | list["RequestRecord"]


class RequestFile:
    """All requests of a play as they go over the wire, in memory that the workers share."""

    def __init__(self, head: bytes, *, model: str, continuous_usage: bool) -> None:
        """Take the head of every request, with `%d` for the length of its body."""
        self.ends: array[int] = array("Q")
        self._head = head
        self._model = model
        self._continuous_usage = continuous_usage
        self.fd = os.memfd_create("moeperf-requests")

    def write(self, requests: Sequence[RequestSpec]) -> None:
        """Encode the requests, in their order."""
        with os.fdopen(os.dup(self.fd), "wb", buffering=WRITE_BYTES) as file:
            end = file.write(bytes(COUNTER_BYTES))
            for spec in requests:
                body = request_body(
                    spec, model=self._model, continuous_usage=self._continuous_usage
                )
                end += file.write(self._head % len(body))
                end += file.write(body)
                self.ends.append(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back, once the workers are gone too."""
        os.close(self.fd)

    @staticmethod
    def start_of(index: int, ends: array[int]) -> int:
        """Where request `index` starts."""
        return ends[index - 1] if index else COUNTER_BYTES


class Tickets:
    """Hands out the numbers of requests, each once over all workers of a play.

    A closed loop's next request goes to whichever worker has a free slot first.
    """

    def __init__(self, fd: int, total: int) -> None:
        self._fd = fd
        self._total = total

    def take(self) -> int | None:
        """The next number; None when all are taken."""
        # The lock is the process's: it falls with it.
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.lockf(self._fd, os.F_LOCK, COUNTER_BYTES)
        try:
            number = int.from_bytes(os.pread(self._fd, COUNTER_BYTES, 0), "little")
            if number >= self._total:
                return None
            os.pwrite(self._fd, (number + 1).to_bytes(COUNTER_BYTES, "little"), 0)
            return number
        finally:
            os.lockf(self._fd, os.F_ULOCK, COUNTER_BYTES)
