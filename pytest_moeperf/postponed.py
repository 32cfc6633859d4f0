"""Lets the verdict of a test wait until the other tests of its server have measured.

The further start that one of them takes then serves all that wait. Such a test runs once, as any
other. Its reports are held back, and its item comes again behind the last test of its server, to
be judged to the end.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest
from _pytest.runner import check_interactive_exception, runtestprotocol

from pytest_moeperf.markers import may_gate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_moeperf.opencell import OpenCell

__all__ = ["GROUP", "Postponed"]

GROUP = pytest.StashKey[object]()
"""What tests have in common of which one server serves all."""


@dataclass(slots=True)
class _Waiting:
    settle: Callable[[], None]
    """Judges the test to the end and raises what that says."""
    funcargs: dict[str, object]
    """What the test was called with, for other plugins that look when its report is made."""
    open_cells: list[OpenCell] = field(default_factory=list)
    reports: list[pytest.TestReport] = field(default_factory=list)
    """Those of its call and of its teardown."""


class _AskedLate:
    """The flag that makes `runtestprotocol` tell a report: asked after each phase, not before."""

    def __init__(self, answer: Callable[[], bool]) -> None:
        self._answer = answer

    def __bool__(self) -> bool:
        return self._answer()


class Postponed:
    """The tests that wait, each with the cells that it is in doubt about."""

    def __init__(self) -> None:
        self._waiting: dict[pytest.Item, _Waiting] = {}
        self._calling: pytest.Item | None = None
        """The test whose function runs."""
        self._able: pytest.Function | None = None
        """The test that runs, if its verdict may wait."""
        self._rerun: bool | None = None

    @property
    def tests(self) -> tuple[pytest.Item, ...]:
        """Those that were not judged to the end yet."""
        return tuple(self._waiting)

    def open_cells(self, item: pytest.Item) -> tuple[OpenCell, ...]:
        """What the test is in doubt about; empty where it does not wait."""
        return tuple(self._waiting[item].open_cells) if item in self._waiting else ()

    @contextmanager
    def calling(self, item: pytest.Item) -> Iterator[None]:
        """Only meanwhile a verdict may wait: not in a fixture, whose report says something else."""
        self._calling = item
        try:
            yield
        finally:
            self._calling = None

    def is_called(self, item: pytest.Item) -> bool:
        """Whether the test's function runs; a report that is made meanwhile is of a subtest."""
        return item is self._calling

    def claim(self, item: pytest.Item, open_cell: OpenCell, settle: Callable[[], None]) -> bool:
        """Let the cell wait, and the test for `settle`; False where it must be judged now."""
        test = self._able
        if test is None or item is not test or not self.is_called(item):
            return False
        self._waiting.setdefault(test, _Waiting(settle, test.funcargs)).open_cells.append(open_cell)
        return True

    def end(self, item: pytest.Item, open_cell: OpenCell) -> None:
        """The cell waits no more; the test does, until it is told."""
        self._waiting[item].open_cells.remove(open_cell)

    def drop(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Let the test wait no more, and give its reports back."""
        waiting = self._waiting.pop(item, None)
        return [] if waiting is None else waiting.reports

    def leave(self, item: pytest.Item, why: str) -> list[pytest.TestReport]:
        """Let the test wait no more, and give its reports back as those of a skipped one.

        Empty where a Ctrl-C ended its function.
        """
        reports = self.drop(item)
        path, line, _ = item.location
        for report in reports:
            report.user_properties = item.user_properties
            if report.when == "call":
                report.outcome, report.longrepr = "skipped", (path, (line or 0) + 1, why)
        return reports

    def run(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run a test or, when it comes again, settle it; None where pytest is to run it."""
        if not (self._waiting or may_gate(item)) or self._may_be_rerun(item.session):
            return None
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        if item in self._waiting:
            self._conclude(item)
        else:
            self._play(item, nextitem)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _may_be_rerun(self, session: pytest.Session) -> bool:
        """Whether pytest-rerunfailures may run a test, which it does in a way of its own."""
        if self._rerun is None:
            config = session.config
            asked = [config.getoption(name, None) for name in ("reruns", "force_reruns")]
            if config.pluginmanager.hasplugin("rerunfailures"):
                asked.append(config.getini("reruns"))
            flaky = (item.get_closest_marker("flaky") for item in session.items)
            self._rerun = any(asked) or any(flaky)
        return self._rerun

    def _play(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """Run the test, and tell its reports as pytest does until it has to wait."""
        items = item.session.items
        if nextitem in self._waiting:
            # That one needs nothing set up: what is kept must suit the next one that does.
            later = items[items.index(item) + 1 :]
            nextitem = next((each for each in later if each not in self._waiting), None)
        if isinstance(item, pytest.Function) and may_gate(item) and GROUP in item.stash:
            self._able = item
        log = _AskedLate(lambda: item not in self._waiting)
        try:
            reports = runtestprotocol(item, log=cast("bool", log), nextitem=nextitem)
        finally:
            self._able = None
        if item in self._waiting:
            self._waiting[item].reports = [each for each in reports if each.when != "setup"]
            group = item.stash[GROUP]
            last = max(n for n, each in enumerate(items) if each.stash.get(GROUP, None) == group)
            # pytest has not come to it yet, and takes the next one from this list.
            items.insert(last + 1, item)

    def _conclude(self, item: pytest.Item) -> None:
        """Judge the test to the end and tell its reports."""
        waiting, hook = self._waiting[item], item.ihook
        call = pytest.CallInfo.from_call(
            waiting.settle, when="call", reraise=(pytest.exit.Exception, KeyboardInterrupt)
        )
        played, *others = self.drop(item)
        with _called_with(item, waiting.funcargs):
            report: pytest.TestReport = hook.pytest_runtest_makereport(item=item, call=call)
            report.start, report.duration = played.start, played.duration + report.duration
            report.sections = played.sections
            hook.pytest_runtest_logreport(report=report)
            if check_interactive_exception(call, report):
                hook.pytest_exception_interact(node=item, call=call, report=report)
            for other in others:
                other.user_properties = report.user_properties
                hook.pytest_runtest_logreport(report=other)
            if item.session.shouldfail or item.session.shouldstop:
                _tear_all_down(item)


@contextmanager
def _called_with(item: pytest.Item, funcargs: dict[str, object]) -> Iterator[None]:
    """Give the test back what pytest has taken from it, and plugins look for."""
    vars(item)["funcargs"] = funcargs
    try:
        yield
    finally:
        vars(item)["funcargs"] = None


def _tear_all_down(item: pytest.Item) -> None:
    """Tell of an error in what was kept set up for the tests to come, of which there are none."""
    state = item.session._setupstate  # noqa: SLF001 - pytest has no other way
    call = pytest.CallInfo.from_call(lambda: state.teardown_exact(None), when="teardown")
    if call.excinfo is not None:
        report = item.ihook.pytest_runtest_makereport(item=item, call=call)
        item.ihook.pytest_runtest_logreport(report=report)
