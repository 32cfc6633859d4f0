"""What an installed engine can do, read from its files without importing it."""

from __future__ import annotations

import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_moeperf.engines import engine_named
from pytest_moeperf.errors import ServerStartError

__all__ = ["Features", "features"]

_TIMEOUT_S = 60.0
_QUESTION = """\
import importlib.metadata as metadata, importlib.util, json, sys
spec = importlib.util.find_spec(sys.argv[1])
versions = {}
for name in sys.argv[2:]:
    try:
        versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps({"folders": list(spec.submodule_search_locations or []) if spec else [],
                  "versions": versions}))
"""
_STACK = ("torch", "triton", "transformers", "flashinfer-python", "sglang-kernel")


@dataclass(frozen=True, slots=True)
class Features:
    """Of one engine in one interpreter."""

    flags: frozenset[str] | None
    """Flags that it accepts; None where its sources do not tell."""
    versions: tuple[tuple[str, str], ...]
    """What it stands on, such as `("torch", "2.13.0+cpu")`."""


@functools.lru_cache(maxsize=16)
def features(python: Path, engine_name: str) -> Features:
    """Ask the interpreter where the engine is, and read the files that declare its flags.

    Raises:
        ServerStartError: The interpreter gives no answer.
    """
    engine = engine_named(engine_name)
    answer = _ask(python, engine.package)
    sources = {}
    for folder in answer["folders"]:
        for name in engine.flag_sources:
            path = Path(folder, name)
            if path.is_file():
                sources[name] = path.read_text(encoding="utf-8")
    return Features(
        flags=engine.known_flags(sources), versions=tuple(sorted(answer["versions"].items()))
    )


def _ask(python: Path, package: str) -> Any:
    try:
        done = subprocess.run(
            [python, "-c", _QUESTION, package, *_STACK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
            # The current directory is on the path of `-c`: a checkout there is no install.
            cwd="/",
        )
        return json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise ServerStartError(f"{python}: not a working Python interpreter: {error}") from error
