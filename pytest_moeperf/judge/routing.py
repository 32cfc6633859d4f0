"""Verdicts on whether prompts take the experts that they took before.

Imports numpy, so it is imported where experts were counted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pytest_moeperf.balance import shares
from pytest_moeperf.balance.record import prefill_of
from pytest_moeperf.compat import differences
from pytest_moeperf.judge.evenness import percent, some_layers
from pytest_moeperf.records import Outcome, Verdict

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy.typing as npt

    from pytest_moeperf.balance import ExpertCounts, RouteCheck
    from pytest_moeperf.baseline import Baseline
    from pytest_moeperf.records import CellResult, RoutingRecord

    Floats: TypeAlias = npt.NDArray[np.float64]

__all__ = [
    "SAME_ROUTING",
    "as_computed",
    "as_stored",
    "comparable",
    "made_up",
    "moved_layers",
    "shift",
]

SAME_ROUTING = 0.02
"""Largest part of a layer's load that may go to other experts than before, with equal weights and
prompts: kernels round differently, and tokens between two experts fall to the other one."""


def shift(record: RoutingRecord, stored: RoutingRecord) -> Verdict:
    """Judge whether prompts take the experts that they took before.

    By layer the total variation distance of the shares, ½ Σ |p − q|: the part of the load that
    goes to other experts.
    """
    now, before = prefill_of(record), prefill_of(stored)
    if not comparable(now, before):
        return _shifted(None, f"{now.form} were counted, {before.form} are stored")
    if now.tokens != before.tokens:
        return _shifted(
            None,
            f"{now.tokens:,} prompt tokens were counted, {before.tokens:,} are stored: the engine "
            "reads the same prompts differently",
        )
    share, was = shares(now.counts), shares(before.counts)
    distance = _distance(now, before)
    row = int(distance.argmax())
    value = float(distance[row])
    if value <= SAME_ROUTING:
        reason = f"at most {percent(value)} of a layer's load goes to other experts than before"
        return _shifted(value, reason, outcome=Outcome.PASS)
    gained = np.argsort(was[row] - share[row], kind="stable")
    gains = [
        f"expert {expert} gets {percent(share[row][expert])}, was {percent(was[row][expert])}"
        for expert in (gained[0], gained[-1])
    ]
    layers = int((distance > SAME_ROUTING).sum())
    return _shifted(
        value,
        f"layer {now.layers[row]} sends {percent(value)} of the load of the same prompts to other "
        f"experts than before (up to {percent(SAME_ROUTING)} is rounding): {'; '.join(gains)}; "
        f"{layers} of {len(distance)} layers changed: the router, its kernel or the weights are "
        "not what they were",
    )


def as_stored(cell: CellResult, stored: Baseline | None, *, recording: bool) -> Verdict:
    """Judge the counts of a cell by its baseline; to record, they only must not contradict it."""
    if cell.routing is None or cell.fingerprint is None:
        raise ValueError(f"{cell.label}: no experts were counted")
    if stored is None or stored.routing is None:
        if recording:
            return _shifted(None, "recorded as a baseline", outcome=Outcome.RECORDED)
        reason = "no stored counts say which experts these prompts take"
        return _shifted(None, reason, outcome=Outcome.NO_BASELINE)
    if differing := differences(cell.fingerprint, stored.fingerprint):
        reason = f"the counts cannot be compared with their baseline: {differing[0]}"
        return _shifted(None, reason, outcome=Outcome.INCOMPARABLE)
    verdict = shift(cell.routing, stored.routing)
    if recording and verdict.outcome is Outcome.PASS:
        return replace(verdict, outcome=Outcome.RECORDED)
    return verdict


def as_computed(check: RouteCheck) -> Verdict:
    """Fail where a forward pass takes other experts than were told, rounding apart."""
    errors, unchecked = check.errors, check.unchecked
    outcome, reason = Outcome.PASS, f"a forward pass in PyTorch: {check}"
    if errors:
        outcome = Outcome.REGRESSED
        reason = f"{reason}; the first is {errors[0]}: the engine tells, or takes, wrong experts"
    elif unchecked:
        outcome = Outcome.INCONCLUSIVE
        routers = ", ".join(map(str, unchecked))
        reason = f"{reason}; too few choices of router {routers} are beyond rounding"
    return Verdict(
        metric="wrong_choices",
        outcome=outcome,
        direction="lower",
        measured=float(len(errors)),
        upper=0.0,
        reason=reason,
    )


def made_up(model: str) -> Verdict:
    """Refuse to compare weights that each version of an engine makes up in its own way."""
    reason = f"the engine makes up the weights of {model}: other ones than any version before"
    return _shifted(None, reason, outcome=Outcome.INCOMPARABLE)


def comparable(one: ExpertCounts, other: ExpertCounts) -> bool:
    """Whether both are counts of one architecture."""
    return (one.layers, one.experts, one.top_k) == (other.layers, other.experts, other.top_k)


def _distance(now: ExpertCounts, before: ExpertCounts) -> Floats:
    return np.asarray(np.abs(shares(now.counts) - shares(before.counts)).sum(axis=1) / 2)


def _shifted(value: float | None, reason: str, *, outcome: Outcome = Outcome.REGRESSED) -> Verdict:
    return Verdict(
        metric="routing_shift",
        outcome=outcome,
        unit="%",
        direction="lower",
        measured=None if value is None else 100 * value,
        upper=100 * SAME_ROUTING,
        reason=reason,
    )


def moved_layers(
    now: ExpertCounts, before: ExpertCounts, most: int
) -> tuple[ExpertCounts, ExpertCounts]:
    """Of both, only the layers that changed most."""
    distance = _distance(now, before)
    return some_layers(now, distance, most), some_layers(before, distance, most)
