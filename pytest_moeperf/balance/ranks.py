"""What each GPU of an expert-parallel server has to compute, for any placement of the experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_moeperf.errors import RoutingError

if TYPE_CHECKING:
    import numpy.typing as npt

    from pytest_moeperf.balance.counts import ExpertCounts

__all__ = [
    "ExpertPlacement",
    "explicit_placement",
    "linear_placement",
    "rank_loads",
    "replicated_placement",
    "round_robin_placement",
]


@dataclass(frozen=True, slots=True, eq=False)
class ExpertPlacement:
    """Which share of each expert's tokens each rank computes."""

    served: npt.NDArray[np.float64]
    """[layers, ranks, experts], one layer where all are placed alike; 1 in all for each expert."""

    @property
    def ranks(self) -> int:
        """GPUs that the experts are spread over."""
        return int(self.served.shape[1])


def linear_placement(experts: int, ranks: int) -> ExpertPlacement:
    """Neighbours together, vLLM's `linear`: of 8 experts on 2 ranks, 0 to 3 and 4 to 7.

    Where they do not divide, the first ranks have one more.
    """
    _refuse_empty_ranks(experts, ranks)
    groups = np.array_split(np.arange(experts), ranks)
    return explicit_placement(np.repeat(np.arange(ranks), [len(each) for each in groups]), ranks)


def round_robin_placement(experts: int, ranks: int) -> ExpertPlacement:
    """In turns, vLLM's `round_robin`: of 8 experts on 2 ranks, 0, 2, 4, 6 and 1, 3, 5, 7."""
    _refuse_empty_ranks(experts, ranks)
    return explicit_placement(np.arange(experts) % ranks, ranks)


def _refuse_empty_ranks(experts: int, ranks: int) -> None:
    if not 1 <= ranks <= experts:
        raise RoutingError(f"{experts} experts on {ranks} ranks: expected 1 to {experts} ranks")


def explicit_placement(rank_of_expert: npt.ArrayLike, ranks: int) -> ExpertPlacement:
    """By the rank of each expert, `[experts]`, or `[layers, experts]` where layers differ."""
    owners = _by_layer(rank_of_expert, "rank", ranks)
    served = owners[:, None, :] == np.arange(ranks)[:, None]
    return ExpertPlacement(served.astype(np.float64))


def replicated_placement(
    expert_of_slot: npt.ArrayLike, *, experts: int, ranks: int
) -> ExpertPlacement:
    """With redundant experts: by the expert in each slot, `[slots]` or `[layers, slots]`.

    Slots are the physical experts, as many on each rank, in the order of ranks (the engines'
    physical-to-logical map). An expert's tokens are taken to be shared evenly by its copies, as the
    load balancers of the engines assume (`weight / logcnt` in DeepSeek's EPLB).
    """
    slots = _by_layer(expert_of_slot, "expert", experts)
    layers, per_layer = slots.shape
    if ranks < 1 or per_layer % ranks:
        raise RoutingError(f"{per_layer} expert slots on {ranks} ranks: expected as many on each")
    holds = slots[:, :, None] == np.arange(experts)  # [layers, slots, experts]
    copies = holds.sum(axis=1)
    if not copies.all():
        layer, expert = np.argwhere(copies == 0)[0]
        raise RoutingError(f"row {layer}: expert {expert} has no slot; each needs one or more")
    by_rank = holds.reshape(layers, ranks, per_layer // ranks, experts).sum(axis=2)
    return ExpertPlacement(by_rank / copies[:, None, :])


def _by_layer(values: npt.ArrayLike, kind: str, limit: int) -> npt.NDArray[np.int64]:
    array = np.atleast_2d(np.asarray(values))
    if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.integer):  # noqa: PLR2004 - a table
        raise RoutingError(
            f"{kind}s as {array.dtype} of shape {list(array.shape)}: expected whole "
            f"numbers, one list for all layers or one a layer"
        )
    outside = array[(array < 0) | (array >= limit)]
    if len(outside):
        raise RoutingError(f"{kind} {outside[0]} in a placement: expected 0 to {limit - 1}")
    return array


def rank_loads(counts: ExpertCounts, placement: ExpertPlacement) -> npt.NDArray[np.float64]:
    """[layers, ranks]: tokens × k that each rank computes."""
    layers, _, experts = placement.served.shape
    if experts != counts.experts or layers not in {1, len(counts.layers)}:
        raise RoutingError(
            f"a placement of {experts} experts in {layers} layers for counts of "
            f"{counts.experts} experts in {len(counts.layers)}: expected the same"
        )
    return np.asarray((placement.served @ counts.counts[:, :, None])[:, :, 0], dtype=np.float64)
