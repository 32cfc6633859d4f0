"""Has a server that counts experts run requests, and reads which experts their tokens took."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_moeperf.completions import error_message
from pytest_moeperf.endpoint import Endpoint, LongQuestions
from pytest_moeperf.errors import LoadError, RoutingError, ServerHungError, UsageError
from pytest_moeperf.process import notice_death

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pytest_moeperf.balance import RoutedRequest
    from pytest_moeperf.engines import CountingRoute
    from pytest_moeperf.engines.base import Generated, Question
    from pytest_moeperf.memory import Architecture
    from pytest_moeperf.records import RequestSpec
    from pytest_moeperf.server import RunningServer

__all__ = ["count_experts"]

MOST_AT_ONCE = 8
LOOK_S = 0.5
ANSWER_S = 10.0
"""Patience with a question that takes no time, such as for counters."""
PROGRESS_COUNTERS = ("generation_tokens", "prompt_tokens")

Ended = TypeVar("Ended")
Progress = Callable[[int, int], None]
"""Gets how many requests are done, and how many there are."""


def count_experts(
    server: RunningServer,
    requests: Sequence[RequestSpec],
    architecture: Architecture,
    *,
    stall_timeout_s: float = 60.0,
    on_progress: Progress | None = None,
) -> tuple[RoutedRequest, ...]:
    """Send every request, greedily and whole, and return the experts that its tokens took.

    Arrival times and think times are not kept: what is counted does not depend on when. Up to
    eight requests are under way at once where the server's route allows it, else one. Make
    `RoutingCounts(requests=…, experts=architecture.experts, layers=architecture.expert_layers)` of
    the result.

    Args:
        server: Started from a spec with `counts_experts=True`.
        requests: What to send.
        architecture: Of the server's model.
        stall_timeout_s: How long nothing may be finished and no token be counted by the server.
        on_progress: Is called after every request.

    Raises:
        UsageError: The server was not started to count experts.
        LoadError: It refused a request, with its words, or gave other tokens than asked for.
        RoutingError: What it told cannot be true.
        ServerDiedError: It is gone.
        ServerHungError: It does not answer.
    """
    if server.counting is None:
        raise UsageError(
            f"{server.spec.label}: was not started to count experts; ask for "
            f"ServerSpec(…, counts_experts=True)"
        )
    server.check_alive()
    server.begin_work()
    counter = _Counter(server, server.counting, architecture)
    watch = _Watch(server, stall_timeout_s)
    found: dict[int, RoutedRequest] = {}
    at_once = 1 if server.counting.one_at_a_time else MOST_AT_ONCE
    pool = ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="count-experts")
    try:
        watch.ended([pool.submit(counter.begin)])[0].result()
        waiting = {
            pool.submit(counter.count, request): place for place, request in enumerate(requests)
        }
        while waiting:
            for future in watch.ended(waiting):
                found[waiting.pop(future)] = future.result()
                if on_progress is not None:
                    on_progress(len(found), len(requests))
    except OSError as error:
        if server.process is not None:
            notice_death(server.check_alive)
        raise LoadError(f"{server.spec.label}: {server.url} broke off: {error}") from error
    finally:
        counter.abort()
        pool.shutdown(cancel_futures=True)
    return tuple(found[place] for place in range(len(requests)))


@dataclass(slots=True)
class _Counter:
    """Counts one request after the other, in several threads."""

    server: RunningServer
    route: CountingRoute
    architecture: Architecture
    questions: LongQuestions = field(init=False)

    def __post_init__(self) -> None:
        self.questions = LongQuestions(Endpoint(self.server.url, self.server.api_key))

    def begin(self) -> None:
        """Leave behind what was routed before, such as while the server started."""
        if self.route.collect is not None:
            self._ask(self.route.collect)

    def count(self, request: RequestSpec) -> RoutedRequest:
        """Send one request and read its routes."""
        from pytest_moeperf.balance import RoutedRequest  # noqa: PLC0415 - imports numpy

        engine = self.server.engine
        answer = self._ask(engine.counted_request(request, model=self.server.model))
        told = engine.read_generated(answer)
        prompt_tokens, output_tokens = self._check_tokens(request, told)
        has_routes = answer if self.route.collect is None else self._ask(self.route.collect)
        try:
            return RoutedRequest(
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                routes=engine.read_routes(has_routes, self.architecture),
                prompt_ids=None if isinstance(request.prompt, str) else tuple(request.prompt),
                output_ids=told.output_ids,
            )
        except RoutingError as error:
            raise RoutingError(f"{self._label(request)}: {error}") from None

    def abort(self) -> None:
        """End what is under way; a thread that waits for an answer gets an OSError."""
        self.questions.abort()

    def _ask(self, question: Question) -> Any:
        answer = self.questions.post(question.path, question.body)
        body = answer.json()
        if not answer.ok or not isinstance(body, dict):
            said = error_message(answer.text.encode())
            raise LoadError(
                f"{self.server.spec.label}: {question.path} answers HTTP {answer.status}: {said}"
            )
        return body

    def _check_tokens(self, request: RequestSpec, told: Generated) -> tuple[int, int]:
        sent = None if isinstance(request.prompt, str) else len(request.prompt)
        expected = (told.prompt_tokens if sent is None else sent, request.output_tokens)
        counted = (told.prompt_tokens, told.output_tokens)
        if expected[0] is None or counted != expected:
            raise LoadError(
                f"{self._label(request)}: the server counted {counted[0]} tokens of prompt and "
                f"{counted[1]} of output, expected {expected[0]} and {expected[1]}"
            )
        return expected[0], expected[1]

    def _label(self, request: RequestSpec) -> str:
        return f"{self.server.spec.label}, request {request.index}"


class _Watch:
    """Waits for requests, and gives up when there is a reason."""

    def __init__(self, server: RunningServer, stall_timeout_s: float) -> None:
        self._server = server
        self._stall_timeout_s = stall_timeout_s
        self._moved_at = time.monotonic()
        self._seen: tuple[float | None, ...] = ()

    def ended(self, waiting: Collection[Future[Ended]]) -> list[Future[Ended]]:
        """Return requests that have ended, as soon as there is one."""
        look_s = min(LOOK_S, self._stall_timeout_s / 4)
        while True:
            done, _ = wait(waiting, timeout=look_s, return_when=FIRST_COMPLETED)
            if done:
                self._moved_at = time.monotonic()
                return list(done)
            self._server.check_alive()
            silent_s = time.monotonic() - self._moved_at
            if silent_s > self._stall_timeout_s / 2:
                self._look_at_counters()
            silent_s = time.monotonic() - self._moved_at
            if silent_s > self._stall_timeout_s:
                raise self._server.hung(
                    ServerHungError(
                        f"{self._server.url} finished nothing for {silent_s:.0f} s and counted no "
                        f"token, with {len(waiting)} requests to go",
                        elapsed_s=silent_s,
                    )
                )

    def _look_at_counters(self) -> None:
        """An answer comes whole: only the server's own counters tell that it is being made."""
        engine = self._server.engine
        try:
            answer = Endpoint(self._server.url, self._server.api_key).get(
                engine.metrics_path, timeout_s=ANSWER_S
            )
        except OSError:
            return
        values = engine.counters(answer.text) if answer.ok else {}
        seen = tuple(values.get(name) for name in PROGRESS_COUNTERS)
        if self._seen and seen != self._seen:
            self._moved_at = time.monotonic()
        self._seen = seen
