"""Keeps secrets out of everything that is shown or stored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Redactor", "is_secret_name"]

_SECRET_NAME = re.compile(
    # At the end of a word: neither MAX_NUM_BATCHED_TOKENS nor VLLM_TOKENIZER is a secret.
    r"TOKEN$|APIKEY|SECRET|PASSW|CREDENTIAL|(?:^|[_-])(?:AUTH|\w*KEY|TOKEN)(?:[_-]|$)",
    re.IGNORECASE,
)
_MASK = "***"
_MIN_SECRET_LENGTH = 6
"""Shorter values, such as `0` or `true`, would mask half of a log."""


def is_secret_name(name: str) -> bool:
    """Whether a variable of that name holds something that must not be shown."""
    return _SECRET_NAME.search(name) is not None


@dataclass(frozen=True, slots=True)
class Redactor:
    """Replaces known secret values by `***`."""

    secrets: tuple[str, ...] = ()

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Redactor:
        """Know the secrets of an environment by the names of its variables."""
        values = {value for name, value in environment.items() if is_secret_name(name)}
        long_enough = (value for value in values if len(value) >= _MIN_SECRET_LENGTH)
        # The longest first: one secret may be the beginning of another.
        return cls(tuple(sorted(long_enough, key=len, reverse=True)))

    def text(self, text: str) -> str:
        """Return `text` without the secrets."""
        for secret in self.secrets:
            text = text.replace(secret, _MASK)
        return text

    def lines(self, lines: Iterable[str]) -> tuple[str, ...]:
        """Return every line without the secrets."""
        return tuple(self.text(line) for line in lines)
