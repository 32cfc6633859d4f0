"""The JSON of a result, read field by field: an error names the file, the field and its content."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_moeperf.document import printable
from pytest_moeperf.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Fields", "documents"]

_LARGEST = 4e9
"""Beyond it a figure is a mistake: seconds since 1970, the largest of all, are half of it."""
_QUOTED_CHARACTERS = 40
_SPACE = re.compile(r"\s*")


def documents(text: str, *, name: str) -> list[Any]:
    """Every JSON document in `text`: one, or several after each other as in JSONL.

    NaN and infinity pass, since SGLang writes its request rate so; a figure may be neither.
    """
    decoder = json.JSONDecoder()
    found: list[Any] = []
    position = _after_space(text, 0)
    while position < len(text):
        try:
            document, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            place = f"line {error.lineno} column {error.colno}"
            raise UsageError(f"{name}: {place}: not JSON: {error.msg}") from error
        except RecursionError as error:
            raise UsageError(f"{name}: not a result: nested too deeply") from error
        except ValueError as error:  # a number of thousands of digits
            raise UsageError(f"{name}: not a result: {error}") from error
        found.append(document)
        position = _after_space(text, position)
    if not found:
        raise UsageError(f"{name}: is empty; a result is a JSON object")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The fields of one document; what is absent or null is None, what is wrong a UsageError."""

    name: str
    document: Mapping[str, Any]

    def has(self, *keys: str) -> bool:
        """Whether all of the keys are there, even if null."""
        return all(key in self.document for key in keys)

    def text(self, key: str) -> str | None:
        """A text, or None for anything else: texts only describe."""
        value = self.document.get(key)
        return value if isinstance(value, str) else None

    def figure(self, key: str) -> float | None:
        """A number of at least 0, which NaN and infinity are not."""
        value = self.document.get(key)
        return None if value is None else self._figure(value, key)

    def section(self, key: str) -> Fields:
        """The object below `key`, whose errors name `key` as well; empty if it is absent."""
        value = self.document.get(key)
        if not isinstance(value, dict | None):
            raise UsageError(f"{self.name}: {key} is {_quoted(value)}: it must be an object")
        return Fields(name=f"{self.name}: {key}", document=value or {})

    def column(self, key: str) -> list[Any] | None:
        """A list with one entry a request, as it stands."""
        value = self.document.get(key)
        if isinstance(value, list | None):
            return value
        raise UsageError(f"{self.name}: {key} is {_quoted(value)}: it must be a list")

    def figures(self, key: str) -> list[float] | None:
        """One number a request."""
        column = self.column(key)
        return None if column is None else [self._figure(item, key) for item in column]

    def counts(self, key: str) -> list[int | None] | None:
        """One count a request, None for a request where it is not known."""
        column = self.column(key)
        if column is None:
            return None
        return [None if item is None else int(self._figure(item, key)) for item in column]

    def series(self, key: str) -> list[list[float]] | None:
        """A list of numbers for each request."""
        column = self.column(key)
        if column is None:
            return None
        for item in column:
            if not isinstance(item, list):
                raise UsageError(f"{self.name}: {key} has {_quoted(item)}: it must hold lists")
        return [[self._figure(value, key) for value in item] for item in column]

    def _figure(self, value: object, key: str) -> float:
        # A bool is an int to Python; NaN compares false with everything.
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and 0 <= value <= _LARGEST
        ):
            return float(value)
        raise UsageError(
            f"{self.name}: {printable(key)} has {_quoted(value)}: "
            "a figure is a number from 0 to 4e9"
        )


def _after_space(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    return space.end() if space else position


def _quoted(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _QUOTED_CHARACTERS else text[: _QUOTED_CHARACTERS - 1] + "…"
