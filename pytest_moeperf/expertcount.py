"""Has a server that counts experts run requests, and reads which experts their tokens took."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_moeperf.balance import RoutedRequest
    from pytest_moeperf.memory import Architecture
    from pytest_moeperf.records import RequestSpec
    from pytest_moeperf.server import RunningServer

__all__ = ["count_experts"]

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
        requests: What to send; prompts as token ids.
        architecture: Of the server's model.
        stall_timeout_s: How long one answer may take without any other being finished.
        on_progress: Is called after every request.

    Raises:
        UsageError: The server was not started to count experts, or the model has none.
        LoadError: It refused a request, with its words, or gave other tokens than asked for.
        RoutingError: What it told cannot be true.
        ServerDiedError: It is gone.
        ServerHungError: It does not answer.
    """
    raise NotImplementedError
