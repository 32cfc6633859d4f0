"""What lives as long as a pytest session: the run, the cells of all tests, the reports."""

from __future__ import annotations

import datetime as dt
import re
import time
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest

from pytest_moeperf import contribution as contributed
from pytest_moeperf.contribution import CELLS
from pytest_moeperf.errors import MoeperfError, UsageError
from pytest_moeperf.markers import measures
from pytest_moeperf.namedserver import required_server
from pytest_moeperf.nextsteps import next_steps, short
from pytest_moeperf.options import Options
from pytest_moeperf.postponed import Postponed
from pytest_moeperf.progress import Progress
from pytest_moeperf.report.junit import properties
from pytest_moeperf.report.model import UNMEASURED
from pytest_moeperf.report.verdict import GOOD
from pytest_moeperf.timeline import TimeSpent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from pytest_moeperf.counting import CountedCell, Counter
    from pytest_moeperf.hardware import Hardware
    from pytest_moeperf.measured import MeasuredCell
    from pytest_moeperf.memory import Architecture
    from pytest_moeperf.namedserver import NamedServer
    from pytest_moeperf.outputs import SoFar
    from pytest_moeperf.records import CellResult, RoutingRecord, ServerSpec, Verdict
    from pytest_moeperf.references import References
    from pytest_moeperf.report.model import SessionReport
    from pytest_moeperf.run import Run
    from pytest_moeperf.sampling import Sampler

