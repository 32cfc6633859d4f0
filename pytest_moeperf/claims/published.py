"""Their side: who published which figures, and by which cells of ours they can be answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_moeperf.memory import Architecture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_moeperf.claims.estimates import Range

__all__ = [
    "Calculated",
    "Cells",
    "Claim",
    "Figure",
    "Measured",
    "Published",
    "Told",
    "read_published",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """A cell of ours, or two of which one is divided by the other, by their names."""

    of: str
    over: str | None = None
    differs: str = ""
    """In what this is not what was published, e.g. `one GPU, TP=1`; then it decides nothing."""
    floor: bool = False
    """But this is at most what the published cell would give, and so can refute a lower figure."""

    @property
    def label(self) -> str:
        """`Llama burst, TP=1 ÷ Mixtral burst, TP=1`."""
        return self.of if self.over is None else f"{self.of} ÷ {self.over}"

    @property
    def names(self) -> tuple[str, ...]:
        """The one or the two."""
        return (self.of,) if self.over is None else (self.of, self.over)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A published figure that a metric of a cell answers."""

    published: float | Range
    metric: str
    """Key with statistic."""
    cells: tuple[Cells, ...]
    """What can answer it, the best first."""
    name: str = ""
    """In place of the metric's label."""
    per: float = 1.0
    """What the metric is divided by, such as the tokens of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calculated:
    """A published figure that follows from the sizes of a model."""

    published: float | Range
    calculated: str
    """Name of the quantity."""
    model: str
    over: str | None = None
    """The model whose quantity it is divided by."""
    gpus: int = 1
    """Among how many it is shared."""
    bytes_per_weight: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A published figure that nothing here answers."""

    published: float | Range
    name: str
    unit: str = ""


Figure = Measured | Calculated | Told


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What somebody published."""

    id: str
    """Letter of the source and number: `A1`."""
    says: str
    figures: tuple[Figure, ...]
    """As far as it has any."""
    note: str = ""
    """What a reader must know to compare it with ours."""
    untested: str = ""
    """Why nothing here answers it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """All claims, and what they refer to by name."""

    sources: Mapping[str, str]
    """Who published it, by the letter of the claims."""
    cells: Mapping[str, str]
    """Pattern of a stored cell, by the name that claims use."""
    architectures: Mapping[str, Architecture]
    """Of models that are not in the catalogue."""
    claims: tuple[Claim, ...]


def read_published(document: Mapping[str, Any]) -> Published:
    """What `published.json` holds; TypeError or KeyError for a name that is not known."""
    return Published(
        sources=document["sources"],
        cells=document["cells"],
        architectures={
            name: Architecture.from_config(config)
            for name, config in document["architectures"].items()
        },
        claims=tuple(_claim(each) for each in document["claims"]),
    )


def _claim(document: Mapping[str, Any]) -> Claim:
    told = {key: value for key, value in document.items() if key not in {"cells", "figures"}}
    cells = document.get("cells", ())
    figures = tuple(_figure(each, cells) for each in document.get("figures", ()))
    return Claim(**told, figures=figures)


def _figure(document: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> Figure:
    """`cells` are those of the claim, for a figure without its own."""
    published = document["published"]
    told = {**document, "published": tuple(published) if isinstance(published, list) else published}
    if "metric" in document:
        own = document.get("cells", cells)
        return Measured(**{**told, "cells": tuple(Cells(**each) for each in own)})
    if "calculated" in document:
        return Calculated(**told)
    return Told(**told)
