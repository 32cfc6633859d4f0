"""Short questions to a server's HTTP interface; the load itself goes through the load client."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Answer", "Endpoint", "LongQuestions"]


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of a response."""

    status: int
    text: str

    @property
    def ok(self) -> bool:
        """Whether the status is 200."""
        return self.status == http.client.OK

    def json(self) -> Any:
        """Decode the body; None if it is not JSON."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's base URL, without a trailing slash."""

    url: str
    api_key: str | None = field(default=None, repr=False)

    def get(self, path: str, *, timeout_s: float = 5.0) -> Answer:
        """Ask for `path`; raise OSError (timeouts included) where no answer comes."""
        with closing(self._connection(timeout_s)) as connection:
            return self._exchange(connection, "GET", path)

    def post(self, path: str, *, timeout_s: float = 5.0) -> Answer:
        """Send an empty body to `path`; raise OSError where no answer comes."""
        with closing(self._connection(timeout_s)) as connection:
            return self._exchange(connection, "POST", path)

    def _connection(self, timeout_s: float | None) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        connect = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        return connect(parts.netloc, timeout=timeout_s)

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any = None
    ) -> Answer:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        data = None if body is None else json.dumps(body, separators=(",", ":"))
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, urlsplit(self.url).path + path, body=data, headers=headers)
            response = connection.getresponse()
            return Answer(response.status, response.read().decode("utf-8", errors="replace"))
        except http.client.HTTPException as error:
            raise OSError(f"no valid HTTP answer ({type(error).__name__})") from error


@dataclass(slots=True)
class LongQuestions:
    """Questions whose answers may take long, asked from several threads and ended together."""

    endpoint: Endpoint
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: set[socket.socket] = field(default_factory=set)
    _aborted: bool = False

    def post(self, path: str, body: Any) -> Answer:
        """Send `body` as JSON; raise OSError where no answer comes, or after `abort`."""
        with closing(self.endpoint._connection(None)) as connection:  # noqa: SLF001 - of this module
            connection.connect()
            # A socket is forgotten by its connection when the server says that it will close it.
            used = connection.sock
            with self._lock:
                if self._aborted:
                    raise OSError("given up")
                self._open.add(used)
            try:
                return self.endpoint._exchange(connection, "POST", path, body)  # noqa: SLF001
            finally:
                with self._lock:
                    self._open.discard(used)

    def abort(self) -> None:
        """Make every question fail at once, those to come as well."""
        with self._lock:
            self._aborted = True
            for used in self._open:
                with suppress(OSError):
                    used.shutdown(socket.SHUT_RDWR)
