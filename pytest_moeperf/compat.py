"""Says what differs between two sides of a comparison, and whether it forbids comparing them."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from pytest_moeperf.records import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Difference", "differences", "explain"]

_NAMES = {
    "hardware": "hardware class",
    "cpu_model": "CPU model",
    "cpu_cores": "number of usable CPU cores",
    "gpus": "list of GPUs",
    "engine": "engine",
    "model": "model",
    "server": "server configuration",
    "workload": "workload",
}

_LIKELY_CAUSES = (
    r"server_cores",
    r"gpu_.*|moe_.*",
    r".*(threads|THREADS).*",
    r"VLLM_.*|SGLANG_.*|OMP_.*|KMP_.*|CUDA_.*",
    r".*torch.*",
)
"""Entries that most often explain a change come first; all others follow by name."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which two fingerprints differ, with both contents as text."""

    field: str
    ours: str
    theirs: str

    def __str__(self) -> str:
        """The difference as a clause of a sentence about a baseline."""
        name = _NAMES[self.field]
        return f"the {name} is {self.ours} here and {self.theirs} in the baseline"


def differences(ours: Fingerprint, theirs: Fingerprint) -> tuple[Difference, ...]:
    """Every field that forbids comparing two sides, in the order of the fingerprint."""
    pairs = (
        (item.name, _text(getattr(ours, item.name)), _text(getattr(theirs, item.name)))
        for item in fields(Fingerprint)
    )
    return tuple(Difference(name, here, there) for name, here, there in pairs if here != there)


def explain(current: Mapping[str, str], *baselines: Mapping[str, str]) -> tuple[str, ...]:
    """Sentences about the environment that may explain a change, the likeliest cause first.

    `baselines` are the environments of the stored starts, oldest first. An entry that any of them
    shares with today explains nothing; of the others, the newest is quoted.
    """
    if not baselines:
        return ()
    names = {name for environment in (current, *baselines) for name in environment}
    return tuple(
        _sentence(name, current.get(name), baselines[-1].get(name))
        for name in sorted(names, key=_rank)
        if all(current.get(name) != environment.get(name) for environment in baselines)
    )


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "any" if value is None else str(value) or "not known"


def _rank(name: str) -> tuple[int, str]:
    matches: Iterable[int] = (
        rank for rank, pattern in enumerate(_LIKELY_CAUSES) if re.fullmatch(pattern, name)
    )
    return next(iter(matches), len(_LIKELY_CAUSES)), name


def _sentence(name: str, ours: str | None, theirs: str | None) -> str:
    if name == "server_cores" and ours is not None and theirs is not None:
        return (
            f"the server may run on {_cores(ours)} today; "
            f"it was {_cores(theirs)} when the baseline was recorded"
        )
    now = "is not set today" if ours is None else f"is {ours} today"
    before = "not set" if theirs is None else theirs
    return f"{name} {now}; it was {before} when the baseline was recorded"


def _cores(count: str) -> str:
    return f"{count} core" if count == "1" else f"{count} cores"
