"""TLS in memory: its records are read, and stamped, like any other data.

Loaded only for servers that speak it.
"""

from __future__ import annotations

import ssl

__all__ = ["Channel", "client_context"]

READ_BYTES = 65_536


class Channel:
    """One side of a TLS connection; errors are ConnectionError with one phrase."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self.established = False
        self._host = host
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def shake_hands(self) -> None:
        """Go on with the handshake as far as what has arrived allows."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as error:
            raise ConnectionError(
                f"the certificate of {self._host} is not trusted: {error.verify_message}"
            ) from error
        except ssl.SSLError as error:
            raise ConnectionError(f"no TLS with {self._host}: {error.reason or error}") from error
        else:
            self.established = True

    def outgoing(self) -> bytes:
        """What is to be sent now."""
        return self._outgoing.read()

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """The records that carry `data`."""
        self._tls.write(data)
        return self._outgoing.read()

    def decrypt(self, records: bytes) -> bytes:
        """The data of what has arrived; empty while the handshake lasts."""
        self._incoming.write(records)
        if not self.established:
            self.shake_hands()
        pieces = []
        try:
            while self.established and (piece := self._tls.read(READ_BYTES)):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise ConnectionError(f"TLS broke: {error.reason or error}") from error
        return b"".join(pieces)


def client_context() -> ssl.SSLContext:
    """Trust what the system trusts, or what the variable SSL_CERT_FILE names."""
    return ssl.create_default_context()
