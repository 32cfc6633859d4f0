"""A server process under a guardian."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_moeperf import guardian
from pytest_moeperf.errors import ServerStartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["GuardedProcess", "Shutdown", "notice_death"]

SPAWN_S = 30.0
"""A guardian that takes longer to start a process than this is broken."""
FINISH_S = guardian.LINGER_S + guardian.KILL_S + 5.0
"""What a guardian may take beyond the patience with the server itself."""
DEATH_NOTICE_S = 2.0
DEATH_POLL_S = 0.05

ENDED_BY_SIGTERM = frozenset({0, -signal.SIGTERM, 128 + signal.SIGTERM})
"""Exit codes of a program that handled SIGTERM, died of it, or passed that on as a shell does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """How a server ended, and what had to be cleared up behind it."""

    seconds: float
    """From the request to stop until nothing of it was left."""
    exit_code: int | None
    """Of its first process, negative for a signal; None if it was not told."""
    killed: int
    """Processes that did not end by themselves."""
    removed: tuple[str, ...]
    """Shared memory that it left behind."""
    left: tuple[int, ...] = ()
    """Processes that not even SIGKILL ended."""
    port_open: bool = False
    """Its port still accepts connections."""
    usual_codes: frozenset[int] = ENDED_BY_SIGTERM
    """Exit codes of an orderly end."""
    usual_remains: tuple[str, ...] = ()
    """Regular expressions for names of shared memory that this engine leaves at every end."""

    @property
    def clean(self) -> bool:
        """Whether SIGTERM was enough, and the server left no more behind than its engine always."""
        unusual = [name for name in self.removed if not _matches(name, self.usual_remains)]
        remains = self.killed or unusual or self.left or self.port_open
        return self.exit_code in self.usual_codes and not remains


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


class GuardedProcess:
    """A process group that ends with this process, however this process ends."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        scratch: Path,
        held: Sequence[int] = (),
    ) -> None:
        """Start `command`; its output goes to `log`, and `scratch` is removed after it.

        `held` are descriptors of locks that last until nothing of the command is left.

        Raises:
            ServerStartError: The command cannot be executed.
        """
        options = json.dumps({"log": str(log), "scratch": str(scratch)})
        with log.open("ab") as errors:
            self._guardian = subprocess.Popen(
                # Isolated, without site: it starts in 20 ms and nothing can be shadowed.
                [sys.executable, "-I", "-S", guardian.__file__, options, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(env),
                # The guardian's alone: what it starts inherits none.
                pass_fds=tuple(held),
                # Not reached by the terminal's Ctrl-C, nor by a kill of the session's group.
                start_new_session=True,
            )
        self._received = b""
        self._exited = False
        self._exit_code: int | None = None
        self._done: dict[str, Any] | None = None
        self._failure: str | None = None
        self.pid = 0
        self._await_start(command[0])

    @property
    def ended(self) -> bool:
        """Whether the server's first process is gone."""
        self._receive()
        return self._exited

    @property
    def exit_code(self) -> int | None:
        """Of the first process, negative for a signal; None while it runs or if unknown."""
        self._receive()
        return self._exit_code

    def note_shared_memory(self) -> None:
        """Have the guardian remember what must not stay behind if all processes die at once."""
        self._tell("note\n")

    def stop(self, *, patience_s: float) -> Shutdown:
        """End the server with SIGTERM, and with SIGKILL after `patience_s`."""
        started = time.monotonic()
        self._tell(f"stop {patience_s}\n")
        self._await_guardian(patience_s + FINISH_S)
        done = self._done or {}
        return Shutdown(
            seconds=time.monotonic() - started,
            exit_code=self._exit_code,
            killed=done.get("killed", 0),
            removed=tuple(done.get("removed", ())),
            left=tuple(done.get("left", ())),
        )

    def kill(self) -> None:
        """End the server at once."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._await_guardian(FINISH_S)

    @property
    def _stdin(self) -> Any:
        return self._guardian.stdin

    def _await_start(self, program: str) -> None:
        deadline = time.monotonic() + SPAWN_S
        try:
            while not self.pid and self._failure is None and time.monotonic() < deadline:
                self._receive(wait_s=0.1)
                if self._guardian.poll() is not None and not self.pid:
                    self._failure = self._failure or "the process that guards it ended"
        except BaseException:
            self.kill()
            raise
        if not self.pid:
            self.kill()
            reason = self._failure or f"no answer within {SPAWN_S:.0f} s"
            raise ServerStartError(f"{program}: cannot be started: {reason}")

    def _tell(self, line: str) -> None:
        # A guardian that is gone has ended the server already.
        with contextlib.suppress(OSError, ValueError):
            self._stdin.write(line.encode())
            self._stdin.flush()

    def _await_guardian(self, timeout_s: float) -> None:
        try:
            self._guardian.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._guardian.kill()
            self._guardian.wait()
        if self.pid and self._done is None:
            self._receive()
        if self.pid and self._done is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._exited = True
        for stream in (self._guardian.stdin, self._guardian.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _receive(self, wait_s: float = 0.0) -> None:
        """Take in what the guardian said since the last time."""
        output = self._guardian.stdout
        if output is None or output.closed:
            return
        while select.select([output], [], [], wait_s)[0]:
            received = os.read(output.fileno(), 4096)
            if not received:
                # The guardian is gone, and the server with it.
                self._exited = True
                return
            *lines, self._received = (self._received + received).split(b"\n")
            for line in lines:
                self._understand(json.loads(line))
            wait_s = 0.0

    def _understand(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "started":
                self.pid = event["pid"]
            case "failed":
                self._failure = event["reason"]
            case "exited":
                self._exited = True
                self._exit_code = event["exit_code"]
            case "done":
                self._done = event


def notice_death(check_alive: Callable[[], None]) -> None:
    """Give a server that broke off two seconds in which `check_alive` may raise that it is gone.

    A connection breaks before the process that it was made to has ended.
    """
    deadline = time.monotonic() + DEATH_NOTICE_S
    while time.monotonic() < deadline:
        check_alive()
        time.sleep(DEATH_POLL_S)
