"""uv, which builds engine environments."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_moeperf.installs.child import ToolError, hide_credentials, run_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["run_uv"]

_PHASES = {
    "Resolved ": "downloading packages",
    "Prepared ": "installing packages",
    "Installed ": "compiling bytecode",
}
"""What uv does after a line that starts so."""
_ERROR_START = re.compile(r"error:|\s*\N{MULTIPLICATION SIGN}")
_BOX = re.compile(r"[│╰├─▶\N{MULTIPLICATION SIGN}]")


def run_uv(
    arguments: Sequence[str],
    *,
    cwd: Path,
    environ: Mapping[str, str],
    held_lock: int,
    on_progress: Callable[[str | None], None],
) -> None:
    """Run uv to its end; `on_progress` often gets the phase that its output shows.

    Raises:
        ToolError: uv ended with an error.
    """
    from uv import find_uv_bin  # noqa: PLC0415 - needed only to build

    code, said = run_tool(
        [find_uv_bin(), "--no-progress", "--color=never", *arguments],
        cwd=cwd,
        environ=environ,
        on_output=lambda so_far: on_progress(_phase(so_far)),
        held_lock=held_lock,
    )
    if code:
        raise ToolError(_complaint(said) or f"exit code {code}")


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
    return hide_credentials(error)
