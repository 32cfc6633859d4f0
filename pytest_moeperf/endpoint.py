"""Short questions to a server's HTTP interface; the load itself goes through the load client."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Answer", "Endpoint"]


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
        return self._request("GET", path, timeout_s)

    def post(self, path: str, *, timeout_s: float = 5.0) -> Answer:
        """Send an empty body to `path`; raise OSError where no answer comes."""
        return self._request("POST", path, timeout_s)

    def _request(self, method: str, path: str, timeout_s: float) -> Answer:
        parts = urlsplit(self.url)
        connect = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        connection = connect(parts.netloc, timeout=timeout_s)
        try:
            headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
            connection.request(method, parts.path + path, headers=headers)
            response = connection.getresponse()
            return Answer(response.status, response.read().decode("utf-8", errors="replace"))
        except http.client.HTTPException as error:
            raise OSError(f"no valid HTTP answer ({type(error).__name__})") from error
        finally:
            connection.close()
