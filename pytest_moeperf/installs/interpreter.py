"""What an interpreter has installed, asked without importing the engine."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

from pytest_moeperf.errors import UsageError
from pytest_moeperf.records import EngineInstall

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["probe_interpreter"]

_TIMEOUT_S = 60.0
_QUESTION = """\
import importlib.metadata as metadata, importlib.util, json, sys
engine = sys.argv[1]
found = importlib.util.find_spec(engine) is not None
names = [engine]
try:
    metadata.version(engine)
except metadata.PackageNotFoundError:
    names = metadata.packages_distributions().get(engine, []) if found else []
name = names[0] if found and names else None
print(json.dumps({
    "found": found,
    "distribution": metadata.metadata(name)["Name"] if name else None,
    "version": metadata.version(name) if name else None,
}))
"""


def probe_interpreter(python: Path, engine: str) -> EngineInstall:
    """Ask `python` which distribution and version of `engine` it has.

    Raises:
        UsageError: It is no interpreter, gives no answer, or has no such engine.
    """
    asked = f"engine '{engine}@{python}'"
    if python.is_dir():
        inside = python / "bin" / "python"
        advice = f"; try {engine}@{inside}" if inside.exists() else ""
        raise UsageError(f"{asked}: a directory, not a Python interpreter{advice}")
    if not python.exists():
        raise UsageError(f"{asked}: no such file; give the path of a Python that has {engine}")
    if not os.access(python, os.X_OK):
        raise UsageError(f"{asked}: the file is not executable")
    answer = _ask(python, engine, asked)
    if not answer["found"]:
        raise UsageError(
            f"{asked}: this Python has no {engine}; install it there, "
            "or take one of its own: `moeperf engine list` tells which can be built"
        )
    return EngineInstall(
        engine=engine,
        distribution=answer["distribution"],
        version=answer["version"],
        python=python,
    )


def _ask(python: Path, engine: str, asked: str) -> dict[str, str | None]:
    try:
        done = subprocess.run(
            [python, "-c", _QUESTION, engine],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            # The current directory is on the path of `-c`: a checkout there is not an install.
            cwd="/",
        )
    except OSError as error:
        raise UsageError(f"{asked}: cannot be started: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise UsageError(f"{asked}: no answer within {_TIMEOUT_S:.0f} s") from None
    lines = done.stdout.splitlines()
    try:
        answer = json.loads(lines[-1])
        return {key: answer[key] for key in ("found", "distribution", "version")}
    except (IndexError, KeyError, TypeError, ValueError):
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise UsageError(f"{asked}: not a working Python interpreter; it said: {said}") from None
