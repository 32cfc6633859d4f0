"""Running uv as a child that cannot outlive or be outlived unnoticed."""

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

__all__ = ["Progress", "UvError", "run_uv"]

Progress = Callable[[str, float], None]
"""Gets what is being done, in words, and for how many seconds already."""

_POLL_S = 0.2
_PHASES = {
    "Resolved ": "downloading packages",
    "Prepared ": "installing packages",
    "Installed ": "compiling bytecode",
}
"""What uv does after a line that starts so."""
_DIES_WITH_PARENT = f"""\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGKILL)})
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""1 is PR_SET_PDEATHSIG, which an exec keeps. A `preexec_fn` is unsafe where threads run."""

_ERROR_START = re.compile(r"error:|\s*\N{MULTIPLICATION SIGN}")
_BOX = re.compile(r"[│╰├─▶\N{MULTIPLICATION SIGN}]")
_CREDENTIALS = re.compile(r"://[^/@\s]+@")


class UvError(Exception):
    """A call of uv that failed, with what uv said in one line; it never leaves this package."""


def run_uv(
    arguments: Sequence[str],
    *,
    cwd: Path,
    environ: Mapping[str, str],
    held_lock: int,
    on_progress: Callable[[str | None], None],
) -> None:
    """Run uv to its end; `on_progress` often gets the phase that its output shows.

    The child inherits `held_lock`, so that the lock is taken for as long as anything writes.

    Raises:
        UvError: uv ended with an error.
    """
    from uv import find_uv_bin  # noqa: PLC0415 - needed only to build

    command = [sys.executable, "-ISc", _DIES_WITH_PARENT, str(os.getpid()), find_uv_bin()]
    # A file without a name needs no removal, however this process ends.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            [*command, "--no-progress", "--color=never", *arguments],
            cwd=cwd,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(held_lock,),
        )
        try:
            while process.returncode is None:
                on_progress(_phase(_read(log)))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_POLL_S)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        if process.returncode:
            raise UvError(_complaint(_read(log)) or f"exit code {process.returncode}")


def _read(log: IO[str]) -> str:
    return os.pread(log.fileno(), 1 << 20, 0).decode(errors="replace")


def _phase(said: str) -> str | None:
    phase = None
    for line in said.splitlines():
        phase = next((after for start, after in _PHASES.items() if line.startswith(start)), phase)
    return phase


def _complaint(said: str) -> str:
    """Join the last error of uv's boxed, wrapped output to one line without credentials."""
    lines = said.splitlines()
    starts = [number for number, line in enumerate(lines) if _ERROR_START.match(line)]
    error = " ".join(_BOX.sub(" ", " ".join(lines[starts[-1] :] if starts else lines[-1:])).split())
    error = error.removeprefix("error: ").replace(" cause: ", ": ").rstrip(".")
    return _CREDENTIALS.sub("://***@", error)
