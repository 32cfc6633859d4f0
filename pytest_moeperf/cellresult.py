"""Results of cells: what was measured, under its name, with all that it depends on."""

from __future__ import annotations

import datetime as dt
import os
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_moeperf import gate
from pytest_moeperf.engines import engine_named
from pytest_moeperf.identity import cell_name, fingerprint, remote_host, workload_identity
from pytest_moeperf.probe import CopySpeed
from pytest_moeperf.records import CellResult, Fingerprint, Sample, StartRecord

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pytest_moeperf.measurement import CellMeasurement
    from pytest_moeperf.records import EngineInstall, ServerSpec
    from pytest_moeperf.resolver import Resolver
    from pytest_moeperf.server import RunningServer
    from pytest_moeperf.timeline import Timeline

__all__ = ["AS_STARTED", "SESSION_VARIABLE", "STARTUP", "CellResults"]

AS_STARTED = "as-started"
"""The workload of figures that a server tells of itself."""

STARTUP = "startup"
"""The workload of a cell without load: only the start itself is measured."""

SESSION_VARIABLE = "MOEPERF_SESSION"
"""Names the session of runs that follow each other and count as one, as those of a refresh."""


class CellResults:
    """Makes the results of one session."""

    def __init__(
        self, resolver: Resolver, timeline: Timeline, *, ignored_findings: Collection[str]
    ) -> None:
        self._resolver = resolver
        self._timeline = timeline
        self._ignored_findings = ignored_findings
        self._session_id = os.environ.get(SESSION_VARIABLE) or uuid.uuid4().hex[:12]
        self._copy_speed = CopySpeed()

    def of_start(self, spec: ServerSpec, server: RunningServer) -> CellResult:
        """The start of the server as a cell of one repeat."""
        sample = Sample(seed=0, values={"startup_s": server.startup_s})
        identity = workload_identity(STARTUP, None)
        return self._cell(spec, server, STARTUP, identity=identity, samples=[sample])

    def as_started(self, spec: ServerSpec, server: RunningServer) -> CellResult:
        """A cell without samples, for figures that the server itself tells."""
        return self._cell(spec, server, AS_STARTED, identity=AS_STARTED)

    def of_load(self, spec: ServerSpec, played: CellMeasurement) -> CellResult:
        """What a load was measured with."""
        identity = workload_identity(played.workload.slug, played.rules.slo, played.data.drawn_from)
        return replace(
            self._cell(
                *(spec, played.server, played.workload.slug),
                identity=identity,
                samples=played.samples,
                warmup=played.warm_up_samples,
            ),
            workload=played.workload.label,
            discarded=tuple(played.discarded),
            warmup_plays=len(played.warm_up_samples),
            warmup_reason=played.warmup_reason,
            invalid=played.exhausted,
        )

    def _cell(
        self,
        spec: ServerSpec,
        server: RunningServer,
        slug: str,
        *,
        identity: str,
        samples: Sequence[Sample] = (),
        warmup: Sequence[Sample] = (),
    ) -> CellResult:
        install = server.install
        start = StartRecord(
            start_id=server.start_id,
            session_id=self._session_id,
            recorded_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            startup_s=server.startup_s,
            engine_version=install.version,
            environment=self._environment(server),
            repeats=tuple(samples),
            warmup=tuple(warmup),
        )
        return CellResult(
            cell=cell_name(self._resolver.model(spec).name, spec, slug),
            test="",
            server=spec.label,
            engine=install.label,
            workload=slug,
            fingerprint=self._fingerprint(spec, install, identity),
            start=start,
        )

    def _environment(self, server: RunningServer) -> dict[str, str]:
        environment = dict(server.environment)
        # How fast the CPU beside a GPU copies says nothing of the GPU.
        if remote_host(server.install) is None and not self._resolver.hardware.gpus:
            with self._timeline.during("measuring"):
                speed = self._copy_speed.gib_per_s(server.await_rest)
            environment |= {gate.SPEED: f"{speed:.2f}"} if speed is not None else {}
        if ignored := self._ignored_findings:
            environment["ignored_findings"] = ", ".join(sorted(ignored))
        return environment

    def _fingerprint(self, spec: ServerSpec, install: EngineInstall, workload: str) -> Fingerprint:
        model = self._resolver.model(spec)
        return fingerprint(
            self._resolver.hardware,
            install,
            spec,
            gpus=engine_named(install.engine).gpus_needed(spec),
            model=f"{model.name}@{model.digest}",
            workload=workload,
        )
