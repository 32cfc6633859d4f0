"""Routers that use only a few of their experts, and experts that no token takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_moeperf.balance.measures import shares

if TYPE_CHECKING:
    import numpy.typing as npt

    from pytest_moeperf.balance.counts import ExpertCounts

__all__ = ["ALERT", "HEALTHY", "Collapse", "collapses", "dead_experts"]

HEALTHY = 0.20
"""Published: each expert within ±20 % of uniform is healthy."""
ALERT = 0.50
"""Published: over 50 % from uniform needs somebody to look."""

MOST = 0.80
"""Published: one or two experts with over 80 % of the tokens are a collapse."""
ONE_TAKES, OTHERS_GET = 0.40, 0.05
"""Published: one expert with over 40 % while others have under 5 % is a collapse."""

FEWEST_EXPECTED = 20
"""Tokens that an expert of a uniform router would have had: fewer say nothing of one with none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collapse:
    """A layer whose router has collapsed."""

    layer: int
    experts: tuple[int, ...]
    """Those that take the tokens, the busiest first."""
    share: float
    """Of the layer's load, that they have together."""
    limit: float
    """The share that is a collapse."""

    @property
    def message(self) -> str:
        """For a reader who has not met the word."""
        noun, verb = ("experts", "take") if len(self.experts) > 1 else ("expert", "takes")
        return (
            f"layer {self.layer} has collapsed: {noun} {', '.join(map(str, self.experts))} {verb} "
            f"{100 * self.share:.1f} % of its tokens (over {100 * self.limit:.0f} % is a collapse)"
        )


def collapses(counts: ExpertCounts) -> tuple[Collapse, ...]:
    """The layers where few experts do the work, by either of the two published rules.

    Shares are of tokens × k, so that uniform is 1 ÷ E as in the published figures.

    - The two busiest experts have over 80 %. An expert has at most 1 ÷ k, so with k > 2 the rule
      looks at the k busiest; and never at over half of the experts, for these are not few.
    - The busiest has over 40 % while at least half of the others have under 5 % each. All others
      cannot be meant: with eight experts and 41 % on one, they have 8 % on average. From k = 3 on
      none can have over 40 %.
    """
    found = []
    for layer, share in zip(counts.layers, shares(counts.counts), strict=True):
        for experts, limit in ((_few(share, counts.top_k), MOST), (_one(share), ONE_TAKES)):
            taken = float(share[experts].sum())
            if taken > limit:
                busiest = tuple(int(expert) for expert in experts)
                found.append(Collapse(layer=layer, experts=busiest, share=taken, limit=limit))
                break
    return tuple(found)


def _few(share: npt.NDArray[np.float64], top_k: int) -> npt.NDArray[np.intp]:
    """The experts that must not have most of the tokens; one alone where it has them by itself."""
    most = min(max(2, top_k), len(share) // 2)
    busiest = np.argsort(-share, kind="stable")[:most]
    return busiest[:1] if most and share[busiest[0]] > MOST else busiest


def _one(share: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """The busiest expert, where at least half of the others have next to nothing."""
    busiest, others = np.argsort(-share, kind="stable")[:1], len(share) - 1
    idle = int((share < OTHERS_GET).sum())
    return busiest if others and 2 * idle >= others else busiest[:0]


def dead_experts(counts: ExpertCounts) -> tuple[tuple[int, int], ...] | None:
    """(layer, expert) of those that no token took.

    None where too few tokens were counted to tell: where an expert of a uniform router would have
    had fewer than 20, tokens × k ÷ E.
    """
    if counts.tokens * counts.top_k < FEWEST_EXPECTED * counts.experts:
        return None
    unused = np.argwhere(counts.counts == 0)
    return tuple((counts.layers[row], int(expert)) for row, expert in unused)
