"""What `measure` and `serve` are to a test, and the objects that they return."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar, overload

import pytest

from pytest_moeperf import gate, judge
from pytest_moeperf.cellresult import STARTUP
from pytest_moeperf.errors import MoeperfError, UsageError
from pytest_moeperf.outcomes import FAILING, failing
from pytest_moeperf.records import CellResult, Outcome, Verdict
from pytest_moeperf.report import verdict as verdict_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_moeperf.measured import MeasuredCell
    from pytest_moeperf.memory import Architecture
    from pytest_moeperf.metrics import SLO
    from pytest_moeperf.namedserver import NamedServer
    from pytest_moeperf.records import ServerSpec
    from pytest_moeperf.run import Run
    from pytest_moeperf.server import RunningServer, Shutdown
    from pytest_moeperf.session import MoeperfSession
    from pytest_moeperf.workload import Workload

__all__ = ["Cell", "Measure", "Ratio", "Serve", "at_work", "conclude"]

_Rung = TypeVar("_Rung")

UNJUDGED = frozenset({Outcome.INCOMPARABLE, Outcome.ENV_DRIFT})
"""Outcomes that skip the test, visibly: nothing on this machine can judge it."""


@contextmanager
def at_work(item: pytest.Item, session: MoeperfSession) -> Iterator[Run]:
    """Show progress meanwhile, and an error of ours as the test's failure in its own words."""
    try:
        with session.during(item):
            yield session.run
    except MoeperfError as error:
        raise pytest.fail.Exception(_failure(error, item), pytrace=False) from None


def _failure(error: MoeperfError, item: pytest.Item) -> str:
    """Its text; a server that did not start fails many tests, and shows its log in the first."""
    head, _, evidence = str(error).partition("\n")
    if item.get_closest_marker("xfail") is not None:
        # Nobody may see it.
        return str(error)
    if error.failed_test in (None, item.nodeid) or not evidence:
        error.failed_test = item.nodeid
        return str(error)
    return f"{head}\n  command and log: see {error.failed_test}"


@dataclass(frozen=True, slots=True)
class Measure:
    """Measures for one test; equal cells are measured once a run."""

    item: pytest.Item
    session: MoeperfSession

    def __call__(self, server: NamedServer, workload: Workload, *, slo: SLO | None = None) -> Cell:
        """Play `workload` on `server` until steady and then for the repeats that count."""
        with at_work(self.item, self.session) as run:
            return Cell(self, run.measure(self._spec(server, workload.slug), workload, slo=slo))

    @overload
    def together(
        self, first: NamedServer, second: NamedServer, workloads: Workload
    ) -> tuple[Cell, Cell]: ...

    @overload
    def together(
        self, first: NamedServer, second: NamedServer, workloads: Mapping[_Rung, Workload]
    ) -> tuple[dict[_Rung, Cell], dict[_Rung, Cell]]: ...

    def together(
        self,
        first: NamedServer,
        second: NamedServer,
        workloads: Workload | Mapping[_Rung, Workload],
    ) -> tuple[Cell, Cell] | tuple[dict[_Rung, Cell], dict[_Rung, Cell]]:
        """Play the same on two servers, for their ratio; several workloads are all played at once.

        On a CPU in turns, so that a ratio is paired in time. On GPUs on one server after the
        other, so that each starts once, and cells that were measured before count.
        """
        if not isinstance(workloads, Mapping):
            one, other = self._in_turns([(first, workloads), (second, workloads)])
            return one, other
        pairs = [(server, load) for load in workloads.values() for server in (first, second)]
        cells = self._in_turns(pairs)
        ones = dict(zip(workloads, cells[::2], strict=True))
        return ones, dict(zip(workloads, cells[1::2], strict=True))

    def ladder(
        self, server: NamedServer, workloads: Mapping[_Rung, Workload], *, slo: SLO | None = None
    ) -> dict[_Rung, Cell]:
        """Play several workloads on one server in turns; the cells have the keys of `workloads`."""
        cells = self._in_turns([(server, workload) for workload in workloads.values()], slo=slo)
        return dict(zip(workloads, cells, strict=True))

    def _in_turns(
        self, pairs: Sequence[tuple[NamedServer, Workload]], *, slo: SLO | None = None
    ) -> list[Cell]:
        with at_work(self.item, self.session) as run:
            measured = run.measure_in_turns(
                [(self._spec(server, workload.slug), workload) for server, workload in pairs],
                slo=slo,
            )
        return [Cell(self, each) for each in measured]

    def startup(self, server: NamedServer) -> Cell:
        """How long the server took to become ready, as a cell of one value a start."""
        with at_work(self.item, self.session) as run:
            return Cell(self, run.measure_startup(self._spec(server, STARTUP)))

    def _spec(self, server: NamedServer, slug: str) -> ServerSpec:
        """The server's spec, where the baseline of its cell can be read: a play may take long."""
        spec = self.session.spec(server)
        self.session.expect_readable(self.item, spec, slug)
        return spec

    def architecture(self, server: NamedServer) -> Architecture:
        """The server's model, as numbers for a prediction."""
        with at_work(self.item, self.session):
            return self.session.architecture(server)


