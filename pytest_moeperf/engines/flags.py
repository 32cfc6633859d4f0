"""Command-line flags of an engine: what is typed, what a version's sources declare, what fits."""

from __future__ import annotations

import ast
import difflib
import re
from typing import TYPE_CHECKING

from pytest_moeperf.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["added_arguments", "check_flags", "flag_names", "int_flag"]

FLAG_FILE = "--config"
"""Names a file of further flags, for either engine."""


def flag_names(words: Iterable[str]) -> list[str]:
    """The flags among command-line words, without values and with dashes for underscores.

    >>> flag_names(["--moe_backend", "triton", "-cc.mode=NONE", "--watermark=-1"])
    ['--moe-backend', '-cc', '--watermark']
    """
    flags = [word for word in words if re.match(r"--?[A-Za-z]", word)]
    return [re.split(r"[=.]", flag, maxsplit=1)[0].replace("_", "-") for flag in flags]


def check_flags(
    words: Iterable[str],
    *,
    known: frozenset[str] | None,
    reserved: Mapping[str, str],
    label: str,
    see: str,
    negatable: bool = False,
) -> None:
    """Raise `UsageError` for the first flag that `label` lacks, that is `reserved` or hides others.

    `reserved` maps a flag to what to use in its place; `see` is where the engine lists its flags;
    `negatable`: each has a `--no-` counterpart.
    """
    for flag in flag_names(words):
        if flag == FLAG_FILE:
            raise UsageError(
                f"engine flag {flag}: what its file sets is neither checked nor recorded; "
                f"put its entries into ServerSpec(flags=…)"
            )
        plain = flag.replace("--no-", "--", 1) if negatable else flag
        if instead := reserved.get(flag, reserved.get(plain)):
            raise UsageError(f"engine flag {flag}: set by the plugin; use {instead}")
        if known is None or flag in known or plain in known:
            continue
        near = difflib.get_close_matches(flag, sorted(known), n=3, cutoff=0.7)
        advice = f"did you mean {' or '.join(near)}?" if near else f"see {see}"
        raise UsageError(f"engine flag {flag}: {label} has no such flag; {advice}")


def int_flag(words: Sequence[str], *names: str) -> int:
    """The value of a flag that sets how many there are of something; 1 where it is not given."""
    for index, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("_", "-") in names:
            text = value or (words[index + 1] if index + 1 < len(words) else "")
            return int(text) if text.isdecimal() else 1
    return 1


def added_arguments(tree: ast.Module) -> Iterator[str]:
    """Flags of the `add_argument` calls in a source."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            words = (word.value for word in node.args if isinstance(word, ast.Constant))
            yield from (word for word in words if isinstance(word, str) and word.startswith("-"))
