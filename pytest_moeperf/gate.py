"""Holds a measured cell against its baseline, its prediction or another cell: pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_moeperf import compat, judge
from pytest_moeperf.baseline import level
from pytest_moeperf.errors import UsageError
from pytest_moeperf.judge.sentence import percent
from pytest_moeperf.metrics import describe, quantity
from pytest_moeperf.policy import CPU, directed, policy_for
from pytest_moeperf.records import CellResult, Outcome, StartRecord, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_moeperf.baseline import Baseline, KnownRegression
    from pytest_moeperf.judge import Assessment, Evidence, Prior
    from pytest_moeperf.policy import Policy

__all__ = [
    "COLD",
    "ENGINE_CACHES",
    "Reference",
    "best_look",
    "doubtful",
    "judge_metric",
    "judge_prediction",
    "judged_repeats",
    "paired_ratios",
    "prior_for",
    "repeats_of",
    "started_cold",
]

STARTUP = "startup_s"

DOUBTFUL = frozenset({Outcome.REGRESSED, Outcome.INCONCLUSIVE, Outcome.ENV_DRIFT})
"""Outcomes that are looked at again before they are said."""

SPEED = "memory_copy_gib_per_s"
"""Environment entry: how fast this machine copies memory, measured without any engine."""

ENGINE_CACHES, COLD = "engine_caches", "cold"
"""Environment entry: whether the engine found what it had compiled at an earlier start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a cell is held against."""

    stored: Baseline | None
    priors: Mapping[str, Prior] = field(default_factory=dict)
    """By metric: the noise that other cells of this hardware and engine have; else the policy's."""
    date: str = ""
    """Today, by which baselines and known regressions expire: `2026-11-22`; empty: none does."""


def judge_metric(
    cell: CellResult,
    key: str,
    reference: Reference,
    *,
    hardware: str,
    p_limit: float,
    policy: Policy | None = None,
    can_pair: bool = False,
    last: bool = False,
) -> Assessment:
    """Judge a metric of a valid cell by its starts, those of its baseline and those of an A/B.

    `policy` is by default that of every night. `last` says that there will be no further start. A
    baseline that does not count, for its age or for what it was measured on, leaves the A/B alone
    to judge by, where there is one.
    """
    policy = policy or policy_for(hardware, key)
    refused = _refusal(cell, key, reference)
    usable = None if refused else reference.stored
    evidence = replace(_evidence(cell, key, usable), can_pair=can_pair, last=last)
    assessment = judge.assess(
        evidence,
        policy,
        prior=reference.priors.get(key) or judge.default_prior(policy),
        p_limit=p_limit,
    )
    if refused and not assessment.verdict.paired:
        return replace(assessment, verdict=refused)
    verdict = _in_its_surroundings(cell, assessment.verdict, usable, hardware, policy.tolerance)
    if usable is not None and (known := usable.known_regression(key, reference.date)):
        verdict = _expected(verdict, known, usable, cell.new)
    stored_repeats = tuple(start.repeats for start in evidence.stored if start.repeats)
    return replace(assessment, verdict=replace(verdict, stored=stored_repeats))


def _evidence(cell: CellResult, key: str, stored: Baseline | None) -> Evidence:
    return judge.Evidence(
        metric=key,
        # A first start that was cold is told as such, and its value with it.
        today=tuple(
            (repeats_of if start is cell.start else judged_repeats)(start, key)
            for start in cell.starts
        ),
        stored=tuple(
            judge.StoredStart(start.session_id, repeats_of(start, key))
            for start in (stored.starts if stored is not None else ())
        ),
        old=tuple(judged_repeats(start, key) for start in cell.old),
        new=tuple(judged_repeats(start, key) for start in cell.new),
        other_gpu=stored is not None and _other_gpu(cell.starts, stored.starts),
    )


def _other_gpu(ours: Sequence[StartRecord], theirs: Sequence[StartRecord]) -> bool:
    """Whether any GPU of today is none of those of the baseline, as far as both tell."""
    today, stored = (
        {reading.uuid for start in starts for sample in start.repeats for reading in sample.gpus}
        for starts in (ours, theirs)
    )
    return bool(stored) and not today <= stored


