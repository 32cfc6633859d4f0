"""How evenly the loads of a layer are spread, over its experts or over the ranks that hold them.

Loads are `[layers, units]`: counts by expert, or tokens by rank from `ranks.rank_loads`. With
n units, load xᵢ and mean x̄ = Σ xᵢ ÷ n. No measure depends on the order of the units or on how
many tokens were counted. All are `[layers]` unless they say otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_moeperf.errors import RoutingError

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.float64]
    Loads: TypeAlias = npt.NDArray[np.int64] | Floats

__all__ = [
    "balancedness",
    "coefficient_of_variation",
    "deviations",
    "largest_deviation",
    "layer_balancedness",
    "max_over_mean",
    "normalised_entropy",
    "perfect_balance_speedup",
    "shares",
]


def shares(loads: Loads) -> Floats:
    """`[layers, units]`: xᵢ ÷ Σ x, in 0..1; uniform is 1 ÷ n, whatever the top k."""
    values = np.asarray(loads, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:  # noqa: PLR2004 - layers and units
        raise RoutingError(f"loads of shape {list(values.shape)}: expected [layers, units]")
    if not np.isfinite(values).all() or (values < 0).any():
        raise RoutingError("a load is negative or no number: expected tokens, from 0 up")
    totals = values.sum(axis=1, keepdims=True)
    if not totals.all():
        raise RoutingError(
            f"row {int(totals.argmin())} of the loads has no tokens: send load first"
        )
    return np.asarray(values / totals)


def deviations(loads: Loads) -> Floats:
    """`[layers, units]`: xᵢ ÷ x̄ − 1; 0 is uniform, 0.15 is 15 % more than that, −1 is nothing."""
    share = shares(loads)
    return np.asarray(share * share.shape[1] - 1)


def largest_deviation(loads: Loads) -> Floats:
    """The largest |xᵢ ÷ x̄ − 1|, what published bounds such as ±15 % and ±20 % are about."""
    return np.asarray(np.abs(deviations(loads)).max(axis=1))


def coefficient_of_variation(loads: Loads) -> Floats:
    """Standard deviation (of the n units, not of a sample) ÷ mean; 0 is uniform.

    All on one unit gives √(n − 1). Its square is the load-balancing loss of Shazeer et al. 2017,
    "Outrageously Large Neural Networks".
    """
    values = deviations(loads)
    return np.asarray(np.sqrt((values**2).mean(axis=1)))


def normalised_entropy(loads: Loads) -> Floats:
    """−Σ pᵢ ln pᵢ ÷ ln n with shares p: 1 is uniform, 0 is all on one (Pielou's evenness, 1966).

    A single unit counts as uniform.
    """
    share = shares(loads)
    units = share.shape[1]
    if units == 1:
        return np.ones(len(share))
    terms = share * np.log(share, where=share > 0, out=np.zeros_like(share))
    return np.asarray(-terms.sum(axis=1) / np.log(units))


def max_over_mean(loads: Loads) -> Floats:
    """Largest xᵢ ÷ x̄: 1 is uniform, n is all on one.

    One more than MaxVio of Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy".
    """
    share = shares(loads)
    return np.asarray(share.max(axis=1) * share.shape[1])


def layer_balancedness(loads: Loads) -> Floats:
    """x̄ ÷ max xᵢ, in (0, 1]: 1 is uniform, 1 ÷ n is all on one."""
    return np.asarray(1 / max_over_mean(loads))


def balancedness(loads: Loads) -> float:
    """Σ over layers of x̄ ÷ Σ over layers of max xᵢ, in (0, 1]; one number for all layers.

    What vLLM means by the word (`vllm/distributed/eplb/eplb_state.py`), there of one step and over
    ranks. SGLang takes the mean of the layers' ratios instead. With as many tokens in each layer it
    is the harmonic mean of `layer_balancedness`.
    """
    shares(loads)
    values = np.asarray(loads, dtype=np.float64)
    return float(values.mean(axis=1).sum() / values.max(axis=1).sum())


def perfect_balance_speedup(balanced: float, *, expert_time_share: float = 1.0) -> float:
    """How many times faster a step were with equal loads: 1 ÷ (1 − f + f × balancedness).

    All ranks wait for the busiest one, so the experts' part f of a step takes max ÷ mean times as
    long as it need (Amdahl's law for the rest). `balanced` is over ranks. Of counts over many steps
    this is the least that balance would give: what is busiest changes from step to step, and the
    maximum of a sum is at most the sum of the maxima.
    """
    if not (0 < balanced <= 1 and 0 <= expert_time_share <= 1):
        raise ValueError(
            f"no speed-up at balancedness {balanced!r} and time share {expert_time_share!r}: "
            f"expected above 0 to 1, and 0 to 1"
        )
    return 1 / (1 - expert_time_share + expert_time_share * balanced)
