"""Plays rising loads against scripted servers, to learn what the load client can carry here."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pytest_moeperf.client import Target
from pytest_moeperf.driver import play
from pytest_moeperf.errors import LoadError, ServerStartError
from pytest_moeperf.probe import core_ids
from pytest_moeperf.records import RequestSpec
from pytest_moeperf.truth import Truth, compare
from pytest_moeperf.validity import client_limits
from pytest_moeperf.workload import Plan

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from types import TracebackType

    from pytest_moeperf.records import ClientRecord
    from pytest_moeperf.truth import Accuracy

__all__ = [
    "MODES",
    "RATES",
    "Cores",
    "Mode",
    "PacedServer",
    "Step",
    "choose_cores",
    "cores_here",
    "run",
]

Mode = Literal["spread", "step"]
MODES: tuple[Mode, ...] = ("spread", "step")
RATES = (10_000, 25_000, 50_000, 100_000)
"""Chunks per second that are tried, in this order."""

MODEL = "paced"
TTFT_MS = 50
ITL_MS = 10
CHUNKS = 80
"""Of each stream: with the start it is a play of about a second."""
RAMP_ITLS = 23
"""Streams begin within so many chunk intervals. A prime, so that their chunks fall evenly into an
interval for any usual number of streams."""
PROMPT_TOKENS = 8
NS_PER_MS = 1_000_000
MS_PER_S = 1000

TRIES = 3

STOP_S = 5.0
ANSWER_S = 30.0
SIBLINGS = "/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"


@dataclass(frozen=True, slots=True)
class Cores:
    """Where the two sides of a check run."""

    client: int
    server: int

    @property
    def shared(self) -> bool:
        """Whether there was only one to run on."""
        return self.client == self.server


def choose_cores(usable: Sequence[int], siblings: dict[int, frozenset[int]]) -> Cores:
    """The first core for the client, and one for the server that shares no hardware with it.

    `siblings` names the hyperthreads of a core; a sibling is taken where there is no other core.
    """
    client, *others = sorted(usable)
    apart = [core for core in others if core not in siblings.get(client, frozenset())]
    return Cores(client, (apart or others or [client])[-1])


def cores_here() -> Cores:
    """Choose among the cores that this process may use."""
    usable = core_ids()
    return choose_cores(usable, {core: _siblings(core) for core in usable})


def _siblings(core: int) -> frozenset[int]:
    found: set[int] = set()
    with contextlib.suppress(OSError, ValueError):
        text = Path(SIBLINGS.format(core=core)).read_text(encoding="ascii")
        for part in text.strip().split(","):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep this thread, and what it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class PacedServer:
    """A scripted server as a process, which ends with this one; use as `with`.

    Raises ServerStartError when it does not come up.
    """

    def __init__(
        self,
        *,
        mode: Mode,
        core: int | None = None,
        ttft_ms: float = TTFT_MS,
        itl_ms: float = ITL_MS,
        options: Sequence[str] = (),
    ) -> None:
        # In memory, so that nothing stays behind however this process ends.
        self._log = os.memfd_create("sends")
        command = [sys.executable, "-m", "pytest_moeperf.testing.paced", "--until-eof"]
        command += ["--mode", mode, "--ttft-ms", str(ttft_ms), "--itl-ms", str(itl_ms)]
        command += ["--log", f"/proc/self/fd/{self._log}", *options]
        if core is not None:
            command += ["--core", str(core)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._log,),
            # The terminal's Ctrl-C is for the client; the server ends with its standard input.
            start_new_session=True,
        )
        self.url = ""
        """Where it serves, once it is entered."""

    def __enter__(self) -> Self:
        try:
            self.url = self._await_url()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the server's process."""
        return self._process.pid

    def flush(self) -> Truth:
        """What it has sent since it began or since the last flush."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=ANSWER_S)
        try:
            connection.request("POST", "/flush")
            connection.getresponse().read()
            return Truth.decode(os.pread(self._log, os.fstat(self._log).st_size, 0))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise LoadError(f"the scripted server's log cannot be read: {error}") from error
        finally:
            connection.close()

    def _await_url(self) -> str:
        output = self._process.stdout
        line = output.readline().decode() if output is not None else ""
        _, _, url = line.strip().rpartition(" ")
        if not url:
            code = self._process.wait(STOP_S)
            raise ServerStartError("the scripted server did not start", exit_code=code)
        return url

    def stop(self) -> None:
        """End the process; its log is gone with it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._log)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One load, and how well the client saw it."""

    mode: Mode
    rate: int
    """Chunks per second that were to be sent while all streams ran."""
    accuracy: Accuracy
    client: ClientRecord | None
    findings: tuple[str, ...]
    """Codes of what a measurement of this quality would be invalid for."""

    @property
    def client_limited(self) -> bool:
        """Whether the client was the bottleneck, by the truth or by its own account."""
        return bool(self.findings or self.accuracy.excesses())

    @property
    def ok(self) -> bool:
        """Whether the load was played as it was to be, and seen as it was."""
        return self.accuracy.schedule_held and not self.client_limited

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.client_limited:
            return f"client limited: {', '.join((*self.findings, *self.accuracy.excesses()))}"
        if not self.accuracy.schedule_held:
            late_ms = self.accuracy.lateness_ms_p99
            return f"server could not hold the schedule (p99 {late_ms:.1f} ms late)"
        return "ok"


def run(
    rates: Sequence[int] = RATES, *, modes: Sequence[Mode] = MODES, chunks: int = CHUNKS
) -> Generator[Step, None, None]:
    """Play every load in every mode, the client on one core and the servers on another.

    A load that was not seen as it was is played again, three times at most, since a machine has its
    moments; the last result counts. Close the iterator if it is not played to its end.
    """
    cores = cores_here()
    with contextlib.ExitStack() as stack:
        # They start side by side, and all before the first play.
        servers = {mode: PacedServer(mode=mode, core=cores.server) for mode in modes}
        for server in servers.values():
            stack.enter_context(server)
        stack.enter_context(pinned(cores.client))
        for number, rate in enumerate(rates):
            for mode, server in servers.items():
                load = _Load(mode=mode, rate=rate, chunks=chunks, first_key=number << 20)
                for _ in range(TRIES):
                    if (step := _play(server, load)).ok:
                        break
                yield step


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    mode: Mode
    rate: int
    chunks: int
    first_key: int
    """First token of the first prompt; the next ones count up from it."""

    @property
    def streams(self) -> int:
        return max(1, self.rate * ITL_MS // MS_PER_S)

    def plan(self) -> Plan:
        """Streams that begin one after the other, each with a prompt that names it."""
        ramp_ns = RAMP_ITLS * ITL_MS * NS_PER_MS
        return Plan(
            requests=tuple(
                RequestSpec(
                    index=index,
                    prompt=array("I", [self.first_key + index, *range(1, PROMPT_TOKENS)]),
                    output_tokens=self.chunks,
                    offset_ns=index * ramp_ns // self.streams,
                )
                for index in range(self.streams)
            ),
            concurrency=None,
        )


def _play(server: PacedServer, load: _Load) -> Step:
    repeat = play(Target(server.url, MODEL), load.plan(), workers=1)
    truth = server.flush()
    failed = [request.error for request in repeat.requests if request.error]
    if failed:
        raise LoadError(
            f"{len(failed)} of {load.streams} requests failed at {load.rate} chunks/s: {failed[0]}"
        )
    try:
        accuracy = compare(repeat.requests, truth, first_key=load.first_key)
    except ValueError as error:
        raise LoadError(f"the self-test at {load.rate} chunks/s is no use: {error}") from error
    codes = {finding.code for finding in client_limits(repeat)}
    return Step(
        mode=load.mode,
        rate=load.rate,
        accuracy=accuracy,
        client=repeat.client,
        findings=tuple(sorted(codes)),
    )
