"""Measures the starts of a new reference, as often as they are lacking, into a candidate folder.

The candidate outlives a call, so that an interrupted refresh goes on where it ended, and starts
may come from several days.
"""

from __future__ import annotations

import json
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
    from collections.abc import Callable, Mapping, Sequence
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
        self._out = folder / "out"
        self._places: dict[str, set[str]] = {}
        """Of the baselines that a test adds to, by its id."""
        self._invalid: set[str] = set()
        """Tests whose last play was not valid: their cells may have no baseline to lack a start."""

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
        self._learn()
        while not before or min(before.values()) < target:
            lacking = [place for place, count in before.items() if count < target]
            enough = self._tests_with_enough(lacking)
            some = (
                f", for {len(lacking)} of {len(before)} baselines"
                if len(lacking) < len(before)
                else ""
            )
            announce(f"start {min(before.values(), default=0) + 1} of {plan.starts}{some}")
            code = self._record(plan, session, enough)
            failed += code == _PYTEST_FAILED
            self._learn()
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

    def _tests_with_enough(self, lacking: Sequence[str]) -> tuple[str, ...]:
        """Tests that would add nothing; none where it is not known which test adds to a baseline.

        pytest deselects by how an id begins: after the bracket of its variants nothing follows.
        """
        if not lacking or not set(lacking) <= set().union(*self._places.values()):
            return ()
        return tuple(
            test
            for test, places in self._places.items()
            if test.endswith("]") and test not in self._invalid and places.isdisjoint(lacking)
        )

    def _learn(self) -> None:
        """Read from the last run where the cells of each test are stored."""
        try:
            document = json.loads((self._out / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        ran: dict[str, set[str]] = {}
        for cell in document["cells"]:
            key = cell["fingerprint"]
            place = f"{key['hardware']}/{key['engine']}/{cell['cell']}" if key else ""
            ran.setdefault(cell["test"], set()).add(place)
        self._places |= ran
        self._invalid -= ran.keys()
        self._invalid |= {cell["test"] for cell in document["cells"] if cell["invalid"]}

    def _record(self, plan: Plan, session: str, without: Sequence[str]) -> int:
        from pytest_moeperf.run import SESSION_VARIABLE  # noqa: PLC0415 - only to measure

        ran = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", *plan.pytest_arguments),
                *("--baseline", "record", "--baseline-dir", str(self.baselines)),
                *("--moeperf-out", str(self._out)),
                *(word for test in without for word in ("--deselect", test)),
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
