"""Where load is sent, and what is served there."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_moeperf.completions import error_message
from pytest_moeperf.endpoint import Endpoint
from pytest_moeperf.errors import UsageError
from pytest_moeperf.loadgen.job import Address

if TYPE_CHECKING:
    from pytest_moeperf.endpoint import Answer

__all__ = [
    "ServedModel",
    "Target",
    "check_url",
    "listed_models",
    "request_head",
    "resolve",
    "served_models",
]

ANSWER_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 30.0
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """Where load is sent."""

    url: str
    """Base URL without `/v1` and without a trailing slash."""
    model: str
    """Name that the server serves the model by."""
    api_key: str | None = field(default=None, repr=False)
    continuous_usage: bool = False
    """Ask for a running token count in every chunk, for a server without `return_token_ids`."""
    include_connect: bool = False
    """Give every request a connection of its own and count the set-up into its latencies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model that a server offers."""

    name: str
    max_model_len: int | None
    """Context in tokens, where the server tells it."""


def served_models(url: str, *, api_key: str | None = None) -> tuple[ServedModel, ...]:
    """Ask a server what it serves; UsageError says what is wrong with `url` in one line."""
    check_url(url)
    try:
        answer = Endpoint(url, api_key).get("/v1/models", timeout_s=ANSWER_TIMEOUT_S)
    except OSError as error:
        raise UsageError(
            f"no server at {url}: {_describe(error, url)}; start one, or check host and port"
        ) from error
    if answer.status == http.client.NOT_FOUND:
        raise UsageError(
            f"{url} is no server that streams /v1/completions: its /v1/models answers HTTP 404; "
            "check host, port and path"
        )
    if not answer.ok:
        reason = error_message(answer.text.encode())
        raise UsageError(f"{url}/v1/models answers HTTP {answer.status}: {reason}")
    models = listed_models(answer)
    if models is None:
        raise UsageError(
            f"{url}/v1/models does not list models; is it an OpenAI-compatible server?"
        )
    return models


def listed_models(answer: Answer) -> tuple[ServedModel, ...] | None:
    """The models that an answer to `/v1/models` lists; None if it is of another kind."""
    body = answer.json()
    cards = body.get("data") if answer.ok and isinstance(body, dict) else None
    if not isinstance(cards, list):
        return None
    return tuple(
        ServedModel(name=card["id"], max_model_len=card.get("max_model_len"))
        for card in cards
        if isinstance(card, dict) and "id" in card
    )


def resolve(url: str) -> Address:
    """Find the address that takes connections; ConnectionError says why there is none."""
    check_url(url)
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    failure: OSError | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectionError(_describe(error, url)) from error
    for family, _, _, _, sockaddr in found:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as attempt:
                attempt.settimeout(CONNECT_TIMEOUT_S)
                attempt.connect(sockaddr)
        except OSError as error:
            failure = error
            continue
        return Address(
            family=family,
            sockaddr=sockaddr,
            name=f"{host}:{port}",
            tls_host=host if parts.scheme == "https" else None,
        )
    reason = _describe(failure, url) if failure else f"host {host} has no address"
    raise ConnectionError(reason) from failure


def request_head(target: Target) -> bytes:
    """The head of every request, with `%d` for the length of its body."""
    parts = urlsplit(target.url)
    lines = [
        f"POST {parts.path}/v1/completions HTTP/1.1",
        f"Host: {parts.netloc.rpartition('@')[2]}",
        "Content-Type: application/json",
        "Accept: text/event-stream",
        "Accept-Encoding: identity",
        "User-Agent: pytest-moeperf",
    ]
    if target.api_key is not None:
        if not (target.api_key.isascii() and target.api_key.isprintable()):
            raise UsageError("the API key holds characters that no HTTP header can carry")
        lines.append(f"Authorization: Bearer {target.api_key}")
    text = "\r\n".join(lines).replace("%", "%%")
    return text.encode() + b"\r\nContent-Length: %d\r\n\r\n"


def check_url(url: str) -> None:
    """Raise UsageError for what cannot be a server's URL."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in DEFAULT_PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"'{url}' is not a server's URL; give one such as http://127.0.0.1:8000")


def _describe(error: OSError, url: str) -> str:
    """One short phrase for what kept a connection from being made."""
    parts = urlsplit(url)
    if isinstance(error, socket.gaierror):
        return f"host {parts.hostname} is not known"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS: {error.reason or error}"
    if error.errno:
        port = parts.port or DEFAULT_PORTS[parts.scheme]
        return f"cannot connect to {parts.hostname}:{port} ({os.strerror(error.errno)})"
    return str(error)
