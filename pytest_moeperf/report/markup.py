"""Texts of others inside Markdown: a baseline comes with a pull request, and may hold anything."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["code", "escaped", "table_line"]

_MARKUP = re.compile(r"([\\`*_{}\[\]<>|~#@&!])")


def escaped(text: str) -> str:
    """On one line, with nothing that Markdown or HTML would obey."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """A code span; a backtick would end it, and a bar would end a table's cell."""
    shown = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{shown}`"


def table_line(cells: Sequence[str]) -> str:
    """One row of a table."""
    return f"| {' | '.join(cells)} |"
