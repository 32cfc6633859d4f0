"""The Python of a machine that an engine is unpacked on: what it has by itself."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from pytest_moeperf.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["HostPython", "probe_host"]

_TIMEOUT_S = 60.0
_QUESTION = """\
import importlib.metadata as metadata, json, site, sys, sysconfig
directories = [*site.getsitepackages(), *map(sysconfig.get_path, ("purelib", "platlib"))]
if site.ENABLE_USER_SITE:
    directories.insert(0, site.getusersitepackages())
found = {}
for each in metadata.distributions():
    # The first one on the path is the one that is imported.
    found.setdefault(each.metadata["Name"], each.version)
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "directories": [each for each in dict.fromkeys(directories) if each in sys.path],
    "packages": found,
}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPython:
    """One interpreter, as it described itself."""

    path: Path
    version: str
    """`3.12`"""
    directories: tuple[str, ...]
    """Where its packages are, the first wins."""
    packages: Mapping[str, str]
    """Version by normal name."""


def probe_host(path: Path) -> HostPython:
    """Ask an interpreter, which may be that of a virtual environment.

    Raises:
        UsageError: It is no interpreter, or gives no answer.
    """
    asked = f"--python {str(path)!r}"
    if not path.is_file() or not os.access(path, os.X_OK):
        raise UsageError(f"{asked}: not a Python interpreter; give one such as /usr/bin/python3")
    try:
        done = subprocess.run(
            [path, "-c", _QUESTION],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            # The current directory is on the path of `-c`: a checkout there is not an install.
            cwd="/",
            # What only this session sees, the engine will not see.
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        answer = json.loads((done.stdout.splitlines() or [""])[-1])
        return HostPython(
            path=path,
            version=answer["version"],
            directories=tuple(answer["directories"]),
            packages={
                canonicalize_name(name): version
                for name, version in answer["packages"].items()
                if name != "null"
            },
        )
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{asked}: not a working Python interpreter: {error}") from error