__all__ = ["SESSION", "MoeperfSession"]

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
        from pytest_moeperf.run import Run, Settings  # noqa: PLC0415 - the same

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
            return self.run.hardware
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None

    def engine_ids(self) -> dict[str, str]:
        """Every `--engine` as given, with the shortest text that tells it from the others."""
        from pytest_moeperf.enginespec import parse_engine  # noqa: PLC0415 - only for suites

        try:
            names = {text: parse_engine(text).engine for text in self.options.engines}
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None
        return names if len(set(names.values())) == len(names) else {text: text for text in names}

    def header(self) -> str:
        """The line of `pytest`'s header; it must not look for hardware, which takes time."""
        options = self.options
        against = f"--against {options.against}, " if options.against is not None else ""
        return (
            f"moeperf: --gpu {options.gpu}, --engine {', '.join(options.engines)}, "
            f"{against}--baseline {options.baseline}"
        )

    @property
    def _is_worker(self) -> bool:
        return hasattr(self.config, "workerinput")

    def plan(self, tests: int) -> None:
        """Let so many tests that may gate share the chance of a false alarm."""
        self._gates = GATES_A_TEST * tests

    def prepare(self, session: pytest.Session) -> None:
        """Before the first test: find the hardware and the engines, so that misuse ends here.

        An xdist worker cannot end the session with a usage error; there the tests fail instead.
        """
        measuring = any(measures(item) for item in session.items)
        if not measuring or session.config.option.collectonly or self._is_worker:
            return
        from pytest_moeperf.files import ensure_writable  # noqa: PLC0415 - only for suites

        try:
            self.run.hardware  # noqa: B018 - resolves
            ensure_writable(self.options.out_dir)
            if self.options.baseline == "record":
                ensure_writable(self.options.baseline_dir)
            with self.progress.during(None):
                engines = [self.run.engine(text) for text in self.options.engines]
                old = [self.run.engine(text) for text in (self.options.against,) if text]
        except MoeperfError as error:
            raise pytest.UsageError(str(error)) from None
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and self.config.option.verbose >= 0:
            labels = ", ".join(engine.label for engine in engines)
            labels += "".join(f" against {engine.label}" for engine in old)
            here = f"{self.run.hardware.name} ({self.run.hardware.label})"
            reporter.write_line(f"moeperf: {here}, {labels}")

    def spec(self, server: NamedServer) -> ServerSpec:
        """The server's spec with engine and weights resolved."""
        named = required_server(server)
        return self.run.resolved(named.spec, named.engine)

    def architecture(self, server: NamedServer) -> Architecture:
        """The server's model, as numbers."""
        return self.run.model(required_server(server).spec).architecture

    def during(self, item: pytest.Item) -> AbstractContextManager[None]:
        """Show progress of `item` while something takes long."""
        return self.progress.during(item.nodeid)

    def judge(self, item: pytest.Item, cell: MeasuredCell, metrics: Sequence[str]) -> CellResult:
        """Judge a cell, or record it, and keep the result for the reports."""
        result = replace(cell.result, cell=f"{_suite(item)}/{cell.result.cell}")
        if result.invalid:
            from pytest_moeperf import judge  # noqa: PLC0415 - only for suites

            result = replace(result, verdicts=(judge.invalid(result.discarded),))
        elif self.options.baseline == "record":
            recorded = self.references.record(result, cell.spec, metrics)
            result = replace(result, verdicts=recorded)
        else:
            result = self.sampler.judge(
                cell, _suite(item), metrics, test=item.nodeid, wait=lambda: self._postpone(item)
            )
        return self._keep(item, result)

    def _postpone(self, item: pytest.Item) -> bool:
        """Have a test in doubt run again after the others of its server, if that can be."""
        claimed = self.postponed.claim(item)
        if claimed:
            self.progress("in doubt: it runs again after the other tests of its server")
        return claimed

    def run_test(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run a test that may have to wait; None where pytest is to run it."""
        # An xdist worker is told by number which test comes next.
        if self._is_worker or self.options.baseline == "record":
            return None
        return self.postponed.run(item, nextitem)

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
        result, kept = replace(cell, test=item.nodeid), item.stash.get(CELLS, ())
        item.user_properties.extend(properties(result))
        if cell.routing is not None:
            kept, result = contributed.joined(kept, result)
        if any(verdict.outcome not in GOOD for verdict in result.verdicts):
            steps = next_steps(item, result, self.options, self.references)
            result = replace(result, next_steps=tuple(steps))
        item.stash[CELLS] = (*kept, result)
        return result

    @property
    def _typed(self) -> tuple[str, ...]:
        options = self.options
        mode = () if options.baseline == "check" else ("--baseline", options.baseline)
        return (*options.as_typed, *mode, *options.limits)

    def attach_cells(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Let a report carry the test's cells, or why there are none, to where reports are made."""
        cells = item.stash.get(CELLS, ()) if report.when == "call" else ()
        if report.skipped and hasattr(report, "wasxfail"):
            cells = tuple(contributed.expected(cell, report.wasxfail) for cell in cells)
        unmeasured = report.failed and not cells and measures(item)
        if not cells and not unmeasured:
            return
        said = contributed.first_line(report.longrepr)
        note = f"{UNMEASURED}{item.nodeid}: {said}" if unmeasured else None
        # xdist carries plain values only.
        report.moeperf = contributed.packed(self._contribution(cells, note))  # type: ignore[attr-defined] # takes extra attributes

    def _contribution(
        self, cells: Sequence[CellResult], note: str | None
    ) -> contributed.Contribution:
        return contributed.Contribution(
            cells=tuple(cells),
            engines=self.run.engines,
            hardware=self.run.hardware.name,
            machine=(("hardware", self.run.hardware.label),),
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
        for item, cells in self.postponed.left.items():
            note = f"left in doubt: {item.nodeid}: the session ended before it ran again"
            self.collected.add(self._contribution(cells, note))
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
            told = {
                "notes": self.collected.notes,
                "failed": self.collected.failed,
                "spent": [asdict(self.collected.spent)] * self.collected.processes,
            }
            self.config.workeroutput["moeperf"] = told  # type: ignore[attr-defined] # of xdist

    def hear_worker(self, workeroutput: dict[str, Any]) -> None:
        """Take over what an xdist worker wrote, or could not write, at its end."""
        told = workeroutput.get("moeperf", {"notes": [], "failed": False, "spent": []})
        self.collected.notes.extend(told["notes"])
        for spent in told["spent"]:
            self.collected.add_time(TimeSpent(**spent))
        self.collected.failed |= told["failed"]

    def _write_reports(self) -> None:
        from pytest_moeperf.outputs import write_all  # noqa: PLC0415 - only with results

        for name, path in write_all(self._report(), self.options.out_dir):
            self.collected.notes.append(f"{name}: {short(path)}")

    def _report(self) -> SessionReport:
        from pytest_moeperf.report.model import SessionReport  # noqa: PLC0415

        return SessionReport(
            tool_version=_tool_version(),
            started_at=self._started_at.isoformat(timespec="seconds"),
            duration_s=time.monotonic() - self._began_s,
            spent=self.collected.spent,
            processes=self.collected.processes,
            hardware=self.collected.hardware,
            engines=tuple(self.collected.engines),
            machine=self.collected.machine,
            cells=tuple(self.collected.cells),
            notes=tuple(self.collected.notes),
            options=self._typed,
            finished=self._finished,
        )

    def summarize(self, reporter: pytest.TerminalReporter) -> None:
        """Write the tables, in colour only where pytest itself does; with -q only the counts."""
        if self.collected.cells or self.collected.notes:
            reporter.ensure_newline()
        if self.collected.cells and self.config.option.verbose < 0:
            outcomes = self._report().outcomes
            reporter.write_line(", ".join(f"{count} {name}" for name, count in outcomes.items()))
        if self.collected.cells and self.config.option.verbose >= 0:
            from pytest_moeperf.report import terminal  # noqa: PLC0415 - rich

            reporter.section("moeperf", bold=True)
            text = terminal.render(
                self._report(),
                width=self.config.get_terminal_writer().fullwidth,
                color=reporter.hasmarkup,
                maps=self.config.option.verbose > 0,
            )
            reporter.write(text)
        for note in self.collected.notes:
            reporter.write_line(note)

    def close(self) -> None:
        """End what a session that never finished left running."""
        if "run" in vars(self):
            self.run.close()


SESSION = pytest.StashKey[MoeperfSession]()


def _suite(item: pytest.Item) -> str:
    stem = item.path.stem.removeprefix("test_")
    return re.sub(r"[^A-Za-z0-9._=+-]", "-", f"{item.path.parent.name}.{stem}")


def _tool_version() -> str:
    from pytest_moeperf import __version__  # noqa: PLC0415 - the package imports its own version

    return __version__
