"""How evenly a router uses its experts, computed from counts alone; the documents define the terms.

Imports numpy, so it is imported where balance is computed.
"""

from pytest_moeperf.balance.certainty import Interval, agreement, cluster_interval
from pytest_moeperf.balance.collapse import ALERT, HEALTHY, Collapse, collapses, dead_experts
from pytest_moeperf.balance.counts import ExpertCounts, count_routes, merged
from pytest_moeperf.balance.measures import (
    balancedness,
    coefficient_of_variation,
    deviations,
    largest_deviation,
    layer_balancedness,
    max_over_mean,
    normalised_entropy,
    perfect_balance_speedup,
    shares,
)
from pytest_moeperf.balance.ranks import (
    ExpertPlacement,
    explicit_placement,
    linear_placement,
    rank_loads,
    replicated_placement,
    round_robin_placement,
)
from pytest_moeperf.balance.reference import OtherChoice, RouteCheck
from pytest_moeperf.balance.requests import RoutedRequest, RoutingCounts

__all__ = [
    "ALERT",
    "HEALTHY",
    "Collapse",
    "ExpertCounts",
    "ExpertPlacement",
    "Interval",
    "OtherChoice",
    "RouteCheck",
    "RoutedRequest",
    "RoutingCounts",
    "agreement",
    "balancedness",
    "cluster_interval",
    "coefficient_of_variation",
    "collapses",
    "count_routes",
    "dead_experts",
    "deviations",
    "explicit_placement",
    "largest_deviation",
    "layer_balancedness",
    "linear_placement",
    "max_over_mean",
    "merged",
    "normalised_entropy",
    "perfect_balance_speedup",
    "rank_loads",
    "replicated_placement",
    "round_robin_placement",
    "shares",
]
