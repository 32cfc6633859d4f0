"""What lives as long as a pytest session: the run, the cells of all tests, the reports."""

from __future__ import annotations

import datetime as dt
import re
import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest

from pytest_moeperf import __version__
from pytest_moeperf import contribution as contributed
from pytest_moeperf.contribution import CELLS
from pytest_moeperf.errors import MoeperfError, UsageError
from pytest_moeperf.markers import measures
from pytest_moeperf.namedserver import required_server
from pytest_moeperf.nextsteps import next_steps, placed, short
from pytest_moeperf.options import Options
from pytest_moeperf.outcomes import GOOD
from pytest_moeperf.postponed import Postponed
from pytest_moeperf.progress import Progress
from pytest_moeperf.report.junit import properties
from pytest_moeperf.report.model import SessionReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from pytest_moeperf.counting import CountedCell, Counter
    from pytest_moeperf.hardware import Hardware
    from pytest_moeperf.measured import MeasuredCell
    from pytest_moeperf.memory import Architecture
    from pytest_moeperf.namedserver import NamedServer
    from pytest_moeperf.outputs import SoFar
    from pytest_moeperf.records import CellResult, RoutingRecord, ServerSpec, Verdict
    from pytest_moeperf.references import References
    from pytest_moeperf.run import Run
    from pytest_moeperf.sampling import Sampler

__all__ = ["SESSION", "MoeperfSession"]

LEFT_OPEN = "the session ended before its verdict"

GATES_A_TEST = 2
"""How many metrics a test is expected to judge; the chance of a false alarm is shared by all."""


