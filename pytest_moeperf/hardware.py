"""Classes of hardware, and what a machine is to a measurement."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CLASSES", "CPU", "Gpu", "Hardware", "HardwareClass", "class_of", "group_by_class"]

CPU = "cpu"
"""The class of a machine without a GPU, or whose GPUs are not to be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, as its driver names it."""

    index: int
    name: str
    memory_gib: float
    uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What servers may use on this machine."""

    name: str
    """Class, such as `cpu` or `h200`: also the folder of its baselines."""
    gpus: tuple[Gpu, ...] = ()
    cpu_model: str
    cpu_cores: int
    """Cores that this process may use, not what the machine has."""
    core_ids: tuple[int, ...] = ()
    memory_gib: float

    @property
    def label(self) -> str:
        """For a header: `2x NVIDIA H200, 141 GiB each` or `AMD EPYC …, 2 cores, 24 GiB`."""
        if not self.gpus:
            return f"{self.cpu_model}, {self.cpu_cores} cores, {self.memory_gib:.0f} GiB"
        first = self.gpus[0]
        return f"{len(self.gpus)}x {first.name}, {first.memory_gib:.0f} GiB each"


@dataclass(frozen=True, slots=True)
class HardwareClass:
    """GPUs whose figures may share a baseline."""

    name: str
    pattern: str
    """Found in the driver's name of the GPU; word bounds keep `B200` out of `GB200`."""


CLASSES = (
    HardwareClass("h200", r"\bH200\b"),
    HardwareClass("h100", r"\bH100\b"),
    HardwareClass("a100", r"\bA100\b"),
    HardwareClass("b200", r"\bB200\b"),
    HardwareClass("l40s", r"\bL40S\b"),
)


def class_of(gpu_name: str) -> str:
    """Name the class of a GPU; one that is not listed is a class of its own.

    `NVIDIA GeForce RTX 4090` becomes `geforce-rtx-4090`.
    """
    for known in CLASSES:
        if re.search(known.pattern, gpu_name):
            return known.name
    words = re.findall(r"[a-z0-9]+", gpu_name.lower().removeprefix("nvidia"))
    return "-".join(words)


def group_by_class(gpus: Sequence[Gpu]) -> dict[str, tuple[Gpu, ...]]:
    """Sort GPUs by class, the class with most of them first."""
    groups: dict[str, tuple[Gpu, ...]] = {}
    for gpu in gpus:
        name = class_of(gpu.name)
        groups[name] = (*groups.get(name, ()), gpu)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))
