"""Tells of a measured engine what it takes to install the same one again."""

from __future__ import annotations

import functools
import subprocess
from typing import TYPE_CHECKING

from pytest_moeperf.baseline import EngineProvenance
from pytest_moeperf.document import printable
from pytest_moeperf.installs.environment import read_environment
from pytest_moeperf.record_form import public_environment

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_moeperf.records import ServerSpec

__all__ = ["engine_provenance"]

_TIMEOUT_S = 20.0


def engine_provenance(spec: ServerSpec) -> EngineProvenance | None:
    """The engine of a server that runs `spec`; None where none was chosen yet."""
    install = spec.engine
    if install is None:
        return None
    python = install.python
    environment = read_environment(python.parent.parent) if python is not None else None
    return EngineProvenance(
        distribution=install.distribution or install.engine,
        version=install.version,
        python_version=None if python is None else _python_version(python),
        lock_sha256=None if environment is None else environment.lock_sha256,
        flags=tuple(printable(flag) for flag in spec.flags),
        env=public_environment(dict(spec.env)),
    )


@functools.lru_cache(maxsize=16)
def _python_version(python: Path) -> str | None:
    """None where the interpreter does not answer: a baseline is worth having without it."""
    try:
        ran = subprocess.run(
            [python, "-I", "-c", "import platform; print(platform.python_version())"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.strip() or None
