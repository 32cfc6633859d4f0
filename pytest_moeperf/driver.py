"""Plays a plan against a server and watches that the server keeps working."""

from __future__ import annotations

import math
import time
from array import array
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_moeperf.client import request_head, resolve
from pytest_moeperf.errors import LoadError, ServerHungError, UsageError
from pytest_moeperf.loadgen.crew import Crew
from pytest_moeperf.loadgen.job import Job, RequestFile
from pytest_moeperf.probe import usable_cores
from pytest_moeperf.process import notice_death
from pytest_moeperf.records import RepeatRecord
from pytest_moeperf.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_moeperf.client import Target
    from pytest_moeperf.loadgen.job import Address
    from pytest_moeperf.workload import Plan

__all__ = ["play", "workers_for"]

WATCH_INTERVAL_S = 0.5
PROGRESS_S = 0.25
START_AHEAD_NS = 5_000_000
"""Until the clock starts, every worker has heard of it."""
SILENCES = 2
"""A request that is silent for so many stall timeouts, while others go on, has failed."""
NOTICE_S = 2.0
"""Where all are silent, the watch finds that out well before."""
MAX_CONNECTIONS_AHEAD = 4096
CONNECTIONS_AHEAD_NS = NS_PER_S
"""Requests of an open loop that are due within this time have their connections at the start."""
STREAMS_OF_A_WORKER = 512
TOKENS_OF_A_WORKER = 50_000
"""One worker measures so many chunks a second (docs/accuracy.md): 100 on each of 512 streams."""


