"""Holds a measured cell against its baseline, its prediction or another cell: pure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_moeperf import compat, judge
from pytest_moeperf.policy import CPU, policy_for
from pytest_moeperf.records import CellResult, Outcome, StartRecord, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_moeperf.baseline import Baseline

__all__ = ["best_look", "doubtful", "judge_cell", "judge_prediction", "paired_ratios"]

DOUBTFUL = frozenset({Outcome.REGRESSED, Outcome.INCONCLUSIVE, Outcome.ENV_DRIFT})
"""Outcomes that are looked at again before they are said."""

SPEED = "memory_copy_gib_per_s"
"""Environment entry: how fast this machine copies memory, measured without any engine."""


def judge_cell(
    cell: CellResult, metric_keys: Sequence[str], *, stored: Baseline | None, hardware: str
) -> tuple[Verdict, ...]:
    """Judge every metric of a valid cell against the stored starts of its baseline."""
    return tuple(_judge_metric(cell, key, stored, hardware) for key in metric_keys)


def _judge_metric(cell: CellResult, key: str, stored: Baseline | None, hardware: str) -> Verdict:
    values = cell.values(key)
    policy = policy_for(hardware, key)
    if stored is None or cell.fingerprint is None or cell.start is None:
        return judge.judge_change(key, values, None, policy)
    if differing := compat.differences(cell.fingerprint, stored.fingerprint):
        return judge.incomparable(key, values, differing)
    reference = judge.Reference.of(stored.starts, key)
    verdict = judge.judge_change(key, values, reference, policy)
    if hardware == CPU:
        verdict = _blame_a_slow_machine(
            verdict, cell.start.environment, stored.starts, policy.tolerance
        )
    # The speed has had its say: it differs a little each time, and explains only what it excuses.
    now, *earlier = (
        {name: value for name, value in start.environment.items() if name != SPEED}
        for start in (cell.start, *stored.starts)
    )
    return replace(verdict, notes=verdict.notes + compat.explain(now, *earlier))


def _blame_a_slow_machine(
    verdict: Verdict,
    environment: Mapping[str, str],
    starts: Sequence[StartRecord],
    tolerance: float,
) -> Verdict:
    """Turn REGRESSED into ENV_DRIFT where the machine itself lost half of the tolerance.

    The copy speed is measured in this process, so an engine cannot hide behind it. Only work on
    the CPU depends on it, and a count that allows no loss has no such excuse.
    """
    now = _speed(environment)
    before = sorted(speed for start in starts if (speed := _speed(start.environment)) is not None)
    if verdict.outcome is not Outcome.REGRESSED or not tolerance or now is None or not before:
        return verdict
    usual = before[len(before) // 2]
    if now >= usual * (1 - tolerance / 2):
        return verdict
    return replace(
        verdict,
        outcome=Outcome.ENV_DRIFT,
        reason=f"{verdict.reason}; but this machine copies memory at {now:.1f} GiB/s "
        f"today, {usual:.1f} GiB/s when the baseline was recorded: the machine is slow, "
        "so the engine cannot be judged by absolute figures",
    )


def _speed(environment: Mapping[str, str]) -> float | None:
    """The recorded copy speed; None where it is missing or, in a stored file, not a number."""
    try:
        speed = float(environment[SPEED])
    except (KeyError, ValueError):
        return None
    return speed if 0 < speed < math.inf else None


def doubtful(result: CellResult) -> bool:
    """Whether a verdict deserves another look before it is said."""
    return any(verdict.outcome in DOUBTFUL for verdict in result.verdicts)


def best_look(before: CellResult, now: CellResult, *, look: int) -> CellResult:
    """Combine two looks at a cell: for each metric the first verdict that is not doubtful.

    What disturbs a machine makes its figures worse, never better, so one good look is enough to
    clear an engine, and only one that was never good is blamed. An invalid look changes nothing.
    """
    if now.invalid:
        return before
    verdicts = tuple(
        _after(verdict, look) if old.outcome in DOUBTFUL else old
        for old, verdict in zip(before.verdicts, now.verdicts, strict=True)
    )
    return replace(now, verdicts=verdicts)


def _after(verdict: Verdict, look: int) -> Verdict:
    if verdict.outcome not in DOUBTFUL:
        return verdict
    return replace(verdict, reason=f"{verdict.reason}; no better in {look} looks at it")


def paired_ratios(
    numerators: Sequence[float | None], denominators: Sequence[float | None]
) -> tuple[float, ...]:
    """Divide repeat by repeat; pairs with a hole or a zero below are left out."""
    pairs = zip(numerators, denominators, strict=False)
    return tuple(above / below for above, below in pairs if above is not None and below)


def judge_prediction(
    name: str, values: Sequence[float], *, predicted: float, factor: float, why: str
) -> Verdict:
    """Hold values against a calculated figure; within ÷ and × `factor` of it is a PASS."""
    verdict = judge.judge_bounds(
        name, values, lower=predicted / factor, upper=predicted * factor, why=why
    )
    change = None if verdict.measured is None else verdict.measured / predicted - 1
    return replace(verdict, expected=predicted, change=change)
