"""Keeps servers running for as long as they are used and fit.

One session at a time measures on a CPU; on GPUs each has its own.
"""

from __future__ import annotations

import contextlib
import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from pytest_moeperf.cache import cache_root, exclusive
from pytest_moeperf.engines import engine_named
from pytest_moeperf.errors import MoeperfError, ServerStartError, UsageError
from pytest_moeperf.gpulease import GpuLease, holder
from pytest_moeperf.hardware import nearest
from pytest_moeperf.launch import start_server
from pytest_moeperf.memory import weight_bytes
from pytest_moeperf.server import RunningServer, Shutdown, attach_server
from pytest_moeperf.telemetry import await_free, named, occupancy
from pytest_moeperf.timeline import Timeline
from pytest_moeperf.units import GIB

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from pytest_moeperf.hardware import Gpu, Hardware
    from pytest_moeperf.measurement import Announce
    from pytest_moeperf.models import ModelDirectory
    from pytest_moeperf.records import ServerSpec

__all__ = ["MachineLease", "ServerPool"]

PATIENCE_S = 3600.0
"""With another session; the largest ones take that long."""
POLL_S = 0.5
MEMORY_RESERVE = 0.9
"""Share of the available memory that servers may fill; the page cache and others need some."""


class MachineLease:
    """The right to measure on this machine, held by one session of a user at a time.

    The lock ends with the process, however that ends.
    """

    def __init__(self, *, folder: Path | None = None, timeout_s: float = PATIENCE_S) -> None:
        self._folder = cache_root() if folder is None else folder
        self._timeout_s = timeout_s
        self._lock: ExitStack | None = None

    def acquire(self, *, on_progress: Announce | None = None) -> None:
        """Wait until no other session measures here; does nothing when it is held already.

        Raises:
            ServerStartError: Another one still measures when the patience ends.
            StorageError: The lock cannot be written.
        """
        if self._lock is not None:
            return
        announce = on_progress or _no_progress

        def waiting(elapsed_s: float) -> None:
            holders = self._holders()
            if elapsed_s > self._timeout_s:
                raise ServerStartError(
                    f"another session{_in_brackets(holders)} has measured on this machine for the "
                    f"last {self._timeout_s:g} s; wait for it or stop it"
                )
            announce(f"waiting for {_sessions(holders)}, which measures on this machine", "")

        with ExitStack() as lock:
            lock.enter_context(exclusive(self._folder / "machine.lock", on_wait=waiting))
            self._lock = lock.pop_all()
        # Only to be shown to those who wait: without it they see no number.
        with contextlib.suppress(OSError):
            self._note.write_text(str(os.getpid()), encoding="ascii")

    def release(self) -> None:
        """Let others measure; does nothing when it is not held."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def _note(self) -> Path:
        return self._folder / "machine.pid"

    def _holders(self) -> list[int]:
        try:
            return [int(self._note.read_text(encoding="ascii"))]
        except (OSError, ValueError):
            return []


class ServerPool:
    """Running servers by spec. Equal specs share one; the one unused longest makes room.

    On a CPU the first use claims the machine, on GPUs each server leases its own. `close` ends all
    servers and frees everything.
    """

    def __init__(
        self,
        hardware: Hardware,
        *,
        log_dir: Path,
        timeout_s: float = 600.0,
        port: int | None = None,
        on_progress: Announce | None = None,
        lease: MachineLease | None = None,
        gpu_folder: Path | None = None,
        gpu_timeout_s: float = PATIENCE_S,
        timeline: Timeline | None = None,
    ) -> None:
        self._hardware = hardware
        self._log_dir = log_dir
        self._timeout_s = timeout_s
        self._port = port
        self._announce = on_progress or _no_progress
        self._lease = MachineLease() if lease is None else lease
        self._gpu_folder = gpu_folder
        self._gpu_timeout_s = gpu_timeout_s
        self._timeline = Timeline(time.monotonic) if timeline is None else timeline
        self._servers: dict[ServerSpec, RunningServer] = {}
        """In the order of their last use."""
        self._gpus: dict[str, GpuLease] = {}
        """By the start that they are leased for."""
        self._died: set[str] = set()
        """Starts that ended by themselves before they were ended here."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def running(self) -> tuple[RunningServer, ...]:
        """The servers that were not stopped, the one unused longest first."""
        return tuple(self._servers.values())

    @property
    def alive(self) -> list[ServerSpec]:
        """The specs of the servers that run and were not seen to die."""
        return [server.spec for server in self.running if server.alive]

    def beside(self, server: RunningServer) -> tuple[RunningServer, ...]:
        """The other servers that run."""
        return tuple(other for other in self.running if other is not server and other.alive)

    def acquire(self, spec: ServerSpec, model: ModelDirectory) -> RunningServer:
        """Return the running server of `spec`, or start it once there is room.

        Those that ended outside the pool are let go first, with their GPUs; that of `spec` is
        started anew.

        Raises:
            UsageError: See `start_server` and `attach_server`.
            ServerStartError: It did not become ready, or the machine did not become free.
        """
        attached = spec.engine is not None and spec.engine.url is not None
        if attached or not self._hardware.gpus:
            with self._timeline.during("waiting"):
                self._lease.acquire(on_progress=self._announce)
        self._drop_ended()
        server = self._servers.pop(spec, None)
        if server is None:
            server = self._open(spec, model)
        self._servers[spec] = server
        return server

    def died(self, server: RunningServer) -> bool:
        """Whether it ended by itself; not if it was stopped, as after a hang or to make room."""
        return server.start_id in self._died or (server.shutdown is None and not server.alive)

    def check_together(self, servers: Sequence[RunningServer]) -> None:
        """Raise unless all of these servers, acquired one after the other, run now.

        Raises:
            ServerDiedError: One ended by itself; with the end of its log.
            MoeperfError: One was stopped when the machine had no room for a later one.
        """
        for server in servers:
            if self.died(server):
                server.check_alive()
        for server in servers:
            if not server.alive:
                raise MoeperfError(
                    f"{server.spec.label} had to make room for a later server of the comparison: "
                    "this machine cannot run all of them at once, which measuring in turns needs"
                )

    def stop(self, server: RunningServer) -> Shutdown:
        """End a server; the next use of its spec starts a new one.

        Raises:
            UsageError: It was attached and is not ours to end.
        """
        self._servers = {s: other for s, other in self._servers.items() if other is not server}
        self._end(server)
        if server.shutdown is None:
            raise UsageError(f"{server.url}: an attached server is not stopped by this plugin")
        return server.shutdown

    def close(self) -> None:
        """End all servers, even if a Ctrl-C comes while one is ended, and free the machine."""
        with ExitStack() as stack:
            stack.callback(self._lease.release)
            for server in self._servers.values():
                stack.callback(self._end, server)
            self._servers = {}

    def _drop_ended(self) -> None:
        """Let go of servers that died, and of those that were stopped after a hang."""
        for spec, server in tuple(self._servers.items()):
            if not server.alive:
                del self._servers[spec]
                self._end(server)

    def _end(self, server: RunningServer) -> None:
        """Stop it and give its GPUs back; its guardian kept them as well until it was gone."""
        if self.died(server):
            self._died.add(server.start_id)
        try:
            server.stop()
        finally:
            if lease := self._gpus.pop(server.start_id, None):
                lease.release()

    def _open(self, spec: ServerSpec, model: ModelDirectory) -> RunningServer:
        if spec.engine is not None and spec.engine.url is not None:
            return attach_server(spec, spec.engine, model=model.name)
        engine = engine_named(spec.engine.engine if spec.engine is not None else "vllm")
        if not self._hardware.gpus:
            environment = {**os.environ, **dict(spec.env)}
            weights_gib = weight_bytes(model.architecture) / GIB
            needed_gib = engine.memory_gib(environment, weights_gib=weights_gib)
            while needed_gib > _available_gib() * MEMORY_RESERVE and self._evict():
                pass
            return self._start(spec, model)
        lease = self._lease_gpus(spec, engine.gpus_needed(spec))
        try:
            server = self._start(spec, model, lease)
        except BaseException:
            lease.release()
            raise
        self._gpus[server.start_id] = lease
        return server

    def _start(
        self, spec: ServerSpec, model: ModelDirectory, lease: GpuLease | None = None
    ) -> RunningServer:
        uuids = lease.uuids if lease is not None else ()
        gpus = tuple(gpu for gpu in self._hardware.gpus if gpu.uuid in uuids)
        if gpus:
            with self._timeline.during("waiting"):
                await_free(gpus, on_wait=self._announce)
        return start_server(
            spec,
            model,
            self._hardware,
            log_dir=self._log_dir,
            timeout_s=self._timeout_s,
            # The chosen port serves one server at a time; further ones take free ports.
            port=None if self._port in {server.port for server in self.running} else self._port,
            gpus=gpus,
            held=lease.descriptors if lease is not None else (),
            on_progress=lambda phase: self._announce(f"starting {spec.label}", phase),
        )

    def _lease_gpus(self, spec: ServerSpec, count: int) -> GpuLease:
        """Lease GPUs near to each other: free ones, those of own servers, or what others give back.

        All are taken at once and none is kept while waiting, so that two sessions which want each
        other's cannot wait for ever.
        """
        here = self._hardware.gpus
        if count > len(here):
            raise ServerStartError(
                f"{spec.label}: needs {count} GPUs, this machine has {len(here)} to use"
            )
        began = time.monotonic()
        while True:
            free = _idle_first(self._free_gpus())
            for chosen in nearest(free, count, self._hardware.links):
                uuids = [gpu.uuid for gpu in chosen]
                if lease := GpuLease.take(uuids, folder=self._gpu_folder):
                    return lease
            if not self._evict():
                with self._timeline.during("waiting"):
                    self._await_others(time.monotonic() - began)

    def _await_others(self, waited_s: float) -> None:
        holders = {
            gpu.index: holder(gpu.uuid, folder=self._gpu_folder) for gpu in self._free_gpus()
        }
        sessions = sorted({pid for pid in holders.values() if pid is not None})
        if waited_s > self._gpu_timeout_s:
            raise ServerStartError(
                f"another session{_in_brackets(sessions)} has used the GPUs for the last "
                f"{self._gpu_timeout_s:g} s; wait for it or stop it"
            )
        self._announce(f"waiting for GPUs of {_sessions(sessions)}", "")
        time.sleep(POLL_S)

    def _evict(self) -> bool:
        """Stop the server unused longest; False if none is left that was started here."""
        started = (server for server in self.running if server.process is not None)
        unused_longest = next(started, None)
        if unused_longest is None:
            return False
        self._announce(f"stopping {unused_longest.spec.label}", "to make room")
        self.stop(unused_longest)
        return True

    def _free_gpus(self) -> tuple[Gpu, ...]:
        taken = {uuid for lease in self._gpus.values() for uuid in lease.uuids}
        return tuple(gpu for gpu in self._hardware.gpus if gpu.uuid not in taken)


def _idle_first(gpus: Sequence[Gpu]) -> list[Gpu]:
    """Those where somebody computes last: memory comes back by itself, a process may stay."""
    seen = occupancy(gpu.uuid for gpu in gpus)
    return sorted(gpus, key=lambda gpu: (bool(seen[gpu.uuid].pids), not seen[gpu.uuid].free))


def _in_brackets(pids: Sequence[int]) -> str:
    return f" (pid {', '.join(map(str, pids))})" if pids else ""


def _sessions(pids: Sequence[int]) -> str:
    """`pid 4711 pytest`; early in a line, which a narrow terminal cuts."""
    return f"pid {', '.join(map(named, pids))}" if pids else "another session"


def _available_gib() -> float:
    import psutil  # noqa: PLC0415 - not needed to load the plugin

    available: int = psutil.virtual_memory().available
    return available / GIB


def _no_progress(_phase: str, _detail: str) -> None:
    """Nobody watches."""