def play(
    target: Target,
    plan: Plan,
    *,
    stall_timeout_s: float = 60.0,
    on_progress: Callable[[int, int, int], None] | None = None,
    alive: Callable[[], None] | None = None,
    workers: int | None = None,
) -> RepeatRecord:
    """Send every request of `plan` and return what happened; failed requests are in the record.

    `on_progress(done, total, tokens)` and `alive()` are called about twice a second; what `alive`
    raises ends the load. `workers` processes send the load, None for as many as `workers_for`
    says, and never more than can have a request each. Raises LoadError when the server does not
    answer at all, ServerHungError when requests wait and no token came for `stall_timeout_s`; one
    that is silent among others fails alone after twice that time. Ctrl-C closes all connections
    and is passed on.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} load workers: give at least 1")
    watch = _Watch(
        target=target,
        total=len(plan.requests),
        stall_timeout_s=stall_timeout_s,
        on_progress=on_progress,
        alive=alive,
    )
    size = _crew_size(plan, workers)
    head = request_head(target)
    with (
        RequestFile(head, model=target.model, continuous_usage=target.continuous_usage) as requests,
        Crew(size) as crew,
    ):
        # The workers start meanwhile.
        requests.write(plan.requests)
        try:
            jobs = _jobs(
                target,
                plan,
                requests,
                address=resolve(target.url),
                size=size,
                stall_timeout_s=stall_timeout_s,
            )
            crew.prepare(jobs, requests_fd=requests.fd)
        except ConnectionError as error:
            # A dead process explains more than a closed port does.
            watch.check_alive()
            raise LoadError(f"{target.url} does not answer: {error}") from error
        started_ns = time.perf_counter_ns() + START_AHEAD_NS
        crew.start(started_ns)
        watch.until_done(crew)
        return _merged(crew, started_ns)


def workers_for(plan: Plan) -> int:
    """Processes that the load of `plan` may need.

    One for every 512 streams of a closed loop, or for every 50,000 tokens that an open loop asks
    for within one second. Never more than the machine has cores, of which the server needs one too.
    """
    if plan.concurrency is not None:
        wanted = plan.concurrency / STREAMS_OF_A_WORKER
    else:
        asked: Counter[int] = Counter()
        for spec in plan.requests:
            asked[(spec.offset_ns or 0) // NS_PER_S] += spec.output_tokens
        wanted = max(asked.values(), default=0) / TOKENS_OF_A_WORKER
    return max(1, min(math.ceil(wanted), usable_cores() - 1))


def _crew_size(plan: Plan, workers: int | None) -> int:
    """A worker without a slot or a request would end before the clock starts."""
    parts = min(len(plan.requests), plan.concurrency or len(plan.requests))
    return min(workers or workers_for(plan), max(1, parts))


def _due_ahead(plan: Plan) -> int:
    """Requests of an open loop that may be in flight soon after the start."""
    return sum((spec.offset_ns or 0) < CONNECTIONS_AHEAD_NS for spec in plan.requests)


def _jobs(
    target: Target,
    plan: Plan,
    requests: RequestFile,
    *,
    address: Address,
    size: int,
    stall_timeout_s: float,
) -> list[Job]:
    """Share one plan out: slots of a closed loop, or every so manieth send time."""
    total = len(plan.requests)
    closed = plan.concurrency is not None
    schedule = [] if closed else sorted((spec.offset_ns or 0, spec.index) for spec in plan.requests)
    thinks = any(spec.think_ns for spec in plan.requests)
    ahead = min(plan.concurrency or _due_ahead(plan), total, MAX_CONNECTIONS_AHEAD)
    return [
        Job(
            address=address,
            ends=requests.ends,
            asked_tokens=array("L", (spec.output_tokens for spec in plan.requests)),
            slots=_share(min(plan.concurrency or 0, total), number, size) if closed else None,
            schedule=tuple(schedule[number::size]),
            think_ns=array("q", (spec.think_ns for spec in plan.requests)) if thinks else None,
            connections=0 if target.include_connect else max(1, _share(ahead, number, size)),
            include_connect=target.include_connect,
            progress_s=PROGRESS_S,
            silence_s=SILENCES * stall_timeout_s + NOTICE_S,
        )
        for number in range(size)
    ]


def _share(amount: int, number: int, size: int) -> int:
    """The part of worker `number` where `size` workers share `amount` as evenly as can be."""
    return amount // size + (number < amount % size)


def _merged(crew: Crew, started_ns: int) -> RepeatRecord:
    requests = [record for worker in crew.workers for record in worker.records]
    return RepeatRecord(
        requests=tuple(sorted(requests, key=lambda record: record.index)),
        started_ns=started_ns,
        ended_ns=max(worker.done.ended_ns for worker in crew.workers if worker.done),
        client=crew.record(started_ns=started_ns),
    )


@dataclass(slots=True, kw_only=True)
class _Watch:
    """Looks after a play: tells how far it is, and gives up when there is a reason."""

    target: Target
    total: int
    stall_timeout_s: float
    on_progress: Callable[[int, int, int], None] | None
    alive: Callable[[], None] | None

    def until_done(self, crew: Crew) -> None:
        """Return when all requests have ended."""
        done = False
        look_s = min(WATCH_INTERVAL_S, self.stall_timeout_s / 4)
        next_look = 0.0
        while not done:
            if time.monotonic() >= next_look:
                self.check_alive()
                self._check_progress(crew)
                self._report(crew)
                next_look = time.monotonic() + look_s
            done = crew.listen(max(0.0, next_look - time.monotonic()))
        self._notice_death(crew)
        self._report(crew)

    def check_alive(self) -> None:
        """Let the owner of the server say that it is gone."""
        if self.alive is not None:
            self.alive()

    def _check_progress(self, crew: Crew) -> None:
        told = [worker.progress for worker in crew.workers if worker.progress is not None]
        waiting = [progress for progress in told if progress.in_flight]
        if not waiting:
            return
        latest_ns = max(progress.waiting_since_ns for progress in waiting)
        waited_s = (time.perf_counter_ns() - latest_ns) / NS_PER_S
        # A worker tells of itself only so often.
        if waited_s > self.stall_timeout_s + 2 * PROGRESS_S:
            in_flight = sum(progress.in_flight for progress in waiting)
            done = sum(progress.done for progress in told)
            raise ServerHungError(
                f"{self.target.url} sent no token for {waited_s:.0f} s with {in_flight} "
                f"requests in flight, {done} of {self.total} done",
                elapsed_s=waited_s,
            )

    def _report(self, crew: Crew) -> None:
        if self.on_progress is not None:
            told = [worker.progress for worker in crew.workers if worker.progress is not None]
            done = sum(progress.done for progress in told)
            self.on_progress(done, self.total, sum(progress.tokens for progress in told))

    def _notice_death(self, crew: Crew) -> None:
        """Where the last request failed, wait for the server's end to show, to tell it as such."""
        self.check_alive()
        records = [record for worker in crew.workers for record in worker.records]
        last = max(records, key=lambda record: record.ended_ns, default=None)
        if self.alive is None or last is None or last.error is None:
            return
        notice_death(self.alive)