@dataclass(frozen=True, slots=True)
class Serve:
    """Gives a test the running server itself."""

    item: pytest.Item
    session: MoeperfSession

    def __call__(self, server: NamedServer) -> RunningServer:
        """Start the server, or take the one that runs."""
        with at_work(self.item, self.session) as run:
            return run.serve(self.session.spec(server))

    def stop(self, server: NamedServer) -> Shutdown:
        """End the server and tell how it went; the next test that needs it starts a new one."""
        with at_work(self.item, self.session) as run:
            return run.stop(self.session.spec(server))

    def expect(
        self,
        server: NamedServer,
        figure: str,
        measured: float | None,
        *,
        equal_to: float,
        within: float = 0.0,
        why: str,
    ) -> None:
        """Fail unless a figure that the server tells is the calculated one.

        `within` is how far it may be off, relative to it: 0.005 for 0.5 %.
        """
        values = () if measured is None else (measured,)
        self._conclude(
            server,
            gate.judge_prediction(figure, values, predicted=equal_to, factor=1 + within, why=why),
        )

    def at_most(
        self, server: NamedServer, figure: str, measured: float | None, limit: float, *, why: str
    ) -> None:
        """Fail where a figure that the server tells is above `limit`, or missing."""
        values = () if measured is None else (measured,)
        self._conclude(server, judge.judge_bounds(figure, values, upper=limit, why=why))

    def expect_recorded(self, server: NamedServer, name: str) -> None:
        """Fail where the server tells something else of itself than the starts in its baselines.

        `name` is an entry of its environment, such as `moe_backend`. Skip the test where neither
        tells it.
        """
        with at_work(self.item, self.session) as run:
            cell = run.as_started(self.session.spec(server))
            now = None if cell.start is None else cell.start.environment.get(name)
            recording = self.session.options.baseline == "record"
            stored = () if recording else self.session.references.recorded_words(cell, name)
        verdict = judge.same_words(name, now, stored, recording=recording)
        conclude(self.item, self.session, self.session.add(self.item, cell, verdict))

    def _conclude(self, server: NamedServer, verdict: Verdict) -> None:
        with at_work(self.item, self.session) as run:
            cell = run.as_started(self.session.spec(server))
        conclude(self.item, self.session, self.session.add(self.item, cell, verdict))


