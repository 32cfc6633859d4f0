"""Standard output and error of a command: what cannot be written is told in one line, if at all."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO, cast

from pytest_moeperf.errors import UsageError
from pytest_moeperf.files import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["UnreadError", "checked_output", "forgiving_messages"]


class UnreadError(Exception):
    """Nobody reads standard output any more. No OSError, which another file could have raised."""


@contextlib.contextmanager
def checked_output() -> Iterator[None]:
    """Have all that is printed written by the end.

    Raises:
        UsageError: Standard output is closed, or cannot be written: 1 would say of a command that
            what it checks failed.
        UnreadError: Nobody reads it any more.
    """
    # What Python makes of a closed one.
    if sys.stdout is None:
        raise UsageError("standard output is closed: send it to a file, a pipe or /dev/null")
    _take_any_character(sys.stdout)
    output, forgiving = cast("TextIO", _Output(sys.stdout)), _Stream(sys.stdout)
    with contextlib.redirect_stdout(output):
        try:
            yield
        except (Exception, KeyboardInterrupt):
            # That is what is told, not what became of the output.
            forgiving.flush()
            raise
        finally:
            # Now, and not at exit, where it could no longer be told in one line.
            output.flush()


@contextlib.contextmanager
def forgiving_messages() -> Iterator[None]:
    """Let messages that cannot be written go nowhere; the exit code still tells."""
    with contextlib.ExitStack() as stack:
        stream = sys.stderr
        if stream is None:
            stream = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123 - a device
        stack.enter_context(contextlib.redirect_stderr(cast("TextIO", _Stream(stream))))
        yield


def _take_any_character(stream: TextIO) -> None:
    """Print `?` for what an encoding lacks, such as ASCII; standard error has escapes anyway."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors in {"strict", "surrogateescape"}:
        stream.reconfigure(errors="replace")


class _Stream:
    """A text stream whose failures can be told from those of other files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._fail(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:  # noqa: ARG002 - a subclass tells
        # Python itself writes at exit what is still to be written.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


class _Output(_Stream):
    def _fail(self, error: OSError) -> None:
        super()._fail(error)
        if isinstance(error, BrokenPipeError):
            raise UnreadError from error
        raise UsageError(f"cannot write standard output: {reason_of(error)}") from error
