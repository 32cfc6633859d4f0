"""Stands between a test session and one server, so that the server never outlives the session.

Run as a script (standard library only) with a JSON object of options and the server's command.
It starts the command in a session of its own and then waits on two things: its standard input,
a pipe that only the test session holds, and its children. When the pipe closes, because the
session ended in whatever way, SIGKILL included, everything that the server started is killed.

Input, one command a line: `stop SECONDS` ends the server with SIGTERM and that much patience;
`note` remembers its shared memory, which cannot be found once all of its processes are gone.
Output, one JSON object a line: `started`, `failed` (to start), `exited`, and last `done`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

LINGER_S = 3.0
"""How long the rest may take to follow a server that was asked to end."""
LINGER_UNASKED_S = 1.0
"""The same for a server that died: what has lost its head rarely ends by itself."""
KILL_S = 8.0
POLL_S = 0.05

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - names are matched there, nothing is created
MAPPED_SEGMENT = re.compile(rf"^\S+ \S+ \S+ \S+ (\d+) +{SHARED_MEMORY}/", re.MULTILINE)
OWN_SEGMENTS = re.compile(r"psm_|sem\.|torch_|nccl|vllm|sgl|cuda\.|__KMP_|mp-|wnsm_")
"""Beginnings of names that engines and their libraries give to shared memory; a model that a
user keeps in memory must never match."""


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    group: int
    session: int
    zombie: bool


def process_table() -> dict[int, Process]:
    """Read all processes of the machine."""
    table = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                # The command name may hold spaces and brackets; the fields come after its end.
                stat = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
                state, parent, group, session = stat.rpartition(")")[2].split()[:4]
                process = Process(
                    int(entry.name), int(parent), int(group), int(session), state in "ZX"
                )
                table[process.pid] = process
    return table


@dataclass(slots=True)
class Guardian:
    """Watches over one server; `leader` is its first process."""

    scratch: str
    leader: int = 0
    exit_code: int | None = None
    segments: set[str] = field(default_factory=set)
    asked: bool = False
    """Whether the server was told to end."""
    interrupted: bool = False

    def start(self, command: list[str], log: str) -> None:
        """Start the server; the guardian becomes the parent of all that it orphans."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        with Path(log).open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                # If even the guardian is killed, the server's first process still ends.
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509 - no threads here
            )
        self.leader = process.pid
        # Its children are reaped here all alike; Popen must not wait for one on its own.
        process.returncode = 0

    def watch(self, wakeup: int) -> None:
        """Serve commands until the server has ended, must end, or nobody is there to ask."""
        deadline: float | None = None
        pending = b""
        while not self.reap() and not self.interrupted:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            readable, _, _ = select.select([0, wakeup], [], [], left)
            if wakeup in readable:
                os.read(wakeup, 4096)
            if 0 in readable:
                received = os.read(0, 4096)
                if not received:
                    return
                *lines, pending = (pending + received).split(b"\n")
                for line in lines:
                    deadline = self.obey(line.decode()) or deadline

    def obey(self, line: str) -> float | None:
        """Do what a line asks; return when the patience with the server ends, if it does."""
        verb, _, argument = line.partition(" ")
        self.note()
        if verb != "stop":
            return None
        self.asked = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.leader, signal.SIGTERM)
        return time.monotonic() + float(argument)

    def reap(self) -> bool:
        """Collect ended children, the adopted ones too; return whether the server ended."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self.leader:
                    self.exit_code = os.waitstatus_to_exitcode(status)
                    report(event="exited", exit_code=self.exit_code)
        return self.exit_code is not None

    def members(self) -> list[int]:
        """Everything alive that the server started, whatever group or session it moved to."""
        table = process_table()
        return [
            process.pid
            for process in table.values()
            if not process.zombie
            and process.pid != os.getpid()
            and (
                self.leader in {process.group, process.session}
                or descends_from(os.getpid(), process, table)
            )
        ]

    def note(self) -> None:
        """Remember the shared memory that the server's processes have mapped.

        By inode: a semaphore is mapped under a temporary name and then renamed.
        """
        mapped: set[int] = set()
        for pid in self.members():
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
                mapped.update(int(inode) for inode in MAPPED_SEGMENT.findall(maps))
        with contextlib.suppress(OSError):
            self.segments.update(
                entry.name
                for entry in os.scandir(SHARED_MEMORY)
                if entry.inode() in mapped and OWN_SEGMENTS.match(entry.name)
            )

    def finish(self) -> None:
        """End what is left, remove what it leaves, and report both."""
        patience_s = LINGER_S if self.asked else LINGER_UNASKED_S
        give_up_at = time.monotonic() + (patience_s if self.reap() else 0.0)
        while (survivors := self.members()) and time.monotonic() < give_up_at:
            time.sleep(POLL_S)
            self.reap()
        self.note()
        killed = len(survivors)
        give_up_at = time.monotonic() + KILL_S
        while survivors and time.monotonic() < give_up_at:
            for pid in survivors:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S)
            self.reap()
            survivors = self.members()
        removed = [name for name in sorted(self.segments) if remove_segment(name)]
        shutil.rmtree(self.scratch, ignore_errors=True)
        report(event="done", killed=killed, removed=removed, left=survivors)


def descends_from(ancestor: int, process: Process, table: dict[int, Process]) -> bool:
    """Whether `ancestor` is a parent of the process at any distance."""
    seen = set()
    current: Process | None = process
    while current is not None and current.pid not in seen:
        if current.parent == ancestor:
            return True
        seen.add(current.pid)
        current = table.get(current.parent)
    return False


def remove_segment(name: str) -> bool:
    """Remove a piece of shared memory; return whether it was there and ours to remove."""
    path = Path(SHARED_MEMORY, name)
    try:
        if path.stat().st_uid != os.getuid():
            return False
        path.unlink()
    except OSError:
        return False
    return True


def report(**event: object) -> None:
    """Tell the session, if there still is one."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(event).encode() + b"\n")


def main() -> int:
    """Guard the command of `sys.argv` until it is gone."""
    options = json.loads(sys.argv[1])
    guardian = Guardian(scratch=options["scratch"])
    wakeup, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    def interrupt(*_: object) -> None:
        guardian.interrupted = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        guardian.start(sys.argv[2:], options["log"])
    except OSError as error:
        shutil.rmtree(guardian.scratch, ignore_errors=True)
        report(event="failed", reason=error.strerror)
        return 1
    report(event="started", pid=guardian.leader)
    guardian.watch(wakeup)
    guardian.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
