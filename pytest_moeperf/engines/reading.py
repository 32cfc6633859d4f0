"""Reads what every engine writes alike: start-up logs, Prometheus metrics, environments."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from pytest_moeperf.redaction import is_secret_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client.samples import Sample

__all__ = ["Facts", "first_facts", "last_error", "phase_of", "recorded", "samples", "whole_number"]

Facts = tuple[tuple[str, re.Pattern[str], Callable[..., Any]], ...]
"""Name of a fact, the pattern of a line that tells it, and what makes a value of its groups."""

CAUSE = re.compile(
    # Pydantic says what is wrong on the line after its exception.
    r"(?:^|[\s:])((?:[\w.]*(?:Error|Exception): |\w+\.py: error: |Value error, ).+?)"
    r"(?: \[type=.*)?$"
)


def first_facts(lines: Iterable[str], patterns: Facts) -> dict[str, Any]:
    """Each fact from the first line that tells it: with several workers all say the same."""
    found: dict[str, Any] = {}
    for line in lines:
        for name, pattern, convert in patterns:
            if name not in found and (match := pattern.search(line)):
                found[name] = convert(*match.groups())
    return found


def whole_number(digits: str) -> int:
    """`1,358,112` is 1358112."""
    return int(digits.replace(",", ""))


def phase_of(line: str, phases: Iterable[tuple[str, str]]) -> str | None:
    """The phase whose marker the line has."""
    return next((phase for marker, phase in phases if marker in line), None)


def last_error(lines: Sequence[str], *, reports: Sequence[str] = ()) -> str | None:
    """The last error of a log, without those lines that only `reports` another process's error."""
    own = (line for line in reversed(lines) if not any(report in line for report in reports))
    found = (CAUSE.search(line) for line in own)
    return next((match[1].strip() for match in found if match), None)


def recorded(
    environment: Mapping[str, str], *, prefixes: tuple[str, ...], hidden: Iterable[str]
) -> dict[str, str]:
    """The variables with one of the prefixes, sorted, less secrets and `hidden`."""
    constant = frozenset(hidden)
    return {
        name: value
        for name, value in sorted(environment.items())
        if name.startswith(prefixes) and name not in constant and not is_secret_name(name)
    }


def samples(metrics_text: str) -> Iterator[Sample]:
    """All samples of a Prometheus exposition."""
    for family in text_string_to_metric_families(metrics_text):
        yield from family.samples
