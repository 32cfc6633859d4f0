"""What a reader of a failure needs next: where a baseline was looked for, and what to type."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.records import NextStep, Outcome

if TYPE_CHECKING:
    import pytest

    from pytest_moeperf.options import Options
    from pytest_moeperf.records import CellResult
    from pytest_moeperf.references import References

__all__ = ["next_steps", "placed", "short"]


def next_steps(
    item: pytest.Item, result: CellResult, options: Options, references: References
) -> tuple[NextStep, ...]:
    """Each as it is typed where pytest was called."""
    test = _from_here(item)
    outcomes = {verdict.outcome for verdict in result.verdicts}
    if Outcome.NO_BASELINE in outcomes:
        return (NextStep(shlex.join(["pytest", test, *options.as_typed, "--baseline", "record"])),)
    measured = result.fingerprint is not None
    if Outcome.INCOMPARABLE in outcomes and measured and references.is_of_another(result):
        # What was measured elsewhere takes no further start of this machine.
        return (NextStep(_refresh(test, options), "store figures of this machine in its place"),)
    again = ["pytest", test, *options.all_as_typed]
    steps = [NextStep(shlex.join(again), "measure again")]
    by_baseline = any(
        verdict.outcome is Outcome.REGRESSED and not verdict.paired for verdict in result.verdicts
    )
    if by_baseline and measured:
        old = references.old_engine(result)
        if old is not None and result.routing is not None:
            other = shlex.join(["pytest", test, "--engine", old])
            steps.append(NextStep(other, "is it the engine or the weights?"))
        elif old is not None and options.against is None:
            both = shlex.join([*again, "--against", old])
            steps.append(NextStep(both, "is it the engine or the machine?"))
        path = references.path(result)
        if path.exists():
            show = shlex.join(["moeperf", "baseline", "show", short(path)])
            steps.append(NextStep(show, "what is expected"))
    return tuple(steps)


def _refresh(test: str, options: Options) -> str:
    words, folder = list(options.as_typed), []
    if "--baseline-dir" in words:
        at = words.index("--baseline-dir")
        folder, words[at : at + 2] = words[at : at + 2], []
    typed = [f"--pytest-args={shlex.join(words)}"] if words else []
    reason = ["--reason", "figures of this machine"]
    return shlex.join(["moeperf", "baseline", "refresh", test, *typed, *folder, *reason])


def placed(result: CellResult, references: References) -> CellResult:
    """The cell; where nothing is stored for it, its verdicts say what was looked for."""
    if all(verdict.outcome is not Outcome.NO_BASELINE for verdict in result.verdicts):
        return result
    path = references.looked_for(result)
    if path.is_file():
        return result  # What it lacks, or that it expired, is in the reason.
    what = "nothing is stored at" if path.suffix == ".json" else "looked below"
    verdicts = (
        replace(verdict, reason=f"{verdict.reason}; {what} {short(path)}")
        if verdict.outcome is Outcome.NO_BASELINE
        else verdict
        for verdict in result.verdicts
    )
    return replace(result, verdicts=tuple(verdicts))


def _from_here(item: pytest.Item) -> str:
    """The test's name; pytest's own is relative to its rootdir."""
    path = os.path.relpath(item.path, item.config.invocation_params.dir)
    _, separator, name = item.nodeid.partition("::")
    return f"{path}{separator}{name}"


def short(path: Path) -> str:
    """Relative to where the user is, if it is below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
