"""Every error that this project raises on purpose.

::

    MoeperfError
    ├── UsageError              what was typed cannot be done (exit code 2; pytest's own 4)
    │   └── UncountableError    this engine has no way to tell which experts its tokens take
    ├── InstallError            an engine environment or bundle could not be made
    ├── ModelError              a model directory is missing, broken or could not be written
    ├── StorageError            a file could not be read or written
    │   ├── BaselineError       a baseline file is not what it must be
    │   │   └── NewerFormatError    it is of a format that a later pytest-moeperf writes
    │   └── UnwritableError     an output could not be written (exit code 2; pytest's own 1)
    ├── LoadError               the load could not be played to its end
    ├── RoutingError            counts of experts that cannot be true
    └── ServerError             a server process or an attached URL
        ├── ServerStartError    it never became ready
        ├── ServerDiedError     it ended while it was needed
        └── ServerHungError     it runs and makes no progress

Messages are one line: what was given, what is valid, what to do next. `ServerError` adds the
evidence below that line.
"""

from __future__ import annotations


class MoeperfError(Exception):
    """Base of all errors that are shown to a user without a traceback."""

    failed_test: str | None = None
    """The first test that it failed, which shows all of it."""


class UsageError(MoeperfError):
    """A request that cannot be met as typed."""


class UncountableError(UsageError):
    """An engine that has no way to tell which experts its tokens take."""


class InstallError(MoeperfError):
    """An engine environment or bundle that could not be made or read."""


class ModelError(MoeperfError):
    """A model that no server can be started with."""


class StorageError(MoeperfError):
    """A file that could not be read or written; nothing half-written is left."""


class BaselineError(StorageError):
    """A baseline file with wrong content; the message starts with its path."""


class NewerFormatError(BaselineError):
    """A file of a later format than this version reads."""

    def __init__(self, source: str, *, version: int, newest: int) -> None:
        super().__init__(
            f"{source}: its format is version {version}, this tool reads up to "
            f"{newest}: update pytest-moeperf"
        )


class UnwritableError(StorageError):
    """An output that could not be written; what it would have replaced is as it was."""


class LoadError(MoeperfError):
    """A load that could not be played: bad workload for this server, or no answer at all."""


class RoutingError(MoeperfError):
    """Counts of experts that cannot be true, or a placement that cannot be."""


class ServerError(MoeperfError):
    """A server that failed, with the evidence that a reader needs to see why."""

    def __init__(
        self,
        message: str,
        *,
        command: str | None = None,
        exit_code: int | None = None,
        elapsed_s: float | None = None,
        log_tail: tuple[str, ...] = (),
        log_path: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.command = command
        self.exit_code = exit_code
        self.elapsed_s = elapsed_s
        self.log_tail = log_tail
        self.log_path = log_path

    def __str__(self) -> str:
        lines = [self.message]
        if self.command is not None:
            lines.append(f"  command: {self.command}")
        if self.exit_code is not None:
            lines.append(f"  exit code: {self.exit_code}")
        if self.elapsed_s is not None:
            lines.append(f"  after: {self.elapsed_s:.1f} s")
        if self.log_tail:
            lines.append(f"  last {len(self.log_tail)} lines of {self.log_path or 'its log'}:")
            lines.extend(f"    {line}" for line in self.log_tail)
        return "\n".join(lines)


class ServerStartError(ServerError):
    """A server that ended or timed out before it was ready."""


class ServerDiedError(ServerError):
    """A server process that ended while it was in use."""


class ServerHungError(ServerError):
    """A server that accepts requests and produces no tokens."""
