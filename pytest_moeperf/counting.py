"""Counts which experts the tokens of a workload take, on a server of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from pytest_moeperf.balance import RoutingCounts
from pytest_moeperf.balance.record import record_of
from pytest_moeperf.datasets import load_data
from pytest_moeperf.engines import engine_named
from pytest_moeperf.errors import ServerHungError, UncountableError, UsageError
from pytest_moeperf.expertcount import count_experts
from pytest_moeperf.identity import cell_name, workload_identity
from pytest_moeperf.judge.evenness import MEASURES
from pytest_moeperf.records import Sample
from pytest_moeperf.workload import plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_moeperf.balance import RoutedRequest
    from pytest_moeperf.datasets import Data
    from pytest_moeperf.engines.base import CountingRoute
    from pytest_moeperf.models import ModelDirectory
    from pytest_moeperf.records import CellResult, RequestSpec, ServerSpec
    from pytest_moeperf.run import Run
    from pytest_moeperf.server import RunningServer
    from pytest_moeperf.workload import Workload

__all__ = ["CountedCell", "Counter", "counting"]

SEED = 0
"""Always the same prompts, those of a workload's first repeat, so that counts can be compared."""

OBSERVED = ("balancedness", "largest_deviation")
"""Figures that a counted cell stores and shows, judged or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedCell:
    """Workloads whose experts were counted."""

    result: CellResult
    spec: ServerSpec
    counts: RoutingCounts
    model: ModelDirectory


def counting(spec: ServerSpec) -> ServerSpec:
    """The server that the experts of `spec` are counted on."""
    return replace(spec, counts_experts=True)


class Counter:
    """Counts every workload once on every server."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._counted: dict[tuple[ServerSpec, Workload], tuple[RoutedRequest, ...]] = {}

    def count(self, spec: ServerSpec, workloads: Sequence[Workload]) -> CountedCell:
        """Play the workloads one after the other, and count them together.

        Raises UsageError for a model without experts, UncountableError for an engine that tells
        nothing of its own.
        """
        model = self._run.resolver.model(spec)
        if not model.architecture.experts:
            raise UsageError(f"{model.name} has no experts to count: name a mixture of experts")
        spec, route = counting(spec), self._route(spec, model)
        data = [_data(workload, model) for workload in workloads]
        requests = [
            request
            for workload, each in zip(workloads, data, strict=True)
            for request in self._requests(spec, workload, each, model)
        ]
        counts = RoutingCounts(
            requests=tuple(requests),
            experts=model.architecture.experts,
            layers=model.architecture.expert_layers,
        )
        identities = [
            workload_identity(workload.slug, None, each.drawn_from)
            for workload, each in zip(workloads, data, strict=True)
        ]
        slug = "+".join(workload.slug for workload in workloads)
        told = replace(
            self._run.as_started(spec),
            cell=cell_name(model.name, spec, slug),
            workload=_label([workload.label for workload in workloads]),
        )
        result = _with_counts(told, counts, route=route.name, identity="+".join(identities))
        return CountedCell(result=result, spec=spec, counts=counts, model=model)

    def _route(self, spec: ServerSpec, model: ModelDirectory) -> CountingRoute:
        """How the server will tell its routes; UncountableError where it has no way to."""
        if spec.engine is None:
            raise ValueError(f"{spec.label}: no engine to count with")
        try:
            return engine_named(spec.engine.engine).counting_route(
                counting(spec),
                version=spec.engine.version,
                on_gpu=bool(self._run.resolver.hardware.gpus),
                model_type=model.architecture.model_type,
            )
        except UsageError as error:
            raise UncountableError(str(error)) from None

    def _requests(
        self, spec: ServerSpec, workload: Workload, data: Data, model: ModelDirectory
    ) -> tuple[RoutedRequest, ...]:
        key = spec, workload
        if key not in self._counted:
            server = self._run.serve(spec)
            requests = plan(
                workload,
                seed=SEED,
                vocab_size=model.vocab_size,
                first_id=model.first_id,
                context_tokens=server.context_tokens,
                conversations=data.conversations,
                trace=data.trace,
            ).requests
            self._counted[key] = self._played(server, requests, model, workload)
        return self._counted[key]

    def _played(
        self,
        server: RunningServer,
        requests: Sequence[RequestSpec],
        model: ModelDirectory,
        workload: Workload,
    ) -> tuple[RoutedRequest, ...]:
        run, phase = self._run, f"{model.name}: {workload.label}"
        try:
            with run.timeline.during("measuring"):
                return count_experts(
                    server,
                    requests,
                    model.architecture,
                    stall_timeout_s=run.settings.rules.stall_timeout_s,
                    on_progress=lambda done, total: run.announce(
                        phase, f"counting experts, {done}/{total} requests"
                    ),
                )
        except ServerHungError:
            # For the next test a new one is started.
            server.stop()
            raise


def _label(labels: Sequence[str]) -> str:
    """What they have in common once, then what tells them apart."""
    words = [label.split() for label in labels]
    alike = sum(1 for _ in takewhile(lambda same: len(set(same)) == 1, zip(*words, strict=False)))
    apart = [" ".join(each[alike:]) for each in words]
    return " ".join([*words[0][:alike], " + ".join(filter(None, apart))]).strip()


def _data(workload: Workload, model: ModelDirectory) -> Data:
    return load_data(workload, tokenizer=model.path / "tokenizer.json")


def _with_counts(
    cell: CellResult, counts: RoutingCounts, *, route: str, identity: str
) -> CellResult:
    """The cell with its counts, comparable with those of every machine of its hardware class."""
    loads = counts.total.counts
    sample = Sample(seed=SEED, values={name: MEASURES[name].of(loads) for name in OBSERVED})
    return replace(
        cell,
        # Which experts a token takes is no matter of how fast the machine is.
        fingerprint=(
            None
            if cell.fingerprint is None
            else replace(
                cell.fingerprint, cpu_model=None, cpu_cores=None, gpus=(), workload=identity
            )
        ),
        start=None if cell.start is None else replace(cell.start, repeats=(sample,)),
        routing=record_of(counts, route=route),
    )
