"""JSON documents as text: the one form that baselines and run reports share.

Reading is strict, because a baseline arrives with a pull request: a repeated key, a number that
is not finite, nesting without end and anything that the schema does not allow are errors with
the place in the document. Writing is canonical: equal records give equal bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_moeperf.errors import BaselineError, NewerFormatError

__all__ = [
    "Line",
    "parse",
    "printable",
    "render",
    "rounded",
    "validate",
]

_DECIMALS = 4
_SIGNIFICANT_DIGITS = 6
_LARGEST = 1e300
"""Beyond it a number is a mistake, and arithmetic on it would overflow."""
_ENTRIES_ON_A_LINE = 3
_QUOTED_CHARACTERS = 60
_MESSAGE_CHARACTERS = 200
_BEGUN_WORD = re.compile(r"[a-z.+-]{0,4}\s*")
"""What may be left of a word or number of JSON where a file was cut off."""


class Line(dict[str, Any]):
    """An object that is written on one line, in its own order, however long it is."""


def rounded(value: float | None) -> float | None:
    """The figure as it is stored: four decimals, and six significant digits where it is small.

    JSON has no word for NaN and infinity; nothing was measured there, so they become None.
    """
    if value is None or not math.isfinite(value):
        return None
    if value == 0:
        return 0.0
    decimals = max(_DECIMALS, _SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(value))))
    return round(float(value), decimals)


def render(document: object) -> str:
    """Canonical JSON, made for diffs: sorted keys, LF, a newline at the end.

    A list of scalars is one line, and so are an object of at most three scalars and a `Line`;
    everything else has an item a line. ASCII, so that a reviewer sees every character.
    """
    return _rendered(document, indent="") + "\n"


def _rendered(value: object, *, indent: str) -> str:
    if isinstance(value, Line):
        return json.dumps(value, allow_nan=False)
    if _fits_a_line(value):
        return json.dumps(value, sort_keys=True, allow_nan=False)
    inner = indent + "  "
    if isinstance(value, Mapping):
        items = [
            f"{json.dumps(key)}: {_rendered(value[key], indent=inner)}" for key in sorted(value)
        ]
        opening, closing = "{}"
    elif isinstance(value, Sequence):
        items = [_rendered(item, indent=inner) for item in value]
        opening, closing = "[]"
    else:
        raise TypeError(f"{type(value).__name__} has no place in a document")
    body = ",\n".join(inner + item for item in items)
    return f"{opening}\n{body}\n{indent}{closing}"


def _fits_a_line(value: object) -> bool:
    if _is_scalar(value):
        return True
    if isinstance(value, Mapping):
        return len(value) <= _ENTRIES_ON_A_LINE and all(map(_is_scalar, value.values()))
    return isinstance(value, list | tuple) and all(map(_is_scalar, value))


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def parse(text: str, *, source: str) -> Any:
    """The document in `text`, or BaselineError with `source`, line and column."""
    try:
        document = json.loads(text, object_pairs_hook=_without_repeats)
        for place, number in _numbers(document, "$"):
            if not abs(number) <= _LARGEST:  # NaN compares false with everything
                shown = _cut(place, _MESSAGE_CHARACTERS)
                raise BaselineError(f"{source}: {shown} is not a finite number")
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        hint = "; it ends in the middle, so restore the file" if _is_cut(text, error) else ""
        raise BaselineError(f"{source}: {place}: not JSON: {error.msg}{hint}") from error
    except RecursionError as error:
        raise BaselineError(f"{source}: not a baseline: nested too deeply") from error
    except ValueError as error:
        raise BaselineError(f"{source}: not JSON: {error}") from error
    return document


def _is_cut(text: str, error: json.JSONDecodeError) -> bool:
    """Whether the text was fine as far as it goes: the error is within its last word."""
    ends_there = _BEGUN_WORD.fullmatch(text, error.pos) is not None
    return error.pos > 0 and (ends_there or error.msg.startswith("Unterminated"))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # The json module would silently keep the last one, a reviewer might read the first.
    document = dict(pairs)
    if len(document) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {_quoted(repeated)} is repeated in one object")
    return document


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{place}.{printable(key)}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{place}[{index}]")
    elif isinstance(value, int | float):
        yield place, value


def validate(document: Any, schema: Mapping[str, Any], *, source: str) -> None:
    """Raise BaselineError with the path of what the schema does not allow."""
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - 0.1 s, only to read a file
    from jsonschema.exceptions import best_match  # noqa: PLC0415 - 0.1 s, only to read a file

    errors = list(Draft202012Validator(schema).iter_errors(document))
    # Of another version of the format everything else may differ as well.
    version = (error for error in errors if list(error.absolute_path) == ["schema"])
    error = next(version, None) or best_match(errors)
    if error is None:
        return
    if list(error.absolute_path) == ["schema"] and error.validator == "const":
        version, newest = error.instance, error.validator_value
        if type(version) is int and version > newest:
            raise NewerFormatError(source, version=version, newest=newest)
    place = _cut(printable(_place(error.absolute_path)), _MESSAGE_CHARACTERS)
    if error.validator in {"required", "additionalProperties"}:
        # Only these two messages say more than the rule does: they name the key.
        raise BaselineError(
            f"{source}: {place}: {_cut(printable(error.message), _MESSAGE_CHARACTERS)}"
        )
    rule = _rule(str(error.validator), error.validator_value)
    raise BaselineError(f"{source}: {place}: {_quoted(error.instance)} {rule}")


def _rule(keyword: str, value: object) -> str:
    """What a schema keyword demands, in words that follow the value that broke it."""
    words = {
        "const": f"must be {_quoted(value)}",
        "enum": f"must be one of {_quoted(value)}",
        "type": f"must be of type {_quoted(value)}",
        "minimum": f"must be at least {value}",
        "maximum": f"must be at most {value}",
        "exclusiveMinimum": f"must be above {value}",
        "minItems": f"must have at least {value} items",
        "maxItems": f"must have at most {value} items",
        "minProperties": f"must have at least {value} entries",
        "maxProperties": f"must have at most {value} entries",
        "minLength": f"must have at least {value} characters",
        "maxLength": f"must have at most {value} characters",
        "pattern": f"must match {value}",
        "not": "must not contain control characters",
    }
    return words.get(keyword, f"breaks the rule {keyword}")


def _place(path: Sequence[str | int]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "$" + "".join(parts)


def _quoted(value: object) -> str:
    return _cut(json.dumps(value), _QUOTED_CHARACTERS)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def printable(text: str) -> str:
    """`text` with what a terminal would obey, or could not show, written as escapes."""
    return text if text.isprintable() else ascii(text)[1:-1]
