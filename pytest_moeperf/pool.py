"""Keeps servers running for as long as they are used and fit; one measuring session a machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from pytest_moeperf.cache import cache_root, exclusive
from pytest_moeperf.engines import engine_driver
from pytest_moeperf.errors import ServerStartError, UsageError
from pytest_moeperf.launch import start_server
from pytest_moeperf.memory import weight_bytes
from pytest_moeperf.server import RunningServer, Shutdown, attach_server

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from pytest_moeperf.hardware import Gpu, Hardware
    from pytest_moeperf.models import ModelDirectory
    from pytest_moeperf.records import ServerSpec

__all__ = ["Announce", "MachineLease", "ServerPool"]

Announce = Callable[[str, str], None]
"""Gets what is being waited for and a detail of it that changes, often."""

GIB = 2**30
MEMORY_RESERVE = 0.9
"""Share of the available memory that servers may fill; the page cache and others need some."""


class MachineLease:
    """The right to measure on this machine, held by one session of a user at a time.

    The lock ends with the process, however that ends.
    """

    def __init__(self, *, folder: Path | None = None, timeout_s: float = 3600.0) -> None:
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
            holder = self._holder()
            if elapsed_s > self._timeout_s:
                raise ServerStartError(
                    f"another session{holder} has measured on this machine for the last "
                    f"{self._timeout_s:g} s; wait for it or stop it"
                )
            announce("waiting for the machine", f"another session measures{holder}")

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

    def _holder(self) -> str:
        try:
            pid = self._note.read_text(encoding="ascii").strip()
        except OSError:
            return ""
        return f" (pid {pid})" if pid else ""


class ServerPool:
    """Running servers by spec. Equal specs share one; the one unused longest makes room.

    The first use claims the machine, `close` ends all servers and frees it.
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
    ) -> None:
        self._hardware = hardware
        self._log_dir = log_dir
        self._timeout_s = timeout_s
        self._port = port
        self._announce = on_progress or _no_progress
        self._lease = MachineLease() if lease is None else lease
        self._servers: dict[ServerSpec, RunningServer] = {}
        """In the order of their last use."""

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

    def acquire(self, spec: ServerSpec, model: ModelDirectory) -> RunningServer:
        """Return the running server of `spec`, or start it once there is room.

        A server that died in between is started anew.

        Raises:
            UsageError: See `start_server` and `attach_server`.
            ServerStartError: It did not become ready, or the machine did not become free.
        """
        self._lease.acquire(on_progress=self._announce)
        server = self._servers.pop(spec, None)
        if server is not None and not server.alive:
            server.stop()
            server = None
        if server is None:
            server = self._open(spec, model)
        self._servers[spec] = server
        return server

    def stop(self, server: RunningServer) -> Shutdown:
        """End a server; the next use of its spec starts a new one.

        Raises:
            UsageError: It was attached and is not ours to end.
        """
        self._servers = {s: other for s, other in self._servers.items() if other is not server}
        server.stop()
        if server.shutdown is None:
            raise UsageError(f"{server.url}: an attached server is not stopped by this plugin")
        return server.shutdown

    def close(self) -> None:
        """End all servers, even if a Ctrl-C comes while one is ended, and free the machine."""
        with ExitStack() as stack:
            stack.callback(self._lease.release)
            for server in self._servers.values():
                stack.callback(server.stop)
            self._servers = {}

    def _open(self, spec: ServerSpec, model: ModelDirectory) -> RunningServer:
        if spec.engine is not None and spec.engine.url is not None:
            return attach_server(spec, spec.engine, model=model.name)
        gpus = self._make_room(spec, model)
        return start_server(
            spec,
            model,
            self._hardware,
            log_dir=self._log_dir,
            timeout_s=self._timeout_s,
            # The chosen port serves one server at a time; further ones take free ports.
            port=None if self._port in {server.port for server in self.running} else self._port,
            gpus=gpus,
            on_progress=lambda phase, _elapsed_s: self._announce(f"starting {spec.label}", phase),
        )

    def _make_room(self, spec: ServerSpec, model: ModelDirectory) -> tuple[Gpu, ...]:
        """Stop as many servers as the new one needs; return the GPUs that it gets."""
        driver = engine_driver(spec.engine.engine if spec.engine is not None else "vllm")
        if self._hardware.gpus:
            count = driver.gpus_needed(spec)
            self._evict_until(lambda: len(self._free_gpus()) >= count)
            free = self._free_gpus()
            if len(free) < count:
                raise ServerStartError(
                    f"{spec.label}: needs {count} GPUs, this machine has {len(free)} to use"
                )
            return free[:count]
        environment = {**os.environ, **dict(spec.env)}
        weights_gib = weight_bytes(model.architecture) / GIB
        needed_gib = driver.memory_gib(environment, weights_gib=weights_gib)
        self._evict_until(lambda: needed_gib <= _available_gib() * MEMORY_RESERVE)
        return ()

    def _evict_until(self, fits: Callable[[], bool]) -> None:
        while not fits():
            started = (server for server in self.running if server.process is not None)
            unused_longest = next(started, None)
            if unused_longest is None:
                return
            self._announce(f"stopping {unused_longest.spec.label}", "to make room")
            self.stop(unused_longest)

    def _free_gpus(self) -> tuple[Gpu, ...]:
        taken = {uuid for server in self._servers.values() for uuid in server.gpu_ids}
        return tuple(gpu for gpu in self._hardware.gpus if gpu.uuid not in taken)


def _available_gib() -> float:
    import psutil  # noqa: PLC0415 - not needed to load the plugin

    available: int = psutil.virtual_memory().available
    return available / GIB


def _no_progress(_phase: str, _detail: str) -> None:
    """Nobody watches."""
