"""Measures the starts of a new reference, as often as they are lacking, into a candidate folder.

The candidate outlives a call, so that an interrupted refresh goes on where it ended, and starts
may come from several days.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_moeperf.errors import MoeperfError, UsageError
from pytest_moeperf.revision import Shelf, read_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_moeperf.baseline import Baseline

__all__ = ["Candidate", "Plan"]

_PYTEST_FAILED = 1
_PYTEST_MISUSE = {
    2: "it was interrupted",
    3: "it has an internal error",
    4: "its arguments are wrong",
    5: "it found no test",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured, and how many starts of it are enough."""

    pytest_arguments: tuple[str, ...]
    """All but those that say where to record."""
    starts: int
    sessions: int
    """Calls that the starts are spread over, so that a drift between days is in them."""

    @property
    def starts_a_session(self) -> int:
        """How many starts one call measures at most."""
        return -(-self.starts // self.sessions)


class Candidate:
    """A folder of baselines in the making."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.baselines = folder / "baselines"

    def read(self) -> Mapping[str, Baseline]:
        """What was measured so far, by place; MoeperfError where a file is bad."""
        shelf = read_folder(self.baselines) if self.baselines.is_dir() else Shelf("")
        if shelf.unreadable:
            raise MoeperfError(f"{shelf.unreadable[0]}; begin anew with --restart")
        return shelf.baselines

    def discard(self) -> None:
        """Forget all that was measured."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def measure(self, plan: Plan, announce: Callable[[str], None]) -> int:
        """Run pytest until this call has measured its share; how many runs had failing tests.

        Raises:
            UsageError: pytest could not run the tests at all.
            MoeperfError: A run added nothing to a cell that lacks starts.
        """
        before = _counts(self.read())
        fewest = min(before.values(), default=0)
        target = min(plan.starts, fewest + plan.starts_a_session)
        session, failed = uuid.uuid4().hex[:12], 0
        while not before or min(before.values()) < target:
            lacking = [place for place, count in before.items() if count < target]
            announce(f"start {min(before.values(), default=0) + 1} of {plan.starts}")
            code = self._record(plan, session)
            failed += code == _PYTEST_FAILED
            after = _counts(self.read())
            stuck = [place for place in lacking if after[place] <= before[place]]
            if not after or (lacking and len(stuck) == len(lacking)):
                what = f" to {stuck[0]}" if stuck else ""
                raise MoeperfError(
                    f"the run above added no start{what} (pytest ended with {code}); what was "
                    f"measured stays in {self.folder}, and the same command goes on "
                    "from there; --restart begins anew"
                )
            before = after
        return failed

    def _record(self, plan: Plan, session: str) -> int:
        from pytest_moeperf.run import SESSION_VARIABLE  # noqa: PLC0415 - only to measure

        ran = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", *plan.pytest_arguments),
                *("--baseline", "record", "--baseline-dir", str(self.baselines)),
                *("--moeperf-out", str(self.folder / "out")),
            ],
            # One session for all runs of this call: they share a machine and an hour.
            env={**os.environ, SESSION_VARIABLE: session},
            check=False,
        )
        if ran.returncode in _PYTEST_MISUSE:
            raise UsageError(
                f"pytest could not measure: {_PYTEST_MISUSE[ran.returncode]} (exit code "
                f"{ran.returncode}, see above); what was measured stays in {self.folder}"
            )
        if ran.returncode not in {0, _PYTEST_FAILED}:
            raise MoeperfError(f"pytest ended with {ran.returncode}, see above")
        return ran.returncode


def _counts(baselines: Mapping[str, Baseline]) -> dict[str, int]:
    return {place: len(baseline.starts) for place, baseline in baselines.items()}
