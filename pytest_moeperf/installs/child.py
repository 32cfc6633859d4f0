"""Running a package tool as a child that cannot outlive or be outlived unnoticed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Progress", "ToolError", "hide_credentials", "run_tool"]

Progress = Callable[[str, float], None]
"""Gets what is being done, in words, and for how many seconds already."""

_POLL_S = 0.2
_DIES_WITH_PARENT = f"""\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGKILL)})
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""1 is PR_SET_PDEATHSIG, which an exec keeps. A `preexec_fn` is unsafe where threads run."""

_CREDENTIALS = re.compile(r"://[^/@\s]+@")


class ToolError(Exception):
    """A call that failed, with what the tool said in one line; it never leaves this package."""


def run_tool(
    command: Sequence[str],
    *,
    cwd: Path,
    environ: Mapping[str, str],
    on_output: Callable[[str], None],
    held_lock: int | None = None,
) -> tuple[int, str]:
    """Run `command` to its end; `on_output` often gets all that it wrote so far.

    The child inherits `held_lock`, so that the lock is taken for as long as anything writes.

    Returns:
        The exit code and what was written, to either stream.
    """
    guarded = [sys.executable, "-ISc", _DIES_WITH_PARENT, str(os.getpid()), *command]
    # A file without a name needs no removal, however this process ends.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            guarded,
            cwd=cwd,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=() if held_lock is None else (held_lock,),
        )
        try:
            while process.returncode is None:
                on_output(_read(log))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_POLL_S)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        return process.returncode, _read(log)


def hide_credentials(said: str) -> str:
    """Remove user and password from the URLs in what a tool said."""
    return _CREDENTIALS.sub("://***@", said)


def _read(log: IO[str]) -> str:
    return os.pread(log.fileno(), 1 << 20, 0).decode(errors="replace")
