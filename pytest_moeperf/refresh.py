"""Measures the starts of a new reference, as often as they are lacking, into a candidate folder.

The candidate outlives a call, so that an interrupted refresh goes on where it ended, and starts
may come from several days.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_moeperf import files, store
from pytest_moeperf.document import parse, printable, validate
from pytest_moeperf.errors import BaselineError, MoeperfError, UsageError
from pytest_moeperf.gate import STARTUP
from pytest_moeperf.records import Outcome
from pytest_moeperf.revision import Shelf, read_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pytest_moeperf.baseline import Baseline

__all__ = ["Candidate", "Plan"]

_PYTEST_FAILED, _PYTEST_WITHOUT_TESTS = 1, 5
_PYTEST_MISUSE = {
    2: "it was interrupted",
    3: "it has an internal error",
    4: "its arguments are wrong",
    _PYTEST_WITHOUT_TESTS: "it found no test",
}

_FAILED = frozenset({Outcome.INVALID, Outcome.REGRESSED})
"""Outcomes that end a test, maybe before it records."""
_SAME_SESSION_S = 6 * 3600
"""An interrupted call that goes on so soon goes on with its session: no drift of days is in it."""
_SOME_PLACE = ""
"""Of what a test may record when it goes well; no baseline has enough starts there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured, and how many starts of it are enough."""

    pytest_arguments: tuple[str, ...]
    """All but those that say where to record."""
    typed: tuple[str, ...]
    """The command that asked for it, for who has to type it again."""
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
        self._begun = folder / "command.json"
        """What pytest is called with for it, and the session of a call that has not ended."""
        self._adds_to: dict[str, set[str]] = {}
        """Places of the baselines that a test adds to, by its id, as its last play showed."""

    def read(self) -> Mapping[str, Baseline]:
        """What was measured so far, by place; MoeperfError where a file is bad."""
        shelf = read_folder(self.baselines) if self.baselines.is_dir() else Shelf("")
        if shelf.unreadable:
            raise MoeperfError(
                f"{shelf.unreadable[0]}; or remove that file, and its cell is measured again; "
                "--restart begins anew"
            )
        return shelf.baselines

    @property
    def _holds_some(self) -> bool:
        """Not where a run was killed before it stored anything."""
        return any(self.baselines.rglob("*.json"))

    def discard(self) -> None:
        """Forget all that was measured."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def measure(self, plan: Plan, announce: Callable[[str], None]) -> int:
        """Run pytest until this call has measured its share; how many runs had failing tests.

        Raises:
            UsageError: pytest could not run the tests at all, or others were begun with.
            MoeperfError: A run added nothing to a cell that lacks starts.
        """
        before = _counts(self.read())
        session = self._begin(plan)
        fewest = min(before.values(), default=0)
        target = min(plan.starts, fewest + plan.starts_a_session)
        failed = 0
        while not before or min(before.values()) < target:
            self._learn(announce)
            lacking = [place for place, count in before.items() if count < target]
            enough = self._tests_with_enough(before, target)
            some = (
                f", for {len(lacking)} of {len(before)} baselines"
                if len(lacking) < len(before)
                else ""
            )
            announce(f"start {min(before.values(), default=0) + 1} of {plan.starts}{some}")
            self._note(plan, session=session)
            code = self._record(plan, session, enough)
            failed += code == _PYTEST_FAILED
            after = _counts(self.read())
            stuck = [place for place in lacking if after.get(place, 0) <= before[place]]
            if not after or (stuck and stuck == lacking):
                what = f" to {stuck[0]}" if stuck else ""
                raise MoeperfError(
                    f"the run above added no start{what} (pytest ended with {code}); what was "
                    f"measured stays in {self.folder}, and the same command goes on "
                    "from there; --restart begins anew"
                )
            before = after
        self._note(plan, session=None)
        return failed

    def _begin(self, plan: Plan) -> str:
        """Refuse a candidate of other tests or engines; the session to measure in."""
        try:
            noted = json.loads(self._begun.read_text(encoding="utf-8"))
            theirs, session = noted["pytest"], noted["session"]
            # Of a candidate that an earlier version began, what pytest was called with.
            typed = shlex.join(noted.get("typed") or ["pytest", *theirs])
            idle_s = time.time() - self._begun.stat().st_mtime
        except FileNotFoundError:
            return _new_session()
        except (OSError, ValueError, TypeError, KeyError):
            raise MoeperfError(
                f"{printable(str(self._begun))}: cannot be read, so it is not known what was "
                "measured; --restart begins anew"
            ) from None
        if theirs != [*plan.pytest_arguments] and self._holds_some:
            raise UsageError(
                f"{self.folder} holds what `{printable(typed)}` measured, and this command has "
                "other tests or options: type that one again, or --restart to forget it"
            )
        return session if session and idle_s < _SAME_SESSION_S else _new_session()

    def _note(self, plan: Plan, *, session: str | None) -> None:
        noted = {"pytest": plan.pytest_arguments, "typed": plan.typed, "session": session}
        files.write_text_atomic(self._begun, f"{json.dumps(noted)}\n")

    def _tests_with_enough(self, counts: Mapping[str, int], target: int) -> list[str]:
        """Tests that would add nothing; none where it is not known which test adds to a baseline.

        pytest deselects by how an id begins: after the bracket of its variants nothing follows,
        or hardly ever.
        """
        enough = {place for place, count in counts.items() if count >= target}
        if not counts or not counts.keys() - enough <= set().union(*self._adds_to.values()):
            return []
        needed = [test for test, places in self._adds_to.items() if not places <= enough]
        return [
            test
            for test in self._adds_to
            if test.endswith("]")
            and test.isprintable()
            and not any(each.startswith(test) for each in needed)
        ]

    def _learn(self, announce: Callable[[str], None]) -> None:
        """Read from the last run which test adds to which baselines.

        A file that cannot be read costs time alone: no test is left out for what it says.
        """
        path = self._out / "run.json"
        shown = printable(str(path))
        try:
            document = parse(path.read_text(encoding="utf-8"), source=shown)
            validate(document, store.schema("run-2"), source=shown)
        except FileNotFoundError:
            return
        except OSError as error:
            announce(f"{shown}: cannot be read: {error.strerror}; no test is left out for it")
        except UnicodeDecodeError:
            announce(f"{shown}: is not text; no test is left out for it")
        except BaselineError as error:
            announce(f"{error}; no test is left out for it")
        else:
            self._adds_to |= _adds_to(document)

    def _record(self, plan: Plan, session: str, without: Sequence[str]) -> int:
        from pytest_moeperf.cellresult import SESSION_VARIABLE  # noqa: PLC0415 - only to measure

        code = _pytest(
            [
                *plan.pytest_arguments,
                *("--baseline", "record", "--baseline-dir", str(self.baselines)),
                *("--moeperf-out", str(self._out)),
                *(f"--deselect={test}" for test in without),
            ],
            # One session for all runs of this call: they share a machine and an hour.
            {SESSION_VARIABLE: session},
        )
        if code == _PYTEST_WITHOUT_TESTS and without:
            return code  # Those that would add a start are not among its arguments.
        if code in _PYTEST_MISUSE:
            kept = f"; what was measured stays in {self.folder}" if self._holds_some else ""
            raise UsageError(
                f"pytest could not measure: {_PYTEST_MISUSE[code]} (exit code {code}, see above)"
                f"{kept}"
            )
        if code not in {0, _PYTEST_FAILED}:
            raise MoeperfError(f"pytest ended with {code}, see above")
        return code


