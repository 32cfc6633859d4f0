"""Classes of hardware, and what a machine is to a measurement."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "CPU",
    "Gpu",
    "Hardware",
    "HardwareClass",
    "Link",
    "class_of",
    "group_by_class",
    "nearest",
]

CPU = "cpu"
"""The class of a machine without a GPU, or whose GPUs are not to be used."""

PATHS = ("SYS", "NODE", "PHB", "PXB", "PIX")
"""How two GPUs without NVLink reach each other, the longest way first, as `nvidia-smi topo` has
them: across sockets, across host bridges, by one host bridge, by several switches, by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareClass:
    """Hardware whose figures may share a baseline: one exact product, with its published facts."""

    name: str
    """What `--gpu` takes, and the folder of its baselines."""
    pattern: str | None
    """Found in the driver's name of the GPU; word bounds keep `B200` out of `GB200`."""
    memory_gib: float | None
    """As the driver counts it."""
    memory_gb_per_s: float | None
    fp8: bool
    """Whether it multiplies FP8 itself."""
    links: str | None
    """What its GPUs reach each other by."""
    nominal_power_w: float | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, as its driver tells; None where it does not."""

    index: int
    name: str
    memory_gib: float
    uuid: str
    driver: str | None = None
    power_limit_w: float | None = None
    ecc: bool | None = None
    mig: bool | None = None
    """Whether it is cut into slices."""
    pcie: str | None = None
    """`5.0 x16`: the fastest that GPU and slot can do."""


@dataclass(frozen=True, slots=True)
class Link:
    """How two GPUs reach each other."""

    first: str
    second: str
    """UUIDs."""
    kind: str
    """`NV18` for 18 NVLinks, else one of `PATHS`."""

    @property
    def rank(self) -> int:
        """The higher the faster."""
        if self.kind in PATHS:
            return PATHS.index(self.kind)
        return len(PATHS) + int(self.kind.removeprefix("NV"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What servers may use on this machine."""

    name: str
    """Class, such as `cpu` or `h200`: also the folder of its baselines."""
    gpus: tuple[Gpu, ...] = ()
    links: tuple[Link, ...] = ()
    """One for each pair of the GPUs that the driver knows the way between."""
    facts: HardwareClass | None = None
    """What is published of the class; None for a GPU that has no class file."""
    cpu_model: str
    cpu_cores: int
    """Cores that this process may use, not what the machine has."""
    core_ids: tuple[int, ...] = ()
    memory_gib: float
    """Main memory."""

    @property
    def count(self) -> int:
        """GPUs of the class; 0 on a CPU."""
        return len(self.gpus)

    @property
    def gpu_memory_gib(self) -> float | None:
        """Memory of each GPU; None on a CPU."""
        return self.gpus[0].memory_gib if self.gpus else None

    @property
    def memory_gb_per_s(self) -> float | None:
        """Published bandwidth of one GPU's memory; None where none is on file."""
        return self.facts.memory_gb_per_s if self.facts is not None else None

    @property
    def label(self) -> str:
        """For a header: `2x NVIDIA H200, 141 GiB each` or `AMD EPYC …, 2 cores, 24 GiB`."""
        if not self.gpus:
            return f"{self.cpu_model}, {self.cpu_cores} cores, {self.memory_gib:.0f} GiB"
        first = self.gpus[0]
        return f"{self.count}x {first.name}, {first.memory_gib:.0f} GiB each"


def class_of(gpu_name: str, classes: Iterable[HardwareClass]) -> str:
    """Name the class of a GPU; one that is not listed is a class of its own.

    `NVIDIA GeForce RTX 4090` becomes `geforce-rtx-4090`.
    """
    for known in classes:
        if known.pattern is not None and re.search(known.pattern, gpu_name):
            return known.name
    words = re.findall(r"[a-z0-9]+", gpu_name.lower().removeprefix("nvidia"))
    return "-".join(words)


def group_by_class(
    gpus: Sequence[Gpu], classes: Iterable[HardwareClass]
) -> dict[str, tuple[Gpu, ...]]:
    """Sort GPUs by class, the class with most of them first."""
    known = tuple(classes)
    groups: dict[str, tuple[Gpu, ...]] = {}
    for gpu in gpus:
        name = class_of(gpu.name, known)
        groups[name] = (*groups.get(name, ()), gpu)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def nearest(gpus: Sequence[Gpu], count: int, links: Sequence[Link]) -> Iterable[tuple[Gpu, ...]]:
    """Every choice of `count` GPUs, those first whose slowest link is the fastest.

    A server is as fast as its slowest pair. Equal choices stay in the order of the GPUs.
    """
    ranks = {frozenset({link.first, link.second}): link.rank for link in links}

    def slowest(chosen: tuple[Gpu, ...]) -> int:
        pairs = itertools.combinations((gpu.uuid for gpu in chosen), 2)
        return min((ranks.get(frozenset(pair), -1) for pair in pairs), default=0)

    return sorted(itertools.combinations(gpus, count), key=slowest, reverse=True)
