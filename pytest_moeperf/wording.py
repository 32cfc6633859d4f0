"""Counts, shares and times in words, alike in messages and reports."""

from __future__ import annotations

__all__ = ["counted", "duration", "percent"]

_MINUTE_S = 60
_HOUR_MIN = 60


def counted(number: int, noun: str) -> str:
    """`1 start`, `3 starts`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(ratio: float) -> str:
    """`12.5 %`: three digits, for figures that are known and not estimated."""
    return f"{100 * ratio:.3g} %"


def duration(seconds: float) -> str:
    """`4.2 s`, `1 min 5 s`, `1 h 30 min`."""
    if round(seconds, 1) < _MINUTE_S:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), _MINUTE_S)
    hours, rest_min = divmod(minutes, _HOUR_MIN)
    return f"{hours} h {rest_min} min" if hours else f"{minutes} min {rest_s} s"
