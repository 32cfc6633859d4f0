"""Whether routes that an engine told are those of the model, by a forward pass of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from pytest_moeperf.errors import RoutingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["OtherChoice", "RouteCheck"]

TWO_LOGITS = 2
"""Of the two experts that are taken for each other, one may be rounded up and the other down."""
LEAST_DECIDED = 0.25
"""Share of a layer's choices that rounding must leave decided for the layer to be checked at all;
of `tiny-moe-balanced` it was 0.39 to 0.92."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherChoice:
    """A token for which the engine took other experts than the forward pass would."""

    token: int
    """By its place in all sequences, one after the other."""
    layer: int
    told: tuple[int, ...]
    computed: tuple[int, ...]
    """Both in ascending order."""
    shortfall: float
    """By how much the worst expert that was taken in vain is below the best that was left out, as
    exact logits."""
    bound: float
    """What rounding may make up for."""

    @property
    def by_rounding(self) -> bool:
        """Whether 16-bit arithmetic explains it."""
        return self.shortfall <= self.bound

    def __str__(self) -> str:
        """The choice as a clause."""
        return (
            f"token {self.token}, layer {self.layer}: told experts {list(self.told)}, computed "
            f"{list(self.computed)}, {self.shortfall:.4f} apart where rounding is up to "
            f"{self.bound:.4f}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteCheck:
    """Routes held against logits that were computed given all choices of earlier layers."""

    tokens: int
    choices: int
    """Tokens × layers with a router."""
    decided: tuple[int, ...]
    """By layer: choices that rounding cannot change, so that another one would be an error."""
    others: tuple[OtherChoice, ...]
    """Where the experts differ."""
    rounding: tuple[float, ...]
    """By layer: the most that 16-bit arithmetic moved a logit by."""

    @classmethod
    def of(
        cls,
        routes: npt.NDArray[np.integer],
        *,
        layers: Sequence[int],
        exact: npt.NDArray[np.floating],
        rounded: npt.NDArray[np.floating],
    ) -> Self:
        """Compare `routes`, [tokens, layers of the model, k].

        `exact` and `rounded` are [tokens, `layers`, experts]: the logits in 32-bit and in 16-bit
        arithmetic. Rounding may make up for twice the most that it moved a logit of the layer by.
        What it moved those of the same token by is no measure: kernels of an engine round it
        otherwise, and a few tokens of a hundred move five times as far as the rest.
        """
        top_k = routes.shape[2]
        if exact.shape != rounded.shape or exact.shape[:2] != (len(routes), len(layers)):
            raise RoutingError(
                f"logits of shape {list(exact.shape)} and {list(rounded.shape)} for "
                f"{len(routes)} tokens in {len(layers)} layers: expected [tokens, layers, experts]"
            )
        told = np.sort(routes[:, list(layers), :].astype(np.int64), axis=2)
        ranked = np.argsort(-exact, axis=2, kind="stable")
        computed = np.sort(ranked[:, :, :top_k], axis=2)
        rounding = np.abs(exact - rounded).max(axis=(0, 2), initial=0.0)
        bounds = TWO_LOGITS * rounding
        shortfall = _shortfall(exact, told, computed)
        in_order = -np.sort(-exact, axis=2)
        margin = (
            in_order[:, :, top_k - 1] - in_order[:, :, top_k]
            if top_k < exact.shape[2]
            else np.full(exact.shape[:2], np.inf)
        )
        others = tuple(
            OtherChoice(
                token=int(token),
                layer=int(layers[row]),
                told=tuple(told[token, row].tolist()),
                computed=tuple(computed[token, row].tolist()),
                shortfall=float(shortfall[token, row]),
                bound=float(bounds[row]),
            )
            for token, row in np.argwhere((told != computed).any(axis=2))
        )
        return cls(
            tokens=len(routes),
            choices=exact.shape[0] * exact.shape[1],
            decided=tuple((margin > bounds).sum(axis=0).tolist()),
            others=others,
            rounding=tuple(rounding.tolist()),
        )

    @property
    def errors(self) -> tuple[OtherChoice, ...]:
        """The other choices that rounding does not explain."""
        return tuple(other for other in self.others if not other.by_rounding)

    @property
    def unchecked(self) -> tuple[int, ...]:
        """Numbers of the routers, from 0, whose choices rounding may mostly change."""
        least = LEAST_DECIDED * self.tokens
        return tuple(row for row, decided in enumerate(self.decided) if decided < least)

    def __str__(self) -> str:
        """What was found, in one sentence."""
        share = 100 * sum(self.decided) / self.choices
        return (
            f"{self.choices:,} choices of {self.tokens:,} tokens, {share:.1f} % of them beyond "
            f"rounding: {len(self.others)} are others than computed, {len(self.errors)} of these "
            f"not by rounding"
        )


def _shortfall(
    exact: npt.NDArray[np.floating],
    told: npt.NDArray[np.int64],
    computed: npt.NDArray[np.int64],
) -> npt.NDArray[np.floating]:
    """Best logit that was left out − worst that was taken instead; −inf where none was."""
    taken, wanted = (np.zeros(exact.shape, dtype=bool) for _ in range(2))
    np.put_along_axis(taken, told, values=True, axis=2)
    np.put_along_axis(wanted, computed, values=True, axis=2)
    left_out = np.where(wanted & ~taken, exact, -np.inf).max(axis=2)
    in_vain = np.where(taken & ~wanted, exact, np.inf).min(axis=2)
    found: npt.NDArray[np.floating] = left_out - in_vain
    return found
