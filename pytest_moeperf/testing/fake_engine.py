"""A fake engine that serves from a thread."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING, Self

from pytest_moeperf.testing.dialects import DIALECTS
from pytest_moeperf.testing.exchange import Port
from pytest_moeperf.testing.script import Script
from pytest_moeperf.testing.scripted import ScriptedEngine

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["FakeEngine"]


class FakeEngine:
    """A fake engine that serves from a thread of this process while the `with` block runs."""

    def __init__(
        self, script: Script | None = None, *, model: str = "mini-moe", engine: str = "vllm"
    ) -> None:
        self._dialect = DIALECTS[engine]
        self.script = script or Script()
        self.model = model
        self.log: list[str] = []
        """Lines that a process would have written."""
        self._url: str | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._engine: ScriptedEngine | None = None

    def start(self) -> Self:
        """Serve on a free port; returns when it is open."""
        if self.script.die_after_requests is not None:
            raise ValueError("a thread cannot die for its process: use make_fake_interpreter")
        self._thread.start()
        self._started.wait()
        if self._url is None:
            raise RuntimeError("the fake engine could not open a port")
        return self

    def stop(self) -> None:
        """Close the port and all streams."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def url(self) -> str:
        """Base URL, without a trailing slash."""
        if self._url is None:
            raise RuntimeError("the fake engine is not started")
        return self._url

    @property
    def requests_received(self) -> int:
        """Completion requests so far, refused ones included."""
        return 0 if self._engine is None else self._engine.received

    @property
    def requests_running(self) -> int:
        """Streams that are open now."""
        return 0 if self._engine is None else self._engine.counts.running

    def wait_for_running(self, streams: int, *, timeout_s: float = 5.0) -> None:
        """Block until exactly so many streams are open; TimeoutError if that does not happen."""
        deadline = time.monotonic() + timeout_s
        while self.requests_running != streams:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.requests_running} streams are open, not {streams}")
            time.sleep(0.005)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._engine = ScriptedEngine(
            self.script, self.model, self.log.append, die=os._exit, dialect=self._dialect
        )
        port = await Port.open(self._engine.respond, host="127.0.0.1", port=0)
        self._url = f"http://127.0.0.1:{port.number}"
        self._started.set()
        await self._stop.wait()
        # A connection that is not yet made when its server closes would never be closed itself.
        while connecting := _connecting():
            await asyncio.gather(*connecting, return_exceptions=True)
        await port.close()


def _connecting() -> list[asyncio.Task[object]]:
    """The tasks by which the loop makes connections of what it accepted."""
    return [
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "__name__", "") == "_accept_connection2"
    ]
