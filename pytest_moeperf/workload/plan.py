"""From a workload and a seed to the requests of one play."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, get_args

from pytest_moeperf.errors import UsageError
from pytest_moeperf.records import RequestSpec
from pytest_moeperf.workload.arrivals import replayed, send_offsets_ns, think_times_ns
from pytest_moeperf.workload.prompts import (
    SharedPrefix,
    ShareGPT,
    draw_tokens,
    sample_conversations,
)
from pytest_moeperf.workload.shapes import Arrivals, ClosedLoop, OpenLoop, Think, TraceReplay

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_moeperf.workload.prompts import Conversations, Drawn
    from pytest_moeperf.workload.shapes import Trace, Workload

__all__ = ["WORKLOAD_VERSION", "Plan", "plan"]

WORKLOAD_VERSION: Final = 1
"""Raised whenever the same workload and seed give other requests than before, which makes older
samples incomparable. 1: first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The requests of one play, ready to be sent."""

    requests: tuple[RequestSpec, ...]
    concurrency: int | None
    """How many are kept in flight; None: each is sent at its own offset."""


def plan(
    workload: Workload,
    *,
    seed: int,
    vocab_size: int,
    first_id: int,
    context_tokens: int | None,
    conversations: Conversations = (),
    trace: Trace = (),
) -> Plan:
    """Draw the requests of `workload`; the same arguments give the same plan on every machine.

    Random prompts take ids from `first_id` up to, without, `vocab_size`. `conversations` are
    those of ShareGPT prompts, `trace` the entries of a TraceReplay. Raises UsageError when a
    request does not fit into `context_tokens`, or when the workload makes no sense.
    """
    _validate(workload)
    if isinstance(workload, TraceReplay):
        trace = replayed(workload, trace)
        lengths = [(entry.input_tokens, entry.output_tokens) for entry in trace]
    else:
        lengths = [(workload.isl, workload.osl)] * workload.requests
    if not lengths:
        raise UsageError(f"workload {workload.slug} has no entries of its trace to replay")
    _check_context(workload, lengths, context_tokens)
    # Each draw has a generator of its own, so that other arrivals do not change the prompts.
    # A string seeds it the same way in every Python version.
    generator = random.Random(f"prompts {seed}")  # noqa: S311  load, not secrets
    drawn = _draw_prompts(workload, lengths, range(first_id, vocab_size), conversations, generator)
    offsets_ns = send_offsets_ns(workload, trace)
    rests_ns = think_times_ns(workload, len(lengths))
    return Plan(
        requests=tuple(
            RequestSpec(
                index=index,
                prompt=prompt,
                output_tokens=output_tokens,
                offset_ns=offset_ns,
                think_ns=think_ns,
            )
            for index, ((prompt, output_tokens), offset_ns, think_ns) in enumerate(
                zip(drawn, offsets_ns, rests_ns, strict=True)
            )
        ),
        concurrency=workload.concurrency if isinstance(workload, ClosedLoop) else None,
    )


def _draw_prompts(
    workload: Workload,
    lengths: Sequence[tuple[int, int]],
    ids: range,
    conversations: Conversations,
    generator: random.Random,
) -> Iterator[Drawn]:
    if not isinstance(workload.prompts, ShareGPT):
        return draw_tokens(workload.prompts, lengths, ids, generator)
    if not conversations:
        raise UsageError(f"workload {workload.slug} has no conversations to take prompts from")
    return sample_conversations(conversations, [osl for _, osl in lengths], generator)


def _check_context(
    workload: Workload, lengths: Sequence[tuple[int, int]], context_tokens: int | None
) -> None:
    isl, osl = max(lengths, key=sum)
    if context_tokens is None or isl + osl <= context_tokens:
        return
    remedy = (
        "leave such requests out of the trace"
        if isinstance(workload, TraceReplay)
        else "lower isl or osl"
    )
    raise UsageError(
        f"workload {workload.slug} needs {isl} + {osl} = {isl + osl} tokens, the model's context "
        f"has {context_tokens}: {remedy}, or take a model with more context"
    )


def _validate(workload: Workload) -> None:
    """Raise UsageError for a workload that nobody can mean."""
    for name, value in _positive(workload).items():
        if not 0 < value < math.inf:
            raise UsageError(f"{name} = {value} in a workload: it must be above 0 and finite")
    if isinstance(workload, OpenLoop):
        _validate_arrivals(workload)
    if isinstance(workload, ClosedLoop):
        _validate_think(workload)
    if not isinstance(workload, TraceReplay) and isinstance(workload.prompts, SharedPrefix):
        _validate_prefix(workload.prompts, requests=workload.requests, isl=workload.isl)


def _positive(workload: Workload) -> dict[str, float]:
    """What has to be above 0, by name."""
    if isinstance(workload, TraceReplay):
        limit = {} if workload.requests is None else {"requests": workload.requests}
        return {"speed": workload.speed, **limit}
    values: dict[str, float] = {
        "isl": workload.isl,
        "osl": workload.osl,
        "requests": workload.requests,
    }
    if isinstance(workload, ClosedLoop):
        values["concurrency"] = workload.concurrency
    if isinstance(workload, OpenLoop):
        values |= {"request_rate": workload.request_rate, "burstiness": workload.burstiness}
        if workload.end_rate is not None:
            values["end_rate"] = workload.end_rate
    if isinstance(workload.prompts, SharedPrefix):
        values |= {"groups": workload.prompts.groups, "prefix": workload.prompts.prefix}
    return values


def _validate_arrivals(workload: OpenLoop) -> None:
    _validate_choice("arrivals", workload.arrivals, get_args(Arrivals))
    if workload.arrivals != "gamma" and workload.burstiness != 1.0:
        raise UsageError(
            f"burstiness = {workload.burstiness:g} has no effect on {workload.arrivals} "
            "arrivals: set arrivals='gamma'"
        )


def _validate_think(workload: ClosedLoop) -> None:
    _validate_choice("think", workload.think, get_args(Think))
    if not 0 <= workload.think_s < math.inf:
        raise UsageError(
            f"think_s = {workload.think_s} in a workload: give seconds from 0 up, and finite"
        )


def _validate_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{name} = {value!r} in a workload: valid are {', '.join(known)}")


def _validate_prefix(prompts: SharedPrefix, *, requests: int, isl: int) -> None:
    if prompts.prefix > isl:
        raise UsageError(
            f"prefix = {prompts.prefix} in a workload: prompts have only isl = {isl} tokens"
        )
    if prompts.groups >= requests:
        raise UsageError(
            f"groups = {prompts.groups} in a workload: with requests = {requests} no two share a "
            "prefix; take fewer groups, or more requests"
        )
