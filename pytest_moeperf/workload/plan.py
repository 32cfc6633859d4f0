"""From a workload and a seed to the requests of one play."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_moeperf.errors import UsageError
from pytest_moeperf.records import RequestSpec
from pytest_moeperf.workload.arrivals import replayed, send_offsets_ns, think_times_ns
from pytest_moeperf.workload.prompts import ShareGPT, draw_tokens, sample_conversations
from pytest_moeperf.workload.shapes import ClosedLoop, TraceReplay

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
    request does not fit into `context_tokens`, or when there is nothing to draw from.
    """
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