@dataclass(frozen=True, slots=True)
class Cell:
    """A measured cell that can be held against its baseline or against another cell."""

    measure: Measure
    measured: MeasuredCell

    def value(self, metric: str) -> float | None:
        """The median of the repeats, in the metric's unit; None where it was not measurable."""
        self.require_valid()
        values = [value for value in self.measured.result.values(metric) if value is not None]
        return statistics.median(values) if values else None

    def gate(self, *metrics: str) -> None:
        """Fail the test when one of `metrics` is worse than the stored baseline allows.

        Skip it, naming the field that differs, where no stored baseline can judge this machine.
        """
        item, session = self.measure.item, self.measure.session
        with at_work(item, session):
            if not metrics:
                raise UsageError("gate() judges nothing: name a metric, such as 'tpot_ms.p50'")
            later = partial(_settle, item, session)
            result = session.judge(item, self.measured, metrics, later=later)
        if result is not None:
            conclude(item, session, result)

    def discarded(self, *codes: str) -> int:
        """How many repeats were measured again because of one of these findings.

        Those of further starts, which other tests may have asked for, are none of them.
        """
        self.require_valid()
        played = self.measured.measurement
        return sum(
            any(finding.code in codes for finding in sample.findings)
            for sample in (played.discarded if played is not None else ())
        )

    def require_valid(self) -> None:
        """Fail the test where too many repeats were invalid, with what was found in them."""
        if self.measured.result.invalid:
            item, session = self.measure.item, self.measure.session
            conclude(item, session, session.judge_invalid(item, self.measured))

    def over(self, other: Cell, metric: str) -> Ratio:
        """This cell's `metric` divided by the other's, turn by turn."""
        for cell in (self, other):
            cell.require_valid()
        return Ratio(self.measure, self, other, metric)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure relative to another one of the same run; any machine can judge it."""

    measure: Measure
    above: Cell
    below: Cell
    metric: str

    @property
    def name(self) -> str:
        """The metric, and what is under the fraction line."""
        above, below = self.above.measured.result, self.below.measured.result
        parts = ((each.workload, each.server, each.engine) for each in (above, below))
        differing = [theirs for ours, theirs in zip(*parts, strict=True) if ours != theirs]
        return f"{self.metric} ÷ {differing[0] if differing else below.server}"

    @property
    def values(self) -> tuple[float, ...]:
        """The ratio in every turn in which both cells had a valid repeat."""
        return gate.paired_ratios(
            self.above.measured.by_turn(self.metric), self.below.measured.by_turn(self.metric)
        )

    def within(self, lower: float | None, upper: float | None, *, why: str) -> None:
        """Fail the test unless the median ratio lies between the bounds."""
        self._conclude(
            lambda: judge.judge_bounds(self.name, self.values, lower=lower, upper=upper, why=why)
        )

    def expect(self, predicted: float, *, factor: float, why: str) -> None:
        """Fail the test unless the median is within `predicted` divided and times `factor`."""
        self._conclude(
            lambda: gate.judge_prediction(
                self.name, self.values, predicted=predicted, factor=factor, why=why
            )
        )

    def _conclude(self, judged: Callable[[], Verdict]) -> None:
        """Measure on once before a bad verdict is final; where that fails, it says why."""
        item, session = self.measure.item, self.measure.session
        cells = (self.above, self.below)
        confirmed, evidence = False, ""
        with at_work(item, session) as run:
            verdict = judged()
            try:
                confirmed = verdict.outcome in FAILING and run.confirm(
                    [each.measured for each in cells]
                )
            except MoeperfError as error:
                failed, _, evidence = str(error).partition("\n")
                clause = f"not confirmed, because measuring it again failed: {failed}"
                verdict = replace(verdict, reason=f"{verdict.reason}; {clause}")
        if confirmed:
            for cell in cells:
                cell.require_valid()
            verdict = judged()
        # Without a verdict of its own, but its samples are a half of what was judged.
        session.add(item, self.below.measured.result)
        result = session.add(item, self.above.measured.result, verdict)
        conclude(item, session, result, shown=evidence.splitlines())


def _settle(item: pytest.Item, session: MoeperfSession) -> None:
    """Judge to the end what the test is in doubt about, and raise what the verdicts say."""
    with at_work(item, session):
        results = session.settle(item)
    # A failure is not hidden behind a skip or a regression that is known.
    fails = _failing(item, session)
    for result in sorted(results, key=lambda each: not _outcomes(each) & fails):
        conclude(item, session, result)


def conclude(
    item: pytest.Item, session: MoeperfSession, result: CellResult, *, shown: Sequence[str] = ()
) -> None:
    """Raise what the verdicts say, in the call phase of the test.

    `shown` are lines that a failure has below its verdicts.
    """
    outcomes = _outcomes(result)
    if outcomes & _failing(item, session):
        text = verdict_text.failure(result, shown=shown)
        pytest.fail(text, pytrace=False)
    if outcomes & UNJUDGED:
        # The test's own line in the summary, not the line of this module.
        raise pytest.skip.Exception(verdict_text.one_line(result), _use_item_location=True)
    if Outcome.EXPECTED in outcomes:
        pytest.xfail(verdict_text.one_line(result))


def _failing(item: pytest.Item, session: MoeperfSession) -> frozenset[Outcome]:
    """Outcomes that fail this test."""
    known = {Outcome.EXPECTED} if item.config.getoption("runxfail") else set()
    return failing(release=session.options.release) | known


def _outcomes(result: CellResult) -> set[Outcome]:
    return {verdict.outcome for verdict in result.verdicts}
