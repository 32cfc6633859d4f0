"""Starts a server from its spec and waits until it answers."""

from __future__ import annotations

import itertools
import os
import shlex
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf import probe
from pytest_moeperf.endpoint import Endpoint
from pytest_moeperf.engines import EngineFacts, Launch, engine_named
from pytest_moeperf.errors import ServerStartError, StorageError, UsageError
from pytest_moeperf.features import features
from pytest_moeperf.gate import COLD, ENGINE_CACHES
from pytest_moeperf.process import GuardedProcess
from pytest_moeperf.redaction import Redactor
from pytest_moeperf.server import RunningServer, ServerLog
from pytest_moeperf.telemetry import compute_pids

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_moeperf.engines import CountingRoute, Engine
    from pytest_moeperf.features import Features
    from pytest_moeperf.hardware import Gpu, Hardware
    from pytest_moeperf.models import ModelDirectory
    from pytest_moeperf.records import ServerSpec

__all__ = ["ENGINE_PROBE_PATH", "start_server"]

HOST = "127.0.0.1"
POLL_S = 0.1
ENGINE_PROBE_PATH = Path(__file__).with_name("engine_probe")
"""Holds `moeperf_probe`; goes on the module path of an engine's interpreter."""
LOG_NAMES = itertools.count(1)

Progress = Callable[[str], None]
"""Gets what is being done, in plain words."""