def _refusal(cell: CellResult, key: str, reference: Reference) -> Verdict | None:
    """Why the baseline cannot be used, if it is there."""
    values, stored = cell.values(key), reference.stored
    if started_cold(cell, key):
        return judge.cold_start(key, values)
    if stored is None or cell.fingerprint is None:
        return None
    if differing := compat.differences(cell.fingerprint, stored.fingerprint):
        return judge.incomparable(key, values, differing)
    if reference.date and stored.expired(reference.date):
        why = f"the stored one expired on {stored.expires}; run `moeperf baseline refresh`"
        return judge.no_baseline(key, values, why=why)
    return None


def started_cold(cell: CellResult, key: str) -> bool:
    """Whether the metric is a start-up time with all that the engine compiles only once."""
    measured = any(value is not None for value in cell.values(key))
    return measured and cell.start is not None and _cold(cell.start, key)


def _cold(start: StartRecord, key: str) -> bool:
    return key == STARTUP and start.environment.get(ENGINE_CACHES) == COLD


def repeats_of(start: StartRecord, key: str) -> tuple[float, ...]:
    """The metric in the valid repeats of a start that have it."""
    values = (repeat.values.get(key) for repeat in start.repeats if repeat.valid)
    return tuple(value for value in values if value is not None)


def judged_repeats(start: StartRecord, key: str) -> tuple[float, ...]:
    """Those that are held against others: a cold start has no start-up time to compare."""
    return () if _cold(start, key) else repeats_of(start, key)


def _in_its_surroundings(
    cell: CellResult, verdict: Verdict, stored: Baseline | None, hardware: str, tolerance: float
) -> Verdict:
    """Add what differs between the two sides, and let a slow machine take the blame."""
    theirs = stored.starts if stored is not None else ()
    if verdict.paired:
        return replace(verdict, notes=verdict.notes + _differences(cell.new, cell.old))
    if hardware == CPU:
        verdict = _blame_a_slow_machine(verdict, cell.starts, theirs, tolerance)
    return replace(verdict, notes=verdict.notes + _differences(cell.starts, theirs))


def _differences(ours: Sequence[StartRecord], theirs: Sequence[StartRecord]) -> tuple[str, ...]:
    if not ours:
        return ()
    # The speed has had its say: it differs a little each time, and explains only what it excuses.
    now, *earlier = (
        {name: value for name, value in start.environment.items() if name != SPEED}
        for start in (ours[-1], *theirs)
    )
    return compat.explain(now, *earlier)


def _expected(
    verdict: Verdict, known: KnownRegression, stored: Baseline, new: Sequence[StartRecord]
) -> Verdict:
    """Turn what is on file as a known regression into what it is: no news, or its end.

    What is on file is a loss from the baseline, where an A/B judged as well.
    """
    loss = _loss(verdict, stored, new)
    if loss is None:
        return verdict
    on_file = f"{known.reason} ({known.issue})"
    cleared = verdict.outcome in {Outcome.PASS, Outcome.IMPROVED}
    # In an A/B both engines may have the loss: it is neither over nor the machine's.
    shared = verdict.paired and (
        verdict.outcome is Outcome.ENV_DRIFT
        or (cleared and not loss.is_within(verdict.tolerance or 0.0))
    )
    if (shared or verdict.outcome is Outcome.REGRESSED) and loss.is_within(known.extent):
        reason = f"{verdict.reason}; a known regression until {known.expires}: {on_file}"
        return replace(verdict, outcome=Outcome.EXPECTED, reason=reason)
    if verdict.outcome is Outcome.REGRESSED:
        reach = loss.reach(known.extent, verdict)
        allowed = f"the known regression of {percent(known.extent)} allows {reach}"
        return replace(verdict, reason=f"{verdict.reason}; more than {allowed}: {on_file}")
    if cleared and not shared:
        reason = (
            f"{verdict.reason}; but a regression is on file, which must go now that it is over: "
            f"{on_file}"
        )
        return replace(verdict, outcome=Outcome.UNEXPECTED_PASS, reason=reason)
    return verdict


