"""How often each expert of each layer was chosen, and why some such counts cannot be true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_moeperf.errors import RoutingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

__all__ = ["ExpertCounts", "count_routes", "merged"]

_RECOUNT = "set the counters to zero before the load, read them after it, and count again"

_FEWEST_ROUTES = 32
"""So many routes, all to expert 0, are no chance: 2⁻³² with a fair router of two experts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertCounts:
    """Tokens by layer and expert; making one checks that it can be true, else RoutingError.

    In every layer each token takes `top_k` different experts, so a layer's counts add up to
    tokens × k and no expert has more than there were tokens.
    """

    counts: npt.NDArray[np.int64]
    """[layers, experts], read-only; layers with a router alone."""
    tokens: int
    """Tokens that went through every layer."""
    top_k: int
    """Experts that each token takes."""
    layers: tuple[int, ...] = ()
    """Which layer of the model each row is; 0, 1, 2, … where none are given."""

    def __post_init__(self) -> None:
        counts = _whole_numbers(self.counts, dimensions="[layers, experts]")
        layers = tuple(self.layers) or tuple(range(len(counts)))
        if len(layers) != len(counts):
            raise RoutingError(
                f"{len(layers)} layers are named for {len(counts)} rows of expert counts; "
                f"name one a row"
            )
        _refuse_impossible(counts, layers, tokens=self.tokens, top_k=self.top_k)
        counts.flags.writeable = False
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "layers", layers)

    @property
    def experts(self) -> int:
        """Experts of a layer."""
        return int(self.counts.shape[1])

    @property
    def form(self) -> str:
        """What counts must share to be added up or compared, in words."""
        layers = ", ".join(map(str, self.layers))
        return f"top {self.top_k} of {self.experts} experts in layers {layers}"


def _whole_numbers(values: npt.ArrayLike, *, dimensions: str) -> npt.NDArray[np.int64]:
    """Copy as int64; `dimensions` names what is expected, such as `[layers, experts]`."""
    array = np.asarray(values)
    if array.ndim != dimensions.count(",") + 1 or 0 in array.shape:
        shape = list(array.shape)
        raise RoutingError(f"experts of shape {shape}: expected {dimensions}, none of them 0")
    if not np.issubdtype(array.dtype, np.integer):
        raise RoutingError(f"experts as {array.dtype}: expected whole numbers, {dimensions}")
    return array.astype(np.int64)


def _refuse_impossible(
    counts: npt.NDArray[np.int64], layers: Sequence[int], *, tokens: int, top_k: int
) -> None:
    experts = counts.shape[1]
    if not 1 <= top_k <= experts:
        raise RoutingError(f"top {top_k} of {experts} experts: expected 1 to {experts}")
    if tokens < 1:
        raise RoutingError(f"{tokens} tokens were counted: send load first, expected at least 1")
    for layer, row in zip(layers, counts, strict=True):
        least, most = int(row.argmin()), int(row.argmax())
        if row[least] < 0:
            raise RoutingError(
                f"layer {layer}, expert {least}: counted {row[least]} times, expected 0 or more; "
                f"{_RECOUNT}"
            )
        if row.sum() != tokens * top_k:
            raise RoutingError(
                f"layer {layer}: counts add up to {row.sum():,}, but {tokens:,} tokens × top "
                f"{top_k} are {tokens * top_k:,}; {_RECOUNT}"
            )
        if row[most] > tokens:
            raise RoutingError(
                f"layer {layer}, expert {most}: counted {row[most]:,} times for {tokens:,} tokens, "
                f"each of which can take it once; {_RECOUNT}"
            )


def count_routes(
    routes: npt.ArrayLike, *, experts: int, layers: Sequence[int] | None = None
) -> ExpertCounts:
    """Count the experts that an engine says each token took, `[tokens, layers, k]`.

    `layers` names those with a router where some have none: engines report all layers of the
    model, and zeros for these.
    """
    found = _whole_numbers(routes, dimensions="[tokens, layers, k]")
    if layers is not None:
        if not layers or not 0 <= min(layers) <= max(layers) < found.shape[1]:
            raise RoutingError(
                f"layers {list(layers)} of routes: expected some of 0 to {found.shape[1] - 1}"
            )
        found = found[:, list(layers), :]
    rows = range(found.shape[1]) if layers is None else layers
    _refuse_untrue_routes(found, rows, experts=experts)
    tokens, count, top_k = found.shape
    flat = found + experts * np.arange(count)[:, None]
    counts = np.bincount(flat.ravel(), minlength=count * experts).reshape(count, experts)
    return ExpertCounts(counts=counts, tokens=tokens, top_k=top_k, layers=tuple(rows))


def _refuse_untrue_routes(
    routes: npt.NDArray[np.int64], layers: Sequence[int], *, experts: int
) -> None:
    outside = np.argwhere((routes < 0) | (routes >= experts))
    if len(outside):
        token, row, place = outside[0]
        raise RoutingError(
            f"token {token}, layer {layers[row]}: expert {routes[token, row, place]}, but there "
            f"are only 0 to {experts - 1}; check the model's number of experts"
        )
    ordered = np.sort(routes, axis=2)
    repeated = np.argwhere(ordered[:, :, 1:] == ordered[:, :, :-1])
    if len(repeated):
        token, row, _ = repeated[0]
        raise RoutingError(
            f"token {token}, layer {layers[row]}: experts {routes[token, row].tolist()}, but a "
            f"token takes an expert once; the engine did not record this layer, count by another "
            f"route"
        )
    if experts > 1 and routes.size >= _FEWEST_ROUTES and not routes.any():
        raise RoutingError(
            f"all {len(routes)} tokens took expert 0 in all {len(layers)} layers; the engine "
            f"did not record routing, count by another route"
        )


def merged(parts: Iterable[ExpertCounts]) -> ExpertCounts:
    """Add up counts of one model, such as those of several requests."""
    first, *others = parts
    for other in others:
        if other.form != first.form:
            raise RoutingError(
                f"counts of {other.form} cannot be added to those of {first.form}; "
                f"merge counts of one model"
            )
    return ExpertCounts(
        counts=np.sum([part.counts for part in (first, *others)], axis=0),
        tokens=first.tokens + sum(other.tokens for other in others),
        top_k=first.top_k,
        layers=first.layers,
    )