def _pytest(arguments: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run pytest to its end; a Ctrl-C as well lets it stop its servers and store what it has."""
    command = [sys.executable, "-m", "pytest", *arguments]
    with subprocess.Popen(command, env={**os.environ, **variables}) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # A terminal has told pytest too.
            if sys.stdin is None or not sys.stdin.isatty():
                process.send_signal(signal.SIGINT)
            while process.poll() is None:
                with contextlib.suppress(KeyboardInterrupt):
                    process.wait()
            raise


def _new_session() -> str:
    return uuid.uuid4().hex[:12]


def _counts(baselines: Mapping[str, Baseline]) -> dict[str, int]:
    return {place: len(baseline.starts) for place, baseline in baselines.items()}


def _adds_to(document: Mapping[str, Any]) -> dict[str, set[str]]:
    """Of a run that recorded: by test, the places of the baselines that it adds to."""
    from pytest_moeperf.cellresult import AS_STARTED  # noqa: PLC0415 - only to measure

    found: dict[str, set[str]] = {}
    for cell in document["cells"]:
        places = found.setdefault(cell["test"], set())
        said = {(verdict["metric"], verdict["outcome"]) for verdict in cell["verdicts"]}
        outcomes = {outcome for _, outcome in said}
        if outcomes & _FAILED or (STARTUP, Outcome.INCOMPARABLE) in said:  # a cold start
            places.add(_SOME_PLACE)
        elif Outcome.RECORDED not in outcomes or cell["workload"] == AS_STARTED:
            continue  # Words that a server tells of itself are stored with its other cells.
        if key := cell["fingerprint"]:
            places.add(f"{key['hardware']}/{key['engine']}/{cell['cell']}")
    return found
