"""A server that answers: asked, watched and ended; or attached to."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_moeperf.client import listed_models
from pytest_moeperf.endpoint import Answer, Endpoint
from pytest_moeperf.engines import EngineFacts, engine_named, engine_of_metrics, growth
from pytest_moeperf.errors import ServerDiedError, ServerHungError, UsageError
from pytest_moeperf.probe import await_rest
from pytest_moeperf.process import Shutdown
from pytest_moeperf.redaction import Redactor
from pytest_moeperf.timeline import Life
from pytest_moeperf.warmup import Met

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pytest_moeperf.engines import CountingRoute, Engine
    from pytest_moeperf.process import GuardedProcess
    from pytest_moeperf.records import EngineInstall, RepeatRecord, ServerSpec

__all__ = ["Observation", "RunningServer", "ServerLog", "Shutdown", "attach_server"]

TAIL_LINES = 20
ANSWER_S = 30.0
"""A loaded server may take its time to answer a question."""
API_KEY_VARIABLE = "MOEPERF_API_KEY"
SETTLE_S = 2.0
"""How long the counters may lag behind the last token."""
REST_S = 3.0
"""Patience with a server that spins: vLLM does so for a second after its last step."""


@dataclass(frozen=True, slots=True)
class ServerLog:
    """The log file of a server, without its secrets."""

    path: Path
    redactor: Redactor = field(default_factory=Redactor)

    def mark(self) -> int:
        """A position: what is written from now on is `lines(since=position)`."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def lines(self, *, since: int = 0) -> tuple[str, ...]:
        """The lines from a position on; none if the file cannot be read."""
        try:
            with self.path.open("rb") as file:
                file.seek(since)
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return ()
        return self.redactor.lines(re.split(r"\r?\n|\r", text.rstrip()) if text else ())

    def tail(self) -> tuple[str, ...]:
        """The last lines that say something."""
        return tuple(line for line in self.lines() if line.strip())[-TAIL_LINES:]


@dataclass(slots=True)
class Observation:
    """What a server's counters and log said during a play."""

    counters: Mapping[str, float] = field(default_factory=dict)
    log: tuple[str, ...] = ()

    def complete(self, repeat: RepeatRecord) -> RepeatRecord:
        """Add what was observed to the record of the play."""
        return replace(repeat, counters=self.counters, log=self.log)


@dataclass(slots=True, kw_only=True)
class RunningServer:
    """A server that answers: one that was started here, or an attached one."""

    spec: ServerSpec
    engine: Engine
    url: str
    model: str
    """Name that requests must ask for."""
    install: EngineInstall
    """With the version that an attached server told."""
    context_tokens: int | None
    start_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Names this life of the server in stored samples."""
    process: GuardedProcess | None = None
    """None for an attached server."""
    log: ServerLog | None = None
    command: str | None = None
    startup_s: float | None = None
    """From the start of the process until it was ready; None for an attached server."""
    facts: EngineFacts = field(default_factory=EngineFacts)
    counting: CountingRoute | None = None
    """How it counts experts; None where it does not."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What may explain a difference to another start."""
    gpu_ids: tuple[str, ...] = ()
    """UUIDs of the GPUs that are its own."""
    gpu_pids: frozenset[int] = frozenset()
    """Its processes on these GPUs, as the driver numbers them."""
    api_key: str | None = field(default=None, repr=False)
    """Sent with every request to an attached server."""
    shutdown: Shutdown | None = None
    """How it ended, once it was stopped."""
    kv_block_tokens: int = 16
    """What the prefix cache keeps at a time: as the server tells, else vLLM's usual size."""
    warm: bool = False
    """Whether a workload was played on it until it was steady."""
    met: Met = field(default_factory=Met)
    """The shapes of load that it has met, so that they need no warm-up again."""
    _ready_at: float = field(default_factory=time.monotonic)
    _rests: bool = False
    """Whether nothing was asked of it since it last left the cores."""

    @property
    def pid(self) -> int | None:
        """First process of the server; its process group and session have the same number."""
        return self.process.pid if self.process is not None else None

    @property
    def port(self) -> int | None:
        """Port that it listens on."""
        match = re.search(r":(\d+)$", self.url)
        return int(match[1]) if match else None

    @property
    def log_path(self) -> Path | None:
        """Where its output went; None for an attached server."""
        return self.log.path if self.log is not None else None

    @property
    def compile_patterns(self) -> tuple[str, ...]:
        """Regular expressions of log lines that tell of a compilation."""
        return self.engine.compile_patterns

    @property
    def alive(self) -> bool:
        """Whether it was neither stopped nor ended by itself; an attached one counts as alive."""
        return self.shutdown is None and not (self.process is not None and self.process.ended)

    @property
    def attached(self) -> bool:
        """Whether it was started elsewhere."""
        return self.process is None

    @property
    def life(self) -> Life:
        """What this start cost so far."""
        stopping_s = self.shutdown.seconds if self.shutdown is not None else 0.0
        return Life(self.spec, startup_s=self.startup_s or 0.0, stopping_s=stopping_s)

    def begin_work(self) -> None:
        """Note that it works from now on."""
        self._rests = False

    def check_alive(self) -> None:
        """Raise `ServerDiedError` with the end of its log if the process is gone; cheap."""
        if self.alive:
            return
        if self.process is None or self.log is None:
            return
        cause = self.engine.cause(self.log.lines())
        raise ServerDiedError(
            f"{self.spec.label}: the server died while in use{f': {cause}' if cause else ''}",
            command=self.command,
            exit_code=self.process.exit_code,
            elapsed_s=time.monotonic() - self._ready_at,
            log_tail=self.log.tail(),
            log_path=str(self.log.path),
        )

    def hung(self, error: ServerHungError) -> ServerHungError:
        """Add to what a client saw what a reader needs to see why."""
        return ServerHungError(
            f"{self.spec.label}: {error.message}",
            command=self.command,
            elapsed_s=error.elapsed_s,
            log_tail=self.log.tail() if self.log is not None else (),
            log_path=str(self.log.path) if self.log is not None else None,
        )

    def log_lines(self, since: int = 0) -> tuple[str, ...]:
        """What it logged from a position of `log.mark()` on; nothing for an attached server."""
        return self.log.lines(since=since) if self.log is not None else ()

    def counters(self) -> dict[str, float]:
        """Read its counters, after waiting a moment for running requests to be accounted for.

        Empty where an attached server publishes none.

        Raises:
            ServerDiedError: It is gone.
            ServerHungError: It does not answer.
        """
        deadline = time.monotonic() + SETTLE_S
        while True:
            answer = self._ask(self.engine.metrics_path)
            values = self.engine.counters(answer.text) if answer.ok else {}
            if not values.get("requests_running") or time.monotonic() > deadline:
                return values
            time.sleep(0.05)

    def reset_prefix_cache(self) -> bool:
        """Empty the prefix cache; False where an attached server does not offer that.

        A server that keeps no prefixes is left alone: SGLang also gives memory back to the driver,
        and the next request would have to fetch it again.
        """
        if self.process is not None and not self.engine.caches_prefixes(self.spec):
            return True
        return self._ask(self.engine.reset_prefix_cache_path, post=True).ok

    @contextmanager
    def observe(self) -> Iterator[Observation]:
        """Watch counters and log while the block runs; read the result after it."""
        self.begin_work()
        before = self.counters()
        mark = self.log.mark() if self.log is not None else 0
        observation = Observation()
        yield observation
        after = self.counters()
        observation.counters = growth(before, after)
        self.kv_block_tokens = int(after.get("kv_block_tokens", self.kv_block_tokens))
        observation.log = self.log_lines(mark)

    def await_rest(self) -> bool:
        """Wait until it leaves the cores to others: an engine spins for a while for new work.

        False where it still spins after three seconds.
        """
        if not self._rests and self.process is not None:
            self._rests = await_rest(self.process.pid, patience_s=REST_S)
        return self._rests or self.process is None

    def stop(self) -> float:
        """End it and everything it started; return the seconds that took, 0 if attached.

        `shutdown` tells the details. Stopping twice does nothing.
        """
        if self.shutdown is None and self.process is not None:
            shutdown = self.process.stop(patience_s=self.engine.patience_s)
            codes = shutdown.usual_codes
            self.shutdown = replace(
                shutdown,
                port_open=_accepts(self.url),
                usual_codes=codes | {-signal.SIGKILL} if self.engine.kills_itself else codes,
                usual_remains=self.engine.usual_remains,
            )
        return self.shutdown.seconds if self.shutdown is not None else 0.0

    def _ask(self, path: str, *, post: bool = False) -> Answer:
        endpoint = Endpoint(self.url, self.api_key)
        try:
            ask = endpoint.post if post else endpoint.get
            return ask(path, timeout_s=ANSWER_S)
        except OSError as error:
            self.check_alive()
            raise ServerHungError(
                f"{self.spec.label}: {self.url}{path} does not answer: {error}",
                log_tail=self.log.tail() if self.log is not None else (),
                log_path=str(self.log.path) if self.log is not None else None,
            ) from error


