"""An environment from a bundle: its wheels, and behind them what the host's Python has."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet

from pytest_moeperf.errors import InstallError, StorageError
from pytest_moeperf.installs.bundle import read_bundle
from pytest_moeperf.installs.child import ToolError
from pytest_moeperf.installs.environment import FATAL, Recipe, Uv
from pytest_moeperf.installs.hostpython import probe_host
from pytest_moeperf.installs.lockfile import machine

if TYPE_CHECKING:
    from pytest_moeperf.installs.bundle import Bundle, HostPackage
    from pytest_moeperf.installs.hostpython import HostPython

__all__ = ["bundle_recipe"]

_NAMED_AT_MOST = 20
_LINK = "moeperf-host.pth"
"""Read by Python at its start: lines that begin with `import` are executed."""


def bundle_recipe(directory: Path, *, python: Path) -> Recipe:
    """Describe the environment that has the wheels in `directory` and sees `python`'s packages.

    Raises:
        UsageError: There is no bundle in the directory, or `python` is no interpreter.
        InstallError: The bundle is damaged, or not for this machine or this Python.
    """
    bundle = read_bundle(directory)
    host = probe_host(python)
    _check_host(bundle, host)

    def populate(target: Path, uv: Uv) -> None:
        _create(bundle, host, target, uv)
        _install(bundle, directory, target, uv)
        _link(host, target)

    return Recipe(
        engine=bundle.engine,
        distribution=bundle.distribution,
        version=bundle.version,
        device=bundle.device,
        lock_sha256=bundle.lock_sha256,
        directory_name=_directory_name(bundle, host),
        host=host.path,
        populate=populate,
    )


def _directory_name(bundle: Bundle, host: HostPython) -> str:
    """Another bundle or another Python behind it makes another environment."""
    digest = hashlib.sha256(f"{bundle.sha256} {host.path}".encode()).hexdigest()
    return f"{bundle.distribution}-{bundle.version}-bundle-{digest[:8]}"


def _check_host(bundle: Bundle, host: HostPython) -> None:
    if (here := machine()) != bundle.platform:
        raise InstallError(f"{bundle.label}: the bundle is for {bundle.platform}, this is {here}")
    if host.version != bundle.python:
        raise InstallError(
            f"{bundle.label}: the bundle is for Python {bundle.python}, {host.path} is "
            f"{host.version}; name another one with --python"
        )
    lacks = [each.name for each in bundle.on_host if each.name not in host.packages]
    differs = [
        f"{each.name} {host.packages[each.name]} instead of {each.locked}"
        for each in bundle.on_host
        if each.name in host.packages and not _suffices(host.packages[each.name], each)
    ]
    if lacks or differs:
        missing = "; ".join(
            f"it {verb} {_enumerate(names)}"
            for verb, names in (("lacks", lacks), ("has", differs))
            if names
        )
        raise InstallError(
            f"{bundle.label}: not all that the bundle counts on is in {host.path}: {missing}. "
            "Install it there, or make the bundle with a --host-has that is true of this machine"
        )


def _enumerate(names: list[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _suffices(version: str, package: HostPackage) -> bool:
    # Where no version was listed, its maker took any.
    pinned = SpecifierSet(f"=={package.locked}")
    return package.listed is None or pinned.contains(version, prereleases=True)


def _create(bundle: Bundle, host: HostPython, target: Path, uv: Uv) -> None:
    try:
        uv(
            *("venv", "--no-project", "--no-config", "--offline"),
            *("--python", str(host.path), str(target)),
            environ=_environ(),
        )
    except ToolError as failure:
        raise InstallError(
            f"{bundle.label}: no environment with {host.path}: {failure}"
        ) from failure


def _install(bundle: Bundle, directory: Path, target: Path, uv: Uv) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch, "wanted.txt")
        wanted.write_text(
            "".join(
                f"{each.name} @ {(directory / each.file).as_uri()} --hash=sha256:{each.sha256}\n"
                for each in bundle.wheels
            ),
            encoding="utf-8",
        )
        try:
            uv(
                *("pip", "install", "--no-config", "--python", str(target / "bin" / "python")),
                *("--offline", "--no-index", "--no-deps", "--compile-bytecode"),
                *("--require-hashes", "--requirements", str(wanted)),
                environ=_environ(),
            )
        except ToolError as failure:
            if any(text in str(failure) for text in FATAL):
                raise StorageError(f"{target}: {failure}") from failure
            raise InstallError(
                f"{bundle.label}: the bundle {directory} could not be installed: {failure}. "
                "Carry it over again, or make it anew with `moeperf engine bundle`"
            ) from failure


def _link(host: HostPython, target: Path) -> None:
    """Let the environment see what the host has, its own packages first."""
    (packages,) = target.glob("lib/python*/site-packages")
    lines = (f"import site; site.addsitedir({path!r})\n" for path in host.directories)
    (packages / _LINK).write_text("".join(lines), encoding="utf-8")


def _environ() -> dict[str, str]:
    """Ours without the settings of uv that name places or versions: the bundle has everything."""
    kept = {"UV_CACHE_DIR", "UV_LINK_MODE", "UV_CONCURRENT_INSTALLS"}
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("UV_") or name in kept
    }
