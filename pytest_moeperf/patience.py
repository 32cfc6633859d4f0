"""How long a session waits for a machine that others slow down, and how often it looks again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Patience"]

PAUSES_S = (0.0, 15.0, 30.0, 45.0)
"""Before each further look. A neighbour on the same host slows a machine for a minute or so; an
engine that got slower is slow every time."""


@dataclass(slots=True)
class Patience:
    """A session's time for waiting, so that a really slow engine does not cost hours."""

    left_s: float = 180.0
    sleep: Callable[[float], None] = time.sleep

    def spend(self, pause_s: float) -> bool:
        """Sleep for that long; False, at once, if the patience left is shorter."""
        if pause_s > self.left_s:
            return False
        if pause_s:
            self.sleep(pause_s)
            self.left_s -= pause_s
        return True

    def looks(self, announce: Callable[[str, str], None]) -> Iterator[int]:
        """Yield the number of each further look, from 2 on, after its pause.

        The second look is always there; the others last as long as the session's patience.
        """
        for number, pause_s in enumerate(PAUSES_S, start=2):
            if 0 < pause_s <= self.left_s:
                announce(f"pausing {pause_s:.0f} s before look {number} at a doubtful figure", "")
            if not self.spend(pause_s):
                return
            yield number
