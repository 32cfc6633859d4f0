"""Where packages come from: what the user told pip, handed on to uv."""

from __future__ import annotations

import configparser
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.errors import InstallError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "PackageSources",
    "pip_config_files",
    "pip_environment",
    "pip_sources",
    "uv_environment",
]

_LOCK_ALONE_DECIDES = (
    "UV_BUILD_CONSTRAINT",
    "UV_CONSTRAINT",
    "UV_EXCLUDE_NEWER",
    "UV_OVERRIDE",
    "UV_SYSTEM_PYTHON",
)
"""Settings of uv that would change what a lock installs, or where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSources:
    """Indexes and links as pip knows them."""

    index: str | None = None
    """Replaces PyPI."""
    extra_indexes: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    """`--find-links`: directories with wheels, or pages that link to some."""
    offline: bool = False
    """`--no-index`: only the links count."""
    certificates: str | None = None
    """CA bundle of the network that the machine is in."""


def pip_config_files(environ: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """List pip's configuration files, the strongest last.

    They are read without pip, which an environment made by uv does not have.
    """
    home = Path(environ.get("HOME", "~")).expanduser()
    config_home = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    shared = (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
    machine = (
        *(Path(directory) / "pip" / "pip.conf" for directory in reversed(shared)),
        Path("/etc/pip.conf"),
    )
    user = (home / ".pip" / "pip.conf", config_home / "pip" / "pip.conf")
    environment = Path(sys.prefix) / "pip.conf"
    named = environ.get("PIP_CONFIG_FILE")
    # Both exceptions are pip's own: the null device switches every file off, a named file the
    # user's.
    if named == os.devnull:
        return ()
    if named and Path(named).exists():
        return (*machine, environment, Path(named))
    return (*machine, *user, environment)


def pip_sources(
    environ: Mapping[str, str] = os.environ, files: Iterable[Path] | None = None
) -> PackageSources:
    """Read what pip is configured with, in files and in `PIP_*` variables.

    Raises:
        InstallError: A file is not in pip's format.
    """
    settings: dict[str, str] = {}
    for path in pip_config_files(environ) if files is None else files:
        settings |= _read(path)
    for name in ("index-url", "extra-index-url", "find-links", "no-index", "cert"):
        if value := environ.get(f"PIP_{name.upper().replace('-', '_')}"):
            settings[name] = value
    return PackageSources(
        index=settings.get("index-url"),
        extra_indexes=tuple(settings.get("extra-index-url", "").split()),
        links=tuple(
            link for entry in settings.get("find-links", "").split() if (link := _link(entry))
        ),
        offline=settings.get("no-index", "").lower() in {"1", "true", "yes", "on", "y", "t"},
        certificates=settings.get("cert"),
    )


def _read(path: Path) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InstallError(f"{path}: pip's configuration is not readable: {reason}") from error
    return {
        key.replace("_", "-"): value.strip()
        for section in ("global", "install")
        if parser.has_section(section)
        for key, value in parser.items(section)
    }


def _link(entry: str) -> str | None:
    if "://" in entry:
        return entry
    directory = Path(entry).expanduser().absolute()
    # pip only warns of a directory that is gone, uv stops.
    return str(directory) if directory.exists() else None


def uv_environment(
    sources: PackageSources,
    *,
    environ: Mapping[str, str] = os.environ,
    further_index: str | None = None,
) -> dict[str, str]:
    """Build the environment that makes uv look where pip would, and in `further_index`.

    Variables instead of arguments, since a URL with a token would show in the process list.
    """
    result = {key: value for key, value in environ.items() if key not in _LOCK_ALONE_DECIDES}
    indexes = [
        *result.get("UV_INDEX", "").split(),
        *sources.extra_indexes,
        *([further_index] if further_index else []),
    ]
    links = [*filter(None, result.get("UV_FIND_LINKS", "").split(",")), *sources.links]
    if sources.index and "UV_INDEX_URL" not in result:
        result.setdefault("UV_DEFAULT_INDEX", sources.index)
    if indexes:
        result["UV_INDEX"] = " ".join(dict.fromkeys(indexes))
    if links:
        result["UV_FIND_LINKS"] = ",".join(dict.fromkeys(links))
    if sources.certificates:
        result.setdefault("SSL_CERT_FILE", sources.certificates)
    return result


def pip_environment(
    sources: PackageSources,
    *,
    environ: Mapping[str, str] = os.environ,
    further_index: str | None = None,
) -> dict[str, str]:
    """Build the environment that makes pip look in `further_index` beside where it would."""
    result = dict(environ)
    if further_index:
        # The variable replaces what files say.
        result["PIP_EXTRA_INDEX_URL"] = " ".join((*sources.extra_indexes, further_index))
    return result
