"""Finds for every published figure what answers it here, and says what it says."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pytest_moeperf.claims.estimates import (
    Estimate,
    Outcome,
    accepted,
    estimate,
    outcome,
    quotient,
)
from pytest_moeperf.claims.published import Calculated, Cells, Claim, Figure, Measured, Told
from pytest_moeperf.memory import (
    PRECISIONS,
    Parallelism,
    active_parameters,
    kv_bytes_per_token,
    stage_bytes,
    total_parameters,
)
from pytest_moeperf.metrics import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_moeperf.claims.published import Published
    from pytest_moeperf.claims.stored import State, Stored
    from pytest_moeperf.memory import Architecture

__all__ = ["QUANTITIES", "Answer", "Quantity", "Result", "answers"]


@dataclass(frozen=True, slots=True)
class Quantity:
    """What can be calculated of a model."""

    label: str
    unit: str
    of: Callable[[Architecture, Calculated], float]


def _weights_gb(arch: Architecture, figure: Calculated) -> float:
    precision = PRECISIONS[_FORMATS[figure.bytes_per_weight]]
    parallel = Parallelism(tensor=figure.gpus)
    return sum(stage_bytes(arch, parallel, precision, stage=0).values()) / 1e9


def _all_reduce_kib(arch: Architecture, figure: Calculated) -> float:
    """After attention and after the experts, each layer sums up the hidden state of a token."""
    return 2 * arch.layers * arch.hidden_size * figure.bytes_per_weight / 1024


QUANTITIES: Final[Mapping[str, Quantity]] = {
    "total_b": Quantity("parameters", "B", lambda arch, _: total_parameters(arch) / 1e9),
    "active_b": Quantity("active parameters", "B", lambda arch, _: active_parameters(arch) / 1e9),
    "total_over_active": Quantity(
        "parameters ÷ active parameters",
        "",
        lambda arch, _: total_parameters(arch) / active_parameters(arch),
    ),
    "weights_gb": Quantity("weights", "GB", _weights_gb),
    "kv_kib": Quantity(
        "KV cache of a token", "KiB", lambda arch, _: kv_bytes_per_token(arch) / 1024
    ),
    "all_reduce_kib": Quantity("all-reduce of a token and step", "KiB", _all_reduce_kib),
}
"""Figures that follow from the sizes of a model, by the name that the data have for them."""

_PRECISIONS: Final[Mapping[float, str]] = {2.0: "", 1.0: ", FP8", 0.5: ", INT4"}
_FORMATS: Final[Mapping[float, str]] = {2.0: "bf16", 1.0: "fp8", 0.5: "int4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One published figure with ours."""

    figure: Figure
    name: str
    unit: str
    ours: Estimate | None = None
    """Warm, where it was measured."""
    cold: Estimate | None = None
    """Of the first play of the workload on each start that was cold."""
    cells: Cells | None = None
    """By which it was measured."""
    stored: tuple[Stored, ...] = ()
    lacking: tuple[str, ...] = ()
    """Names of cells that would answer it and are not stored."""

    @property
    def outcome(self) -> Outcome:
        """What it says about the published figure."""
        said = outcome(self.ours, self.figure.published)
        if self.ours is None or self.cells is None or not self.cells.differs:
            return said
        above = self.cells.floor and self.ours.low > accepted(self.figure.published)[1]
        return Outcome.REFUTED if above else Outcome.UNTESTED

    @property
    def as_cold(self) -> bool:
        """Whether the first plays of the very cell that was published would confirm it."""
        same = outcome(self.cold, self.figure.published) is Outcome.CONFIRMED
        return same and self.cells is not None and not self.cells.differs


@dataclass(frozen=True, slots=True)
class Answer:
    """One claim with the answers to its figures."""

    claim: Claim
    results: tuple[Result, ...]

    @property
    def outcome(self) -> Outcome:
        """A claim is refuted with any of its figures; those that were not tested do not count."""
        found = {result.outcome for result in self.results}
        order = (Outcome.REFUTED, Outcome.UNDECIDED, Outcome.CONFIRMED)
        return next((each for each in order if each in found), Outcome.UNTESTED)

    @property
    def decided(self) -> tuple[Result, ...]:
        """The figures that something here answers."""
        return tuple(each for each in self.results if each.outcome is not Outcome.UNTESTED)

    @property
    def compared(self) -> tuple[Result, ...]:
        """The figures that have one of ours beside them, if only a near one."""
        return tuple(each for each in self.results if each.ours is not None)

    @property
    def of_a_cold_server(self) -> bool:
        """Whether all figures that the warm server refutes are those of the first plays."""
        refuted = [each for each in self.results if each.outcome is Outcome.REFUTED]
        return bool(refuted) and all(each.as_cold for each in refuted)


def answers(
    published: Published,
    stored: Sequence[Stored],
    architectures: Mapping[str, Architecture],
) -> tuple[Answer, ...]:
    """Answer every claim.

    `stored` has the best source first; `architectures` are the models of the catalogue.
    """
    sizes = {**published.architectures, **architectures}

    def result(figure: Figure) -> Result:
        match figure:
            case Measured():
                return _measured(figure, published.cells, stored)
            case Calculated():
                return _calculated(figure, sizes)
            case Told():
                return Result(figure=figure, name=figure.name, unit=figure.unit)

    return tuple(Answer(each, tuple(map(result, each.figures))) for each in published.claims)


def _calculated(figure: Calculated, sizes: Mapping[str, Architecture]) -> Result:
    quantity = QUANTITIES[figure.calculated]
    value = quantity.of(sizes[figure.model], figure)
    of = figure.model
    if figure.over is not None:
        value /= quantity.of(sizes[figure.over], figure)
        of = f"{of} ÷ {figure.over}"
    shared = f", each of {figure.gpus} GPUs" if figure.gpus > 1 else ""
    return Result(
        figure=figure,
        name=f"{of}: {quantity.label}{_PRECISIONS[figure.bytes_per_weight]}{shared}",
        unit=quantity.unit if figure.over is None else "",
        ours=Estimate.exact(value),
    )


def _measured(figure: Measured, patterns: Mapping[str, str], stored: Sequence[Stored]) -> Result:
    metric, statistic = describe(figure.metric)
    plain = all(each.over is None for each in figure.cells)
    result = Result(
        figure=figure,
        name=figure.name or " ".join(filter(None, (metric.label, statistic))),
        unit=metric.unit if plain else "",
        lacking=tuple(
            name
            for name in figure.cells[0].names
            if _find(patterns[name], figure.metric, stored, "warm") is None
        ),
    )
    for cells in figure.cells:
        names = [patterns[name] for name in cells.names]
        warm = [_find(name, figure.metric, stored, "warm") for name in names]
        if None not in warm:
            cold = [_find(name, figure.metric, stored, "cold") for name in names]
            return replace(
                result,
                ours=_estimate(figure, warm, "warm"),
                cold=_estimate(figure, cold, "cold"),
                cells=cells,
                stored=tuple(filter(None, warm)),
            )
    return result


def _find(pattern: str, metric: str, stored: Sequence[Stored], state: State) -> Stored | None:
    """The best source that has the metric; a baseline may lack the first plays."""
    matching = (each for each in stored if fnmatch.fnmatchcase(each.cell, pattern))
    return next((each for each in matching if each.plays(metric, state)), None)


def _estimate(figure: Measured, sides: Sequence[Stored | None], state: State) -> Estimate | None:
    starts = [each.plays(figure.metric, state) if each is not None else () for each in sides]
    ours = estimate(*starts) if len(starts) == 1 else quotient(*starts)
    return ours and ours.divided(figure.per)
