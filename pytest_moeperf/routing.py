"""What `experts` is to a test, and the counts that it returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from pytest_moeperf.balance.record import prefill_of
from pytest_moeperf.cell import at_work, conclude
from pytest_moeperf.errors import UncountableError, UsageError
from pytest_moeperf.judge import evenness, routing
from pytest_moeperf.report import heatmap
from pytest_moeperf.routecheck import check_routes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_moeperf.balance import ExpertCounts, ExpertPlacement, RoutingCounts
    from pytest_moeperf.counting import CountedCell
    from pytest_moeperf.memory import Architecture
    from pytest_moeperf.namedserver import NamedServer
    from pytest_moeperf.records import RoutingRecord, Verdict
    from pytest_moeperf.session import MoeperfSession
    from pytest_moeperf.workload import Workload

__all__ = ["Experts", "Routing"]

SHOWN_LAYERS = 8
"""Of a failure; the others are more even."""
SHOWN_COLUMNS = 96


@dataclass(frozen=True, slots=True)
class Experts:
    """Counts experts for one test; equal workloads on equal servers are counted once a run."""

    item: pytest.Item
    session: MoeperfSession

    def architecture(self, server: NamedServer) -> Architecture:
        """The server's model, as numbers: its layers with experts, experts a layer and a token."""
        with at_work(self.item, self.session):
            return self.session.architecture(server)

    def __call__(self, server: NamedServer, *workloads: Workload) -> Routing:
        """Count which experts the tokens of `workloads` take, together, on a second server.

        The server that is timed is another one: to count costs time.
        """
        with at_work(self.item, self.session):
            if not workloads:
                raise UsageError("experts() counts nothing: name a workload after the server")
            try:
                counted = self.session.counter.count(self.session.spec(server), workloads)
            except UncountableError as error:
                raise pytest.skip.Exception(str(error), _use_item_location=True) from None
            self.session.add(self.item, counted.result)
        return Routing(self, counted, counted.counts)


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts the tokens took, to be judged in the report or by assertions of your own."""

    experts: Experts
    counted: CountedCell
    counts: RoutingCounts
    """Of all requests, or of those that this is about."""
    part: str = ""
    """Which of them these are, where they are not all."""

    @property
    def name(self) -> str:
        """What the requests are; of prompts from a file, the file."""
        load = self.counted.result.workload.rpartition(", prompts from ")[2]
        return f"{self.part} of {load}" if self.part else load

    @property
    def prefill(self) -> ExpertCounts:
        """Of the prompts."""
        return self.counts.prefill

    @property
    def decode(self) -> ExpertCounts | None:
        """Of the generated tokens; None where no request generated more than one."""
        return self.counts.decode

    @property
    def total(self) -> ExpertCounts:
        """Of both."""
        return self.counts.total

    def halves(self) -> tuple[Routing, Routing]:
        """The requests in turns, as two loads of one kind."""
        requests = self.counts.requests
        with at_work(self.experts.item, self.experts.session):
            if len(requests) < 2:  # noqa: PLR2004 - a half each
                raise UsageError("one request has no halves: send at least two")
        parts = [replace(self.counts, requests=requests[start::2]) for start in (0, 1)]
        first, second = (
            replace(self, counts=part, part=f"the {name} half")
            for part, name in zip(parts, ("first", "second"), strict=True)
        )
        return first, second

    def at_most(
        self, measure: str, limit: float, *, why: str, placement: ExpertPlacement | None = None
    ) -> None:
        """Fail where a measure of the worst layer is above `limit` beyond doubt.

        With a `placement` the loads are those of its ranks. Skip the test for random weights.
        """
        self._judge_balance(
            measure,
            lambda: evenness.measure(
                measure, self.counts.by_request, at_most=limit, placement=placement, why=why
            ),
        )

    def at_least(
        self, measure: str, limit: float, *, why: str, placement: ExpertPlacement | None = None
    ) -> None:
        """Fail where a measure of the worst layer, or `balancedness`, is below `limit`."""
        self._judge_balance(
            measure,
            lambda: evenness.measure(
                measure, self.counts.by_request, at_least=limit, placement=placement, why=why
            ),
        )

    def no_collapse(self) -> None:
        """Fail where a router gives most of its tokens to very few experts."""
        self._judge_balance("collapsed_layers", lambda: evenness.collapse(self.total))

    def no_dead_experts(self) -> None:
        """Fail where an expert gets no token."""
        self._judge_balance("dead_experts", lambda: evenness.dead(self.total))

    def agrees_with(self, other: Routing, *, at_least: float, why: str) -> None:
        """Fail unless the experts that are hot in one load are hot in the other, 1 for all."""
        self._judge_pair(other, at_least=at_least, why=why)

    def differs_from(self, other: Routing, *, at_most: float, why: str) -> None:
        """Fail where two loads have the same hot experts."""
        self._judge_pair(other, at_most=at_most, why=why)

    def as_recorded(self) -> None:
        """Fail where the prompts take other experts than those stored for these weights."""
        item, session = self.experts.item, self.experts.session
        with at_work(item, session):
            stored: RoutingRecord | None = None
            if self.counted.model.dummy:
                verdict = routing.made_up(self.counted.model.name)
            else:
                verdict, stored = session.judge_routing(item, self.counted)
            result = session.add(item, self.counted.result, verdict)
        shown: Mapping[str, ExpertCounts] = {}
        if stored is not None and routing.comparable(self.prefill, before := prefill_of(stored)):
            both = routing.moved_layers(self.prefill, before, SHOWN_LAYERS)
            shown = dict(zip(("now", "as recorded"), both, strict=True))
        conclude(item, session, result, shown=_maps(shown))

    def as_computed(self) -> None:
        """Fail where a forward pass in PyTorch takes other experts than the engine told.

        For small models, whose weights fit main memory in 32 bits, and prompts of token ids.
        """
        item, session, counted = self.experts.item, self.experts.session, self.counted
        with at_work(item, session) as run:
            engine = counted.spec.engine
            if counted.model.dummy or engine is None or engine.python is None:
                verdict = routing.made_up(counted.model.name)
            else:
                run.announce(f"{counted.model.name}: {self.name}", "computing its experts")
                with run.timeline.during("measuring"):
                    check = check_routes(self.counts.requests, counted.model, python=engine.python)
                verdict = routing.as_computed(check)
            result = session.add(item, counted.result, verdict)
        conclude(item, session, result)

    def _judge_pair(
        self,
        other: Routing,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        why: str,
    ) -> None:
        self._judge_balance(
            evenness.HOT_EXPERTS,
            lambda: evenness.hot_experts(
                self.total,
                other.total,
                at_least=at_least,
                at_most=at_most,
                compared_with=other.name,
                why=why,
            ),
            {self.name: self.total, other.name: other.total},
        )

    def _judge_balance(
        self,
        metric: str,
        judged: Callable[[], Verdict],
        loads: Mapping[str, ExpertCounts] | None = None,
    ) -> None:
        item, session = self.experts.item, self.experts.session
        with at_work(item, session):
            if self.counted.model.trained:
                verdict = judged()
            else:
                verdict = evenness.untrained(metric, self.counted.model.name)
            result = session.add(item, self.counted.result, verdict)
        worst = {
            name: evenness.worst_layers(counts, SHOWN_LAYERS)
            for name, counts in (loads or {"": self.total}).items()
        }
        conclude(item, session, result, shown=_maps(worst))


def _maps(loads: Mapping[str, ExpertCounts]) -> tuple[str, ...]:
    """A heat map of each load, below its name; what the signs mean below the last."""
    lines: list[str] = []
    for number, (name, counts) in enumerate(loads.items(), start=1):
        drawn = heatmap.heat_map(counts, width=SHOWN_COLUMNS, legend=number == len(loads))
        lines += [*([f"{name}:"] if name else []), *heatmap.plain(drawn)]
    return tuple(lines)
