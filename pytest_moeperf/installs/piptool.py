"""pip, which downloads wheels for another machine."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from pytest_moeperf.installs.child import ToolError, hide_credentials, run_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["download_wheels", "wheel_platforms"]

_COLLECTING = re.compile(r"^Collecting ", re.MULTILINE)
_OLDEST_GLIBC_MINOR = 5
_NAMED = {5: "manylinux1_x86_64", 12: "manylinux2010_x86_64", 17: "manylinux2014_x86_64"}


def wheel_platforms(glibc: str) -> tuple[str, ...]:
    """The platform tags that a Linux x86-64 machine with this glibc accepts.

    pip takes the tags that it is given literally, one for glibc 2.35 does not imply the others,
    and prefers the first. That is the one for the oldest glibc here: what asks for less runs on
    more machines, and the machine is not at hand. The older names of three are those of PEP 600.
    """
    major, _, minor = glibc.partition(".")
    numbers = range(_OLDEST_GLIBC_MINOR, int(minor) + 1)
    tags = ((_NAMED.get(number), f"manylinux_{major}_{number}_x86_64") for number in numbers)
    return (*(tag for pair in tags for tag in pair if tag), "linux_x86_64", "any")


def download_wheels(
    requirements: Path,
    target: Path,
    *,
    python: str,
    glibc: str,
    environ: Mapping[str, str],
    on_collected: Callable[[int], None],
) -> None:
    """Fetch the pinned wheels of `requirements` to `target`; their hashes are checked.

    `on_collected` often gets the number of packages that were found so far.

    Raises:
        ToolError: pip ended with an error.
    """
    code, said = run_tool(
        [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"),
            *("--disable-pip-version-check", "--progress-bar=off", "--no-color"),
            *("--only-binary=:all:", "--implementation=cp", f"--python-version={python}"),
            *(f"--platform={tag}" for tag in wheel_platforms(glibc)),
            *("--dest", str(target), "--requirement", str(requirements)),
        ],
        # Not the caller's directory: `-m` would find a pip there first.
        cwd=target,
        environ=environ,
        on_output=lambda so_far: on_collected(len(_COLLECTING.findall(so_far))),
    )
    if code:
        raise ToolError(_complaint(said.splitlines()) or f"exit code {code}")


def _complaint(lines: Sequence[str]) -> str:
    """The last error of pip and what follows it, in one line and without credentials."""
    starts = [number for number, line in enumerate(lines) if line.startswith("ERROR: ")]
    error = " ".join(" ".join(lines[starts[-1] :] if starts else lines[-1:]).split())
    return hide_credentials(error.removeprefix("ERROR: ").rstrip("."))
