"""Types of options: each quotes what was typed and says what is valid."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

__all__ = ["above_zero", "count", "folder", "share", "text", "whole"]


def whole(text: str) -> int:
    """A whole number, negative ones among them: a seed."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isascii() or not text.isdigit() or whole(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def above_zero(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and at most 1")
    return value


def text(typed: str) -> str:
    """Any but an empty one, which is what a variable becomes that was not set."""
    if not typed.strip():
        raise argparse.ArgumentTypeError(f"{typed!r} is empty: is a variable not set?")
    return typed


def folder(typed: str) -> Path:
    """A folder; an empty name would be the one that the command was typed in."""
    return Path(text(typed))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
