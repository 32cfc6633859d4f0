"""What a field must be, told in one line where a suite makes a value that breaks it."""

from __future__ import annotations

import math
from pathlib import PurePath

from pytest_moeperf.errors import UsageError

__all__ = [
    "check_choice",
    "check_number",
    "check_path",
    "check_truth",
    "check_whole",
    "misuse",
    "shown",
]

# pytest leaves these frames out: a traceback ends at the suite's own line.
__tracebackhide__ = True


def shown(value: object) -> str:
    """Text and numbers as they are, of all else the type: that may be long, or hold a secret."""
    if value is None or isinstance(value, str | int | float):
        return repr(value)
    return f"a value of type {type(value).__name__}"


def misuse(owner: str, name: str, value: object, valid: str) -> UsageError:
    """The error of a field `name` of `owner` that has a wrong value."""
    return UsageError(f"{name} = {value!r} in {owner}: {valid}")


def check_whole(owner: str, **values: object) -> None:
    """Raise UsageError for the first that is no count."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise misuse(owner, name, value, "it must be a whole number above 0")


def check_number(owner: str, *, or_zero: bool = False, **values: object) -> None:
    """Raise UsageError for the first that is no quantity."""
    least = "from 0 up" if or_zero else "above 0"
    for name, value in values.items():
        if not (_is_quantity(value) or (or_zero and value == 0)):
            raise misuse(owner, name, value, f"it must be a number {least}, and finite")


def check_truth(owner: str, **values: object) -> None:
    """Raise UsageError for the first that is neither True nor False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise misuse(owner, name, value, "it must be True or False")


def check_choice(owner: str, known: tuple[str, ...], **values: object) -> None:
    """Raise UsageError for the first that is none of `known`."""
    for name, value in values.items():
        if value not in known:
            raise misuse(owner, name, value, f"valid are {', '.join(known)}")


def check_path(owner: str, **values: object) -> None:
    """Raise UsageError for the first that names no file."""
    for name, value in values.items():
        if not isinstance(value, str | PurePath) or not str(value):
            raise misuse(owner, name, value, "give the path of a file")


def _is_quantity(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 < value < math.inf
