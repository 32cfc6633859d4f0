"""Counts as frozen values without numpy, for reports and files, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_moeperf.balance.counts import ExpertCounts, merged
from pytest_moeperf.records import RoutingRecord

if TYPE_CHECKING:
    from pytest_moeperf.balance.requests import RoutingCounts

__all__ = ["prefill_of", "record_of", "total_of"]


def record_of(counts: RoutingCounts, *, route: str) -> RoutingRecord:
    """What is kept of counts; `route` says how the engine told them."""
    prefill, decode = counts.prefill, counts.decode
    return RoutingRecord(
        route=route,
        layers=prefill.layers,
        experts=prefill.experts,
        top_k=prefill.top_k,
        prefill_tokens=prefill.tokens,
        decode_tokens=0 if decode is None else decode.tokens,
        prefill=_rows(prefill),
        decode=None if decode is None else _rows(decode),
    )


def _rows(counts: ExpertCounts) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in counts.counts.tolist())


def prefill_of(record: RoutingRecord) -> ExpertCounts:
    """Counts of the prompts; RoutingError where they cannot be true."""
    return _counts(record, record.prefill, record.prefill_tokens)


def total_of(record: RoutingRecord) -> ExpertCounts:
    """Counts of prefill and decode; RoutingError where they cannot be true."""
    prefill = prefill_of(record)
    if record.decode is None:
        return prefill
    return merged([prefill, _counts(record, record.decode, record.decode_tokens)])


def _counts(record: RoutingRecord, rows: tuple[tuple[int, ...], ...], tokens: int) -> ExpertCounts:
    return ExpertCounts(
        counts=np.array(rows, dtype=np.int64),
        tokens=tokens,
        top_k=record.top_k,
        layers=record.layers,
    )
