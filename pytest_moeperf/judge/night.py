"""How sure a verdict has to be among all the gates of a session."""

from __future__ import annotations

__all__ = ["Night", "Q"]

Q = 0.03
"""Expected share of false ones among a session's regressions; with no regression at all, the
chance of any: less than one night of thirty."""


class Night:
    """False-discovery control over gates that are judged one after the other.

    A verdict is said in its test, before the last p is known, so the rule of Benjamini and Hochberg
    cannot be used. LOND (Javanmard and Montanari 2018) needs the past alone: every gate has a share
    of `q`, times one more than the regressions found so far. The shares are settled beforehand, and
    however many gates are judged, they add up to `q` at most. It holds under positive dependence
    (Zrnic, Ramdas and Jordan 2021), such as between metrics of one cell, and whatever gate waits
    for its verdict: no limit is above its share times the regressions at the end, itself included,
    which is enough (Blanchard and Roquain 2008).
    """

    def __init__(self, gates: int, *, q: float = Q) -> None:
        """Plan a session of `gates` gates; one that judges more spends the last share on them."""
        self.gates = gates
        self.q = q
        self.taken = 0
        """Gates that have their shares."""
        self.rejected = 0

    def take(self, gates: int) -> tuple[float, ...]:
        """The shares of the next `gates` gates, which no other gate will have."""
        numbers = range(self.taken + 1, self.taken + 1 + gates)
        self.taken += gates
        return tuple(self._share(number) for number in numbers)

    def limit(self, share: float) -> float:
        """The p that a gate must not exceed to be called a regression now."""
        return share * (self.rejected + 1)

    def _share(self, number: int) -> float:
        """What the gate of this number, from 1 on, has of `q`.

        All but the last planned one have an equal share. That one and those beyond the plan have
        1/2, 1/6, 1/12 … of the share that is left: 1/(k(k + 1)) adds up to 1.
        """
        planned = max(self.gates, 1)
        equal = self.q / planned
        k = number - planned + 1
        return equal if k < 1 else equal / (k * (k + 1))

    def note(self, rejected: bool) -> None:  # noqa: FBT001 - the one thing there is to note
        """Take in a gate's final verdict."""
        self.rejected += rejected
