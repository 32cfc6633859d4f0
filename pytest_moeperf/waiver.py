"""Waivers: why a bar may be lowered, by whom, and until when somebody answers for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from pytest_moeperf.document import Line, parse, render, validate
from pytest_moeperf.errors import BaselineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["LONGEST_DAYS", "Waiver", "decode_waivers", "encode_waivers", "latest_expiry"]

LONGEST_DAYS = 90
"""How far ahead a waiver or a known regression may expire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiver:
    """The excuse for one lowered bar; it counts only in the change that brings it."""

    baseline: str
    """`<hardware>/<engine>/<suite>/<cell>`."""
    metric: str | None
    """None where the rule is about the whole file."""
    rule: str
    """As the guard names it: `worse`, `widened`, …"""
    reason: str
    owner: str
    issue: str
    """URL of where it will be mended."""
    expires: str
    """`2026-12-31`; at most 90 days ahead."""


def latest_expiry(today: str) -> str:
    """The last day that anything written today may be excused until."""
    return (date.fromisoformat(today) + timedelta(days=LONGEST_DAYS)).isoformat()


def encode_waivers(waivers: Sequence[Waiver]) -> str:
    """The text of `waivers.json`: one waiver a line."""
    lines = [Line(asdict(waiver)) for waiver in sorted(waivers, key=_place)]
    return render({"schema": 1, "waivers": lines})


def _place(waiver: Waiver) -> tuple[str, str, str]:
    return waiver.baseline, waiver.metric or "", waiver.rule


def decode_waivers(text: str, *, source: str, schema: Mapping[str, Any]) -> tuple[Waiver, ...]:
    """Inverse of `encode_waivers` for text that nobody vouches for."""
    document = parse(text, source=source)
    validate(document, schema, source=source)
    waivers = tuple(Waiver(**waiver) for waiver in document["waivers"])
    for index, waiver in enumerate(waivers):
        try:
            date.fromisoformat(waiver.expires)
        except ValueError as error:
            raise BaselineError(
                f"{source}: $.waivers[{index}].expires: {waiver.expires} is no date: {error}"
            ) from error
    return waivers
