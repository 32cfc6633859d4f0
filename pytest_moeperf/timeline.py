"""Where the time of a session goes."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_moeperf.records import ServerSpec

__all__ = ["Life", "Phase", "TimeSpent", "Timeline"]

Phase = Literal["starting", "warm-up", "measuring", "waiting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSpent:
    """Where the time of a session went, in seconds, and how often a server was started."""

    starting_s: float = 0.0
    """From the start of a server's process until it was ready."""
    warmup_s: float = 0.0
    measuring_s: float = 0.0
    stopping_s: float = 0.0
    waiting_s: float = 0.0
    """For other sessions, for GPUs, and for a machine that others left alone."""
    starts: int = 0
    specs: int = 0
    """Distinct ones among the servers that were started."""

    def __add__(self, other: TimeSpent) -> TimeSpent:
        """Both together, as of two processes that measured side by side."""
        names = [item.name for item in fields(self)]
        return TimeSpent(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True, slots=True)
class Life:
    """One start of a server."""

    spec: ServerSpec
    startup_s: float
    stopping_s: float
    """0 while it runs."""


@dataclass(slots=True)
class Timeline:
    """Adds up the seconds of each phase."""

    clock: Callable[[], float]
    seconds: defaultdict[Phase, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Count as long as the block takes, however it ends."""
        began_s = self.clock()
        try:
            yield
        finally:
            self.seconds[phase] += self.clock() - began_s

    def spent(self, lives: Iterable[Life]) -> TimeSpent:
        """All together, with what starting and stopping these servers took."""
        every = list(lives)
        return TimeSpent(
            starting_s=self.seconds["starting"] + sum(life.startup_s for life in every),
            warmup_s=self.seconds["warm-up"],
            measuring_s=self.seconds["measuring"],
            stopping_s=sum(life.stopping_s for life in every),
            waiting_s=self.seconds["waiting"],
            starts=len(every),
            specs=len({life.spec for life in every}),
        )
