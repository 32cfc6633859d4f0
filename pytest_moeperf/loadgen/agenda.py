"""What a worker has to send, and when."""

from __future__ import annotations

import heapq
from collections import deque
from itertools import takewhile
from typing import TYPE_CHECKING

from pytest_moeperf.loadgen.job import Tickets

if TYPE_CHECKING:
    from pytest_moeperf.loadgen.job import Job

__all__ = ["Agenda"]


class Agenda:
    """The send times of an open loop, or the slots of a closed one; ns after the start."""

    def __init__(self, job: Job, *, requests_fd: int) -> None:
        self._scheduled = deque(job.schedule)
        self._resting: list[tuple[int, int]] = []
        """A heap: closed loop, when a slot's rest ends, and its next request."""
        self._tickets = Tickets(requests_fd, len(job.ends))
        self._think_ns = job.think_ns
        for _ in range(job.slots or 0):
            self.free_slot(0)

    def __bool__(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._scheduled or self._resting)

    def free_slot(self, now_ns: int) -> None:
        """A slot of a closed loop is free: its next request is due now, or after a rest."""
        index = self._tickets.take()
        if index is not None:
            rest_ns = self._think_ns[index] if self._think_ns else 0
            heapq.heappush(self._resting, (now_ns + rest_ns, index))

    def next_ns(self) -> int | None:
        """When the next request is due; None if there is no more."""
        queue = self._scheduled or self._resting
        return queue[0][0] if queue else None

    def take(self, now_ns: int) -> tuple[int, int | None] | None:
        """A request that is due, with its scheduled time in an open loop; None if there is none."""
        if self._scheduled and self._scheduled[0][0] <= now_ns:
            at_ns, index = self._scheduled.popleft()
            return index, at_ns
        if self._resting and self._resting[0][0] <= now_ns:
            return heapq.heappop(self._resting)[1], None
        return None

    def due_until(self, ns: int) -> int:
        """Requests of an open loop that are to be sent until then."""
        return sum(1 for _ in takewhile(lambda item: item[0] <= ns, self._scheduled))
