"""One request, before and after it was sent: of the vocabulary what a load worker needs.

A worker starts anew for every play, and the other records would double what it takes to import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["RequestRecord", "RequestSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpec:
    """One request that is to be sent."""

    index: int
    prompt: Sequence[int] | str
    """Token ids, or text where a data set gives only that."""
    output_tokens: int
    """Exactly so many are asked for (`ignore_eos`)."""
    offset_ns: int | None = None
    """Scheduled send time after the start of the run; None: when a slot is free (closed loop)."""
    think_ns: int = 0
    """Closed loop: how long its slot rests before it, after the request that the slot had last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """What happened to one request, chunk by chunk."""

    index: int
    sent_ns: int
    """Just before the first byte of the request was written."""
    scheduled_ns: int | None = None
    """Open loop: when it should have been sent. Latencies count from here, so that a stalled
    server or client cannot hide its queue."""
    chunk_ns: Sequence[int] = ()
    """Arrival of every chunk that carried tokens; the load client fills an array of 8 bytes each,
    for a run may bring millions."""
    chunk_tokens: Sequence[int] = ()
    """Tokens of each of these chunks."""
    prompt_tokens: int | None = None
    """As the server counted them."""
    output_tokens: int | None = None
    """As the server's usage says; None if it never came."""
    asked_output_tokens: int
    ended_ns: int
    """When the stream ended, by its last byte or by an error."""
    error: str | None = None

    @property
    def start_ns(self) -> int:
        """The time that latencies of this request count from."""
        return self.sent_ns if self.scheduled_ns is None else self.scheduled_ns