@dataclass(frozen=True, slots=True)
class _Loss:
    """How far the engine under test is from the baseline."""

    expected: float
    times_as_good: float

    def is_within(self, extent: float) -> bool:
        """Whether it is at most so many times as bad, less 1, as tolerances are."""
        return self.times_as_good * (1 + extent) >= 1

    def reach(self, extent: float, verdict: Verdict) -> str:
        """The worst value that is within `extent`: `(up to 21.6 ms)`."""
        if verdict.direction == "higher":
            return f"(down to {quantity(self.expected / (1 + extent), verdict.unit)})"
        return f"(up to {quantity(self.expected * (1 + extent), verdict.unit)})"


def _loss(verdict: Verdict, stored: Baseline, new: Sequence[StartRecord]) -> _Loss | None:
    if not verdict.paired:
        return _Loss(verdict.expected or 0.0, 1 + (verdict.effect or 0.0))
    expected, measured = level(stored.starts, verdict.metric), level(new, verdict.metric)
    if not expected or not measured:
        return None
    better = measured / expected if verdict.direction == "higher" else expected / measured
    return _Loss(expected, better)


def prior_for(baselines: Iterable[Baseline], key: str, *, hardware: str) -> Prior:
    """What baselines of one hardware and engine tell of the noise of a metric."""
    metric, _ = describe(key)
    direction = directed(key, metric.direction)
    spreads = []
    for stored in baselines:
        starts = [
            judge.StartValue(value, start.session_id)
            for start in stored.starts
            if (value := judge.start_value(repeats_of(start, key), direction)) is not None
        ]
        spreads.append(judge.spread_of(starts))
    default = judge.default_prior(policy_for(hardware, key))
    return judge.fit_prior(spreads, default=default)


def _blame_a_slow_machine(
    verdict: Verdict,
    today: Sequence[StartRecord],
    stored: Sequence[StartRecord],
    tolerance: float,
) -> Verdict:
    """Turn REGRESSED into ENV_DRIFT where the machine itself lost half of the tolerance.

    The copy speed is measured in this process, so an engine cannot hide behind it. Only work on
    the CPU depends on it, and a count that allows no loss has no such excuse.
    """
    now, usual = _usual_speed(today), _usual_speed(stored)
    if verdict.outcome is not Outcome.REGRESSED or not tolerance or now is None or usual is None:
        return verdict
    if now >= usual * (1 - tolerance / 2):
        return verdict
    return replace(
        verdict,
        outcome=Outcome.ENV_DRIFT,
        reason=f"{verdict.reason}; but this machine copies memory at {now:.1f} GiB/s "
        f"today, {usual:.1f} GiB/s when the baseline was recorded: the machine is slow, "
        "so the engine cannot be judged by absolute figures",
    )


def _usual_speed(starts: Sequence[StartRecord]) -> float | None:
    speeds = sorted(speed for start in starts if (speed := _speed(start.environment)) is not None)
    return speeds[len(speeds) // 2] if speeds else None


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
    numerators: Mapping[int, float | None], denominators: Mapping[int, float | None]
) -> tuple[float, ...]:
    """Divide turn by turn; pairs with a hole or a zero below are left out.

    Cells that never had a turn together are divided in the order of their repeats.
    """
    turns = sorted(numerators.keys() & denominators.keys())
    pairs = (
        ((numerators[turn], denominators[turn]) for turn in turns)
        if turns
        else zip(numerators.values(), denominators.values(), strict=False)
    )
    return tuple(above / below for above, below in pairs if above is not None and below)


def judge_prediction(
    name: str, values: Sequence[float], *, predicted: float, factor: float, why: str
) -> Verdict:
    """Hold values against a calculated figure; within ÷ and × `factor` of it is a PASS."""
    if not factor >= 1:
        raise UsageError(f"{name}: factor {factor} must be a number from 1 up")
    verdict = judge.judge_bounds(
        name, values, lower=predicted / factor, upper=predicted * factor, why=why
    )
    change = (
        verdict.measured / predicted - 1 if verdict.measured is not None and predicted else None
    )
    return replace(verdict, expected=predicted, change=change)
