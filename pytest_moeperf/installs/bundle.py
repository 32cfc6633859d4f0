"""Bundles: the wheels of an engine that a machine without a network lacks, in a directory.

`bundle.json` says what is in it, for which Python, and what the machine must have by itself.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet
from packaging.utils import InvalidName, canonicalize_name
from packaging.version import InvalidVersion, Version

from pytest_moeperf.enginespec import DISTRIBUTIONS
from pytest_moeperf.errors import InstallError, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from pytest_moeperf.installs.lockfile import EngineLock, Pin

__all__ = [
    "Bundle",
    "HostPackage",
    "LeftOut",
    "Selection",
    "Wheel",
    "read_bundle",
    "read_host_packages",
    "select",
    "write_bundle",
]

_FILE = "bundle.json"
_SCHEMA = 1
_PLAIN = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+!_-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One file of a bundle."""

    name: str
    version: str
    file: str
    """Its name in the bundle's directory."""
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPackage:
    """A package of the lock that is not packed because the machine has it."""

    name: str
    locked: str
    """The version that the lock pins."""
    listed: str | None
    """The version that the machine is said to have; None where any was accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A package of the lock that is not packed although the machine may lack it."""

    name: str
    locked: str
    pattern: str
    """By which it was left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a bundle says of itself."""

    engine: str
    distribution: str
    version: str
    device: str
    python: str
    """`3.12`"""
    platform: str
    """`linux-x86_64`"""
    glibc: str
    """The newest that a wheel may ask for: `2.35`."""
    lock_sha256: str
    wheels: tuple[Wheel, ...]
    on_host: tuple[HostPackage, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def label(self) -> str:
        """`vllm==0.24.0`."""
        return f"{self.distribution}=={self.version}"

    @property
    def size_bytes(self) -> int:
        """Of all wheels."""
        return sum(wheel.size_bytes for wheel in self.wheels)

    @property
    def sha256(self) -> str:
        """Digest of everything it says, the hashes of its wheels among it."""
        return hashlib.sha256(_dumps(self).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What becomes of each package of a lock."""

    packed: tuple[Pin, ...]
    on_host: tuple[HostPackage, ...]
    left_out: tuple[LeftOut, ...]


def select(
    lock: EngineLock,
    pins: Sequence[Pin],
    *,
    host_has: Mapping[str, str | None],
    pack: Collection[str],
    leave_out: Sequence[str],
) -> Selection:
    """Decide what is packed.

    Args:
        lock: What `pins` are of.
        pins: Every package of the lock.
        host_has: Version by name, as `read_host_packages` returns them; a package with a version
            that does not meet its pin is packed.
        pack: Names that are packed although the machine has them.
        leave_out: Shell patterns of names that are not packed although it may lack them.

    Raises:
        UsageError: A name or a pattern means no package of the lock, or the engine itself.
    """
    wanted = {canonicalize_name(name): name for name in pack}
    names = [pin.name for pin in pins]
    if unknown := [wanted[name] for name in wanted if name not in names]:
        raise UsageError(f"--pack {unknown[0]!r}: the lock of {lock.label} has no such package")
    for pattern in leave_out:
        _check_pattern(lock, pattern, names)
    packed, on_host, left_out = [], [], []
    for pin in pins:
        listed = host_has.get(pin.name)
        matching = [each for each in leave_out if fnmatch.fnmatchcase(pin.name, each)]
        if pin.name in wanted or pin.name == canonicalize_name(lock.distribution):
            packed.append(pin)
        elif pin.name in host_has and (listed is None or _meets(listed, pin)):
            on_host.append(HostPackage(name=pin.name, locked=pin.version, listed=listed))
        elif matching:
            left_out.append(LeftOut(name=pin.name, locked=pin.version, pattern=matching[0]))
        else:
            packed.append(pin)
    return Selection(packed=tuple(packed), on_host=tuple(on_host), left_out=tuple(left_out))


def _check_pattern(lock: EngineLock, pattern: str, names: Sequence[str]) -> None:
    given = f"--leave-out {pattern!r}"
    matching = fnmatch.filter(names, pattern)
    if not matching:
        raise UsageError(f"{given}: matches no package in the lock of {lock.label}")
    if canonicalize_name(lock.distribution) in matching:
        raise UsageError(f"{given}: matches {lock.distribution}, the engine itself")


def _meets(version: str, pin: Pin) -> bool:
    # As pip judges it: a host's 2.11.0+cu130 is a 2.11.0.
    return SpecifierSet(f"=={pin.version}").contains(version, prereleases=True)


def read_host_packages(path: Path) -> dict[str, str | None]:
    """Read what a machine has: a line `NAME` or `NAME==VERSION` each; None is any version.

    Raises:
        UsageError: It cannot be read, or a line is something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UsageError(f"--host-has {str(path)!r}: cannot be read: {reason}") from error
    found: dict[str, str | None] = {}
    for number, line in enumerate(lines, start=1):
        if text := line.partition("#")[0].strip():
            name, version = _host_package(text, place=f"{path}:{number}")
            found[name] = version
    return found


def _host_package(text: str, *, place: str) -> tuple[str, str | None]:
    name, sign, version = (part.strip() for part in text.partition("=="))
    try:
        if sign:
            Version(version)
        return canonicalize_name(name, validate=True), version or None
    except (InvalidName, InvalidVersion):
        raise UsageError(
            f"{place}: {text!r} is neither NAME nor NAME==VERSION; "
            "`pip list --format=freeze` on that machine writes such lines"
        ) from None


def write_bundle(bundle: Bundle, directory: Path) -> None:
    """Write `bundle.json` beside the wheels."""
    (directory / _FILE).write_text(_dumps(bundle), encoding="utf-8")


def read_bundle(directory: Path) -> Bundle:
    """Read what a bundle has, and see that its files are there; their content is not looked at.

    Raises:
        UsageError: There is no bundle in that directory.
        InstallError: It is damaged, or of a version of the format that is not known.
    """
    path = directory / _FILE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"--from {str(directory)!r}: no bundle there: {path}: {error.strerror}; "
            "`moeperf engine bundle` makes one"
        ) from error
    except ValueError as error:
        raise InstallError(f"{path}: not JSON: {error}") from error
    bundle = _parse(value, path)
    absent = [each.file for each in bundle.wheels if not (directory / each.file).is_file()]
    if absent:
        raise InstallError(
            f"{directory}: {len(absent)} of {len(bundle.wheels)} wheels are not there, "
            f"such as {absent[0]}; carry over the whole directory"
        )
    return bundle


def _dumps(bundle: Bundle) -> str:
    return json.dumps({"schema": _SCHEMA, **dataclasses.asdict(bundle)}, indent=2) + "\n"


def _parse(value: Any, path: Path) -> Bundle:
    try:
        if value["schema"] != _SCHEMA:
            raise InstallError(
                f"{path}: bundle format {value['schema']!r}; this version reads {_SCHEMA}. "
                "Make the bundle with the same version of pytest-moeperf"
            )
        rest = {key: item for key, item in value.items() if key != "schema"}
        bundle = Bundle(
            **rest
            | {
                "wheels": tuple(Wheel(**each) for each in rest["wheels"]),
                "on_host": tuple(HostPackage(**each) for each in rest["on_host"]),
                "left_out": tuple(LeftOut(**each) for each in rest["left_out"]),
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InstallError(f"{path}: not what a bundle says of itself: {error}") from error
    _check(bundle, path)
    return bundle


def _check(bundle: Bundle, path: Path) -> None:
    """Refuse what would lead out of a directory, or to an engine that there is no driver for."""
    if DISTRIBUTIONS.get(bundle.distribution) != bundle.engine:
        raise InstallError(
            f"{path}: {bundle.distribution!r} is no build of {bundle.engine!r}; "
            f"known are {', '.join(DISTRIBUTIONS)}"
        )
    said = [bundle.version, bundle.device, bundle.python, bundle.platform, bundle.lock_sha256]
    said += [text for each in bundle.wheels for text in (each.name, each.version, each.file)]
    if odd := [text for text in said if not isinstance(text, str) or not _PLAIN.fullmatch(text)]:
        raise InstallError(f"{path}: not what a bundle says of itself: {odd[0]!r}")
    if odd := [each.file for each in bundle.wheels if not _SHA256.fullmatch(str(each.sha256))]:
        raise InstallError(f"{path}: no SHA-256 of {odd[0]}")