def start_server(
    spec: ServerSpec,
    model: ModelDirectory,
    hardware: Hardware,
    *,
    log_dir: Path,
    timeout_s: float = 600.0,
    port: int | None = None,
    gpus: tuple[Gpu, ...] = (),
    held: tuple[int, ...] = (),
    on_progress: Progress | None = None,
) -> RunningServer:
    """Start a server for `spec` on `model` and wait until it is ready.

    Args:
        spec: With an engine that has an interpreter.
        model: What it loads.
        hardware: What it may use.
        log_dir: Where its log file goes.
        timeout_s: Patience with the start.
        port: None takes a free one.
        gpus: The GPUs that are its own; none: it runs on the CPU.
        held: Descriptors of locks that last as long as anything of the server does.
        on_progress: Is called several times a second.

    Raises:
        UsageError: A flag that this engine version lacks, a port that is taken, or experts that it
            cannot count.
        ServerStartError: It ended, or was not ready in time; with the end of its log.
        StorageError: No log file can be written.
    """
    if spec.engine is None or spec.engine.python is None:
        raise ValueError(f"{spec.label}: no interpreter to start it with")
    engine = engine_named(spec.engine.engine)
    found = features(spec.engine.python, engine.name)
    engine.check_flags(spec, found.flags, label=spec.engine.label)
    route = _counting_route(spec, engine, found, model, on_gpu=bool(gpus))
    chosen_port = _free_port() if port is None else _check_port(port)
    log_path = _new_log(log_dir, spec)
    uuids = tuple(gpu.uuid for gpu in gpus)
    launch = Launch(
        model_path=model.path,
        served_name=model.name,
        host=HOST,
        port=chosen_port,
        context_tokens=spec.max_model_len or model.context_tokens,
        scratch=Path(tempfile.mkdtemp(prefix="moeperf-")),
        core_ids=hardware.core_ids,
        gpu_ids=tuple(str(gpu.index) for gpu in gpus),
        counting=route,
        probe_path=ENGINE_PROBE_PATH,
    )
    env = engine.env(spec, launch, _inherited(on_gpu=bool(gpus)))
    command = [str(spec.engine.python), *engine.argv(spec, launch)]
    redactor = Redactor.of(env)
    start = _Start(
        spec=spec,
        engine=engine,
        launch=launch,
        command=redactor.text(shlex.join(command)),
        log=ServerLog(log_path, redactor),
        timeout_s=timeout_s,
        on_progress=on_progress or _no_progress,
        began=time.monotonic(),
    )
    process = GuardedProcess(command, env=env, log=log_path, scratch=launch.scratch, held=held)
    try:
        startup_s = start.wait(process)
        process.note_shared_memory()
        facts = engine.parse_facts(start.log.lines())
    except BaseException:
        # Ctrl-C too: nothing may stay behind.
        process.kill()
        raise
    return RunningServer(
        spec=spec,
        engine=engine,
        url=start.url,
        model=model.name,
        install=replace(spec.engine, version=spec.engine.version or facts.version),
        context_tokens=launch.context_tokens,
        process=process,
        log=start.log,
        command=start.command,
        startup_s=startup_s,
        facts=facts,
        counting=route,
        environment=_environment(engine, env, facts, found) | _gpu_environment(hardware, gpus),
        gpu_ids=uuids,
        gpu_pids=compute_pids(uuids) if uuids else frozenset(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """One attempt, as it is waited for and reported."""

    spec: ServerSpec
    engine: Engine
    launch: Launch
    command: str
    log: ServerLog
    timeout_s: float
    on_progress: Progress
    began: float

    @property
    def url(self) -> str:
        return f"http://{self.launch.host}:{self.launch.port}"

    def wait(self, process: GuardedProcess) -> float:
        """Return the seconds until the server was ready."""
        phase = "loading the engine"
        read = 0
        while True:
            elapsed_s = time.monotonic() - self.began
            if process.ended:
                raise self._error("the engine ended before it was ready", process.exit_code)
            if self._is_ready():
                return time.monotonic() - self.began
            if elapsed_s > self.timeout_s:
                raise self._error(
                    f"not ready after {self.timeout_s:g} s ({phase}); it was stopped "
                    "(--server-timeout gives it longer)"
                )
            until = self.log.mark()
            for line in self.log.lines(since=read):
                phase = self.engine.phase(line) or phase
            read = until
            self.on_progress(phase)
            time.sleep(POLL_S)

    def _is_ready(self) -> bool:
        try:
            return Endpoint(self.url).get(self.engine.ready_path, timeout_s=2.0).ok
        except OSError:
            return False

    def _error(self, what: str, exit_code: int | None = None) -> ServerStartError:
        cause = self.engine.cause(self.log.lines())
        return ServerStartError(
            f"{self.spec.label}: {what}{f': {cause}' if cause else ''}",
            command=self.command,
            exit_code=exit_code,
            elapsed_s=time.monotonic() - self.began,
            log_tail=self.log.tail(),
            log_path=str(self.log.path),
        )


def _inherited(*, on_gpu: bool) -> dict[str, str]:
    # Else CUDA counts the fastest GPU first, and the driver does not.
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if on_gpu else {}
    return {**os.environ, **order}


def _counting_route(
    spec: ServerSpec, engine: Engine, found: Features, model: ModelDirectory, *, on_gpu: bool
) -> CountingRoute | None:
    """How the server will count experts; None where it is not to."""
    if not spec.counts_experts or spec.engine is None:
        return None
    sizes = model.architecture
    if not sizes.experts:
        raise UsageError(f"{spec.label}: has no experts to count; choose a mixture of experts")
    route = engine.counting_route(
        spec, version=spec.engine.version, on_gpu=on_gpu, model_type=sizes.model_type
    )
    counting = replace(spec, flags=route.flags)
    engine.check_flags(counting, found.flags, label=spec.engine.label)
    return route


def _environment(
    engine: Engine, env: Mapping[str, str], facts: EngineFacts, found: Features
) -> dict[str, str]:
    """What may explain a difference between two starts, by stable names."""
    recorded = engine.recorded_env(env)
    recorded.update(found.versions)
    recorded["kernel"] = probe.kernel()
    if facts.worker_cores is not None:
        recorded["server_cores"] = str(len(facts.worker_cores))
    if facts.moe_backend is not None:
        recorded["moe_backend"] = facts.moe_backend
    if facts.moe_config is not None:
        recorded["moe_config"] = facts.moe_config
    if facts.caches_cold is not None:
        recorded[ENGINE_CACHES] = COLD if facts.caches_cold else "warm"
    quota = probe.cpu_quota()
    if quota is not None:
        recorded["cpu_quota"] = f"{quota:g}"
    return recorded


def _gpu_environment(hardware: Hardware, gpus: tuple[Gpu, ...]) -> dict[str, str]:
    """The same of the GPUs of a server, and of the machine around them."""
    if not gpus:
        return {}
    used = {gpu.uuid for gpu in gpus}
    recorded = {"cpu_model": hardware.cpu_model, "cpu_cores": str(hardware.cpu_cores)}
    limits = {gpu.power_limit_w for gpu in gpus if gpu.power_limit_w is not None}
    told = {
        "gpu_driver": {gpu.driver for gpu in gpus if gpu.driver is not None},
        "gpu_power_limit_w": {f"{limit:g}" for limit in limits},
        "gpu_links": {link.kind for link in hardware.links if {link.first, link.second} <= used},
    }
    recorded.update({name: ", ".join(sorted(values)) for name, values in told.items() if values})
    return recorded


def _new_log(folder: Path, spec: ServerSpec) -> Path:
    name = "".join(c if c.isalnum() or c in "-._" else "-" for c in spec.label)
    path = folder / f"server-{os.getpid()}-{next(LOG_NAMES)}-{name}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    except OSError as error:
        raise StorageError(f"{path}: no server log can be written: {error.strerror}") from error
    return path


def _free_port() -> int:
    with closing(socket.socket()) as probe_socket:
        probe_socket.bind((HOST, 0))
        port: int = probe_socket.getsockname()[1]
        return port


def _check_port(port: int) -> int:
    with closing(socket.socket()) as probe_socket:
        # As servers do: a port whose last connections still linger is free.
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind((HOST, port))
        except OSError as error:
            raise UsageError(
                f"--server-port {port}: cannot be used on {HOST}: {error.strerror}; "
                "choose another, or leave the option out for a free one"
            ) from error
    return port


def _no_progress(_phase: str) -> None:
    """Nobody watches."""