def _accepts(url: str) -> bool:
    """Whether somebody answers at the URL's port."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 80), timeout=1.0).close()
    except OSError:
        return False
    return True


def attach_server(spec: ServerSpec, install: EngineInstall, *, model: str) -> RunningServer:
    """Attach to the server at the install's URL; it is neither configured nor stopped here.

    Args:
        spec: What the suite asked for; only its model can be checked.
        install: An engine with a URL.
        model: Name that the server must serve.

    Raises:
        UsageError: Nothing answers there, it is no such server, its metrics are another engine's,
            it serves another model, or experts are to be counted.
    """
    engine = engine_named(install.engine)
    url = install.url or ""
    typed = f"--engine {install.engine}={url}"
    if spec.counts_experts:
        raise UsageError(
            f"{typed}: a server that was started elsewhere cannot be made to count experts; use an "
            f"installed engine, as in --engine {install.engine}"
        )
    api_key = os.environ.get(API_KEY_VARIABLE)
    endpoint = Endpoint(url, api_key)
    try:
        answer = endpoint.get(engine.models_path)
        version = endpoint.get(engine.version_path).json()
        metrics = endpoint.get(engine.metrics_path)
    except OSError as error:
        raise UsageError(
            f"{typed}: no server answers there ({error}); start it or correct the URL"
        ) from error
    served = {card.name: card.max_model_len for card in listed_models(answer) or ()}
    if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        raise UsageError(
            f"{typed}: answers HTTP {answer.status}; set {API_KEY_VARIABLE} to a key that it takes"
        )
    if not served:
        raise UsageError(
            f"{typed}: {engine.models_path} answers HTTP {answer.status} without a model; "
            "give the URL of an OpenAI-compatible server"
        )
    if metrics.ok and (other := engine_of_metrics(metrics.text)) not in {None, engine.name}:
        raise UsageError(
            f"{typed}: its {engine.metrics_path} are those of {other}; use --engine {other}={url}"
        )
    if model not in served:
        raise UsageError(
            f"{typed}: serves {', '.join(sorted(served))}, not {model}; start it with "
            f"--served-model-name {model}, or select tests of that model with -k"
        )
    told = version.get("version") if isinstance(version, dict) else None
    return RunningServer(
        spec=spec,
        engine=engine,
        url=url,
        model=model,
        install=replace(install, version=install.version or told),
        context_tokens=served[model],
        api_key=api_key,
    )
