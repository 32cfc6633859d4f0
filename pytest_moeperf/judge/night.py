"""How sure a verdict has to be among all the gates of a session."""

from __future__ import annotations

__all__ = ["Night", "Q"]

Q = 0.03
"""Expected share of false ones among a session's regressions; with no regression at all, the
chance of any: less than one night of thirty."""


class Night:
    """False-discovery control over gates that are judged one after the other.

    A verdict is said in its test, before the last p is known, so the rule of Benjamini and Hochberg
    cannot be used. LOND (Javanmard and Montanari 2018) needs the past alone: every gate has an
    equal share of `q`, times one more than the regressions found so far. It holds under positive
    dependence (Zrnic, Ramdas and Jordan 2021), such as between metrics of one cell.
    """

    def __init__(self, gates: int, *, q: float = Q) -> None:
        """Plan a session of `gates` gates; one that judges more shares `q` among these."""
        self.gates = gates
        self.q = q
        self.judged = 0
        self.rejected = 0

    @property
    def limit(self) -> float:
        """The p that the next gate must not exceed to be called a regression."""
        return self.q * (self.rejected + 1) / max(self.gates, self.judged + 1)

    def note(self, rejected: bool) -> None:  # noqa: FBT001 - the one thing there is to note
        """Take in a gate's final verdict."""
        self.judged += 1
        self.rejected += rejected