class MoeperfSession:
    """Between pytest's hooks and the run."""

    def __init__(self, config: pytest.Config) -> None:
        self.options = Options.from_config(config)
        self.config = config
        self.progress = Progress(config)
        self.collected = contributed.Collected()
        self.postponed = Postponed()
        self._gates = 0
        self._finished = True
        self._started_at = dt.datetime.now(dt.UTC)
        self._began_s = time.monotonic()

    @cached_property
    def run(self) -> Run:
        """The run, made when the first test needs it."""
        from pytest_moeperf.measurement import Rules  # noqa: PLC0415 - keeps pytest's start fast
        from pytest_moeperf.run import Run, Settings  # noqa: PLC0415 - only for suites

        options = self.options
        return Run(
            Settings(
                gpu=options.gpu,
                rules=Rules(
                    repeats=options.repeats,
                    stall_timeout_s=options.stall_timeout_s,
                    ignored_findings=options.ignored_findings,
                    client_workers=options.client_workers,
                ),
                server_timeout_s=options.server_timeout_s,
                port=options.port,
                out_dir=options.out_dir,
                weights=options.weights,
            ),
            self.progress,
        )

    @cached_property
    def references(self) -> References:
        """The baselines."""
        from pytest_moeperf.references import References  # noqa: PLC0415 - keeps the start fast

        return References(self.options.baseline_dir, tool_version=_tool_version())

    @cached_property
    def _so_far(self) -> SoFar:
        from pytest_moeperf.outputs import SoFar  # noqa: PLC0415 - only with results

        return SoFar(self.options.out_dir)

    @cached_property
    def counter(self) -> Counter:
        """What counts experts."""
        from pytest_moeperf.counting import Counter  # noqa: PLC0415 - numpy, where it is needed

        return Counter(self.run)

    @cached_property
    def sampler(self) -> Sampler:
        """What judges, made when all tests are collected."""
        from pytest_moeperf.sampling import Limits, Sampler  # noqa: PLC0415 - the judge

        limits = Limits(
            max_starts=self.options.max_starts,
            max_minutes=self.options.max_minutes,
            against=self.options.against,
            release=self.options.release,
        )
        return Sampler(self.run, self.references, limits, gates=self._gates)

    @property
    def hardware(self) -> Hardware:
        """What is measured on; `pytest.UsageError` where the machine lacks it."""
        try:
            return self.run.resolver.hardware
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None

    @property
    def _is_worker(self) -> bool:
        return hasattr(self.config, "workerinput")

    def plan(self, tests: int) -> None:
        """Let so many tests that may gate share the chance of a false alarm."""
        self._gates = GATES_A_TEST * tests

    def spec(self, server: NamedServer) -> ServerSpec:
        """The server's spec with engine and weights resolved."""
        named = required_server(server)
        return self.run.resolver.spec(named.spec, named.engine)

    def architecture(self, server: NamedServer) -> Architecture:
        """The server's model, as numbers."""
        return self.run.resolver.model(required_server(server).spec).architecture

    def expect_readable(self, item: pytest.Item, spec: ServerSpec, slug: str) -> None:
        """Raise before a cell is measured what its baseline would raise after it."""
        from pytest_moeperf.identity import cell_name  # noqa: PLC0415 - only for suites

        if spec.engine is not None:
            cell = f"{_suite(item)}/{cell_name(self.run.resolver.model(spec).name, spec, slug)}"
            hardware, engine = self.run.resolver.hardware.name, spec.engine.engine
            self.references.expect_readable(cell, hardware=hardware, engine=engine)

    def during(self, item: pytest.Item) -> AbstractContextManager[None]:
        """Show progress of `item` while something takes long."""
        return self.progress.during(item.nodeid)

    def judge(
        self,
        item: pytest.Item,
        cell: MeasuredCell,
        metrics: Sequence[str],
        *,
        later: Callable[[], None],
    ) -> CellResult | None:
        """Judge a cell, or record it, and keep the result for the reports.

        None where the verdict has to wait: `later` is called when it need not any more.

        Raises:
            MoeperfError: A server failed under the cell's load.
        """
        if cell.result.invalid:
            return self.judge_invalid(item, cell)
        if self.options.baseline == "record":
            result = replace(cell.result, cell=f"{_suite(item)}/{cell.result.cell}")
            result = replace(result, verdicts=self.references.record(result, cell.spec, metrics))
        else:
            open_cell = self.sampler.begin(cell, _suite(item), metrics)
            if self.sampler.wants(open_cell) and self.postponed.claim(item, open_cell, later):
                self.sampler.wait(open_cell)
                self.progress("in doubt: judged after the other tests of its server")
                return None
            result = self.sampler.settle(open_cell)
        return self._keep(item, result)

    def judge_invalid(self, item: pytest.Item, cell: MeasuredCell) -> CellResult:
        """Say of a cell why it has no figures."""
        from pytest_moeperf import judge  # noqa: PLC0415 - only for suites

        name = f"{_suite(item)}/{cell.result.cell}"
        verdicts = (judge.invalid(cell.result.discarded),)
        return self._keep(item, replace(cell.result, cell=name, verdicts=verdicts))

    def settle(self, item: pytest.Item) -> list[CellResult]:
        """Judge to the end what the test is in doubt about.

        Raises:
            MoeperfError: A server failed; what was measured is kept.
        """
        results = []
        try:
            for open_cell in self.postponed.open_cells(item):
                results.append(self._keep(item, self.sampler.settle(open_cell)))
                self.postponed.end(item, open_cell)
        except MoeperfError:
            self._keep_open(item)
            raise
        return results

    def _keep_open(self, item: pytest.Item) -> None:
        """Judge no further what the test is in doubt about."""
        for open_cell in self.postponed.open_cells(item):
            self.sampler.drop(open_cell)
            self._keep(item, open_cell.result)
            self.postponed.end(item, open_cell)

    def run_test(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run a test whose verdict may have to wait; None where pytest is to run it."""
        # An xdist worker is told by number which test comes next.
        if self._is_worker or self.options.baseline == "record":
            return None
        told = self.postponed.run(item, nextitem)
        if item in self.postponed.tests:
            self._so_far.write(self._report())
        return told

    def before_report(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Let a test wait no more that has failed, or was skipped, by something else."""
        if call.when == "call" and call.excinfo and not self.postponed.is_called(item):
            self._keep_open(item)
            self.postponed.drop(item)

    def judge_routing(
        self, item: pytest.Item, counted: CountedCell
    ) -> tuple[Verdict, RoutingRecord | None]:
        """Hold counts against the stored ones, which are returned too; or record them."""
        cell = replace(counted.result, cell=f"{_suite(item)}/{counted.result.cell}")
        recording = self.options.baseline == "record"
        return self.references.judge_routing(cell, counted.spec, recording=recording)

    def add(self, item: pytest.Item, cell: CellResult, *verdicts: Verdict) -> CellResult:
        """Keep a cell with these verdicts for the reports; counts are kept once a test."""
        name = f"{_suite(item)}/{cell.cell}"
        return self._keep(item, replace(cell, cell=name, verdicts=verdicts))

    def _keep(self, item: pytest.Item, cell: CellResult) -> CellResult:
        result = placed(replace(cell, test=item.nodeid), self.references)
        kept = item.stash.get(CELLS, ())
        item.user_properties.extend(properties(result))
        if cell.routing is not None:
            kept, result = contributed.joined(kept, result)
        if any(verdict.outcome not in GOOD for verdict in result.verdicts):
            steps = next_steps(item, result, self.options, self.references)
            result = replace(result, next_steps=steps)
        item.stash[CELLS] = (*kept, result)
        return result

    def attach_cells(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Let a report carry the test's cells, or why there are none, to where reports are made."""
        if self.postponed.is_called(item) or item in self.postponed.tests:
            return  # Of a subtest, or of a test that waits: its last report carries them.
        measured = item.stash.get(CELLS, ())
        cells = measured if report.when == "call" else ()
        if report.skipped and hasattr(report, "wasxfail"):
            cells = tuple(contributed.expected(cell, report.wasxfail) for cell in cells)
        lost = report.failed and measures(item) and not measured
        if not cells and not lost:
            return
        said = f"{item.nodeid}: {contributed.first_line(report.longrepr)}" if lost else None
        # xdist carries plain values only.
        report.moeperf = contributed.packed(self._contribution(cells, unmeasured=said))  # type: ignore[attr-defined] # takes extra attributes

    def _leave_open(self, item: pytest.Item) -> None:
        """Report a test that the session comes to no more as skipped."""
        self._keep_open(item)
        self.collected.add(self._so_far_of(item))
        for report in self.postponed.leave(item, LEFT_OPEN):
            item.ihook.pytest_runtest_logreport(report=report)

    @property
    def _all(self) -> contributed.Collected:
        """What was collected, and what is known of the tests that still wait."""
        return self.collected.plus(map(self._so_far_of, self.postponed.tests))

    def _so_far_of(self, item: pytest.Item) -> contributed.Contribution:
        cells = (open_cell.result for open_cell in self.postponed.open_cells(item))
        return self._contribution(
            [*item.stash.get(CELLS, ()), *(replace(cell, test=item.nodeid) for cell in cells)],
            note=f"left open: {item.nodeid}: {LEFT_OPEN}",
        )

    def _contribution(
        self,
        cells: Sequence[CellResult],
        *,
        unmeasured: str | None = None,
        note: str | None = None,
    ) -> contributed.Contribution:
        return contributed.Contribution(
            cells=tuple(cells),
            engines=self.run.resolver.engines,
            hardware=self.run.resolver.hardware.name,
            machine=(("hardware", self.run.resolver.hardware.label),),
            unmeasured=unmeasured,
            note=note,
        )

    def collect_cells(self, report: pytest.TestReport) -> None:
        """Take the cells out of a report, on whichever process shows them."""
        text = report.__dict__.pop("moeperf", None) if not self._is_worker else None
        if text is not None:
            self.collected.add(contributed.unpacked(text))
            self._so_far.write(self._report())

    def finish(self, session: pytest.Session, exitstatus: int) -> None:
        """End the servers, then write what is to be written; a failure fails the session."""
        ended = exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
        self._finished = ended and not (session.shouldfail or session.shouldstop)
        for item in self.postponed.tests:
            self._leave_open(item)
            self._finished = False
            if exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
        try:
            if "run" in vars(self):
                self.run.close()
                self.collected.add_time(self.run.time_spent)
            if "references" in vars(self):
                self.collected.notes.extend(change.label for change in self.references.flush())
            if self.collected.hardware:
                self._write_reports()
        except MoeperfError as error:
            self.collected.notes.append(f"error: {error}")
            self.collected.failed = True
        if self.collected.failed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self._is_worker:
            self.config.workeroutput["moeperf"] = self.collected.told  # type: ignore[attr-defined] # of xdist

    def hear_worker(self, workeroutput: dict[str, Any]) -> None:
        """Take over what an xdist worker wrote, or could not write, at its end."""
        if told := workeroutput.get("moeperf"):
            self.collected.hear(told)

    def _write_reports(self) -> None:
        from pytest_moeperf.outputs import write_all  # noqa: PLC0415 - only with results

        for name, path in write_all(self._report(), self.options.out_dir):
            self.collected.notes.append(f"{name}: {short(path)}")

    def _report(self) -> SessionReport:
        collected = self._all
        return SessionReport(
            tool_version=_tool_version(),
            started_at=self._started_at.isoformat(timespec="seconds"),
            duration_s=time.monotonic() - self._began_s,
            spent=collected.spent,
            processes=collected.processes,
            hardware=collected.hardware,
            engines=tuple(collected.engines),
            machine=collected.machine,
            cells=tuple(collected.cells),
            unmeasured=tuple(collected.unmeasured),
            notes=tuple(collected.notes),
            options=self.options.all_as_typed,
            release=self.options.release,
            finished=self._finished,
        )

    def summarize(self, reporter: pytest.TerminalReporter) -> None:
        """Write the tables and the notes where pytest writes its own."""
        if self.collected.cells or self.collected.notes:
            from pytest_moeperf.outputs import summarize  # noqa: PLC0415 - only with results

            summarize(reporter, self._report(), verbosity=self.config.option.verbose)

    def close(self) -> None:
        """End what a session that never finished left running."""
        if "run" in vars(self):
            self.run.close()


SESSION = pytest.StashKey[MoeperfSession]()


def _suite(item: pytest.Item) -> str:
    stem = item.path.stem.removeprefix("test_")
    return re.sub(r"[^A-Za-z0-9._=+-]", "-", f"{item.path.parent.name}.{stem}")


def _tool_version() -> str:
    return __version__
