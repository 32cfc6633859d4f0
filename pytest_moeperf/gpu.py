"""Finds the GPUs of this machine and decides what hardware a run measures on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pytest_moeperf import probe
from pytest_moeperf.errors import UsageError
from pytest_moeperf.hardware import CLASSES, CPU, Gpu, Hardware, group_by_class

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["detect_gpus", "resolve_hardware"]

GIB = 2**30
AUTO = "auto"


def detect_gpus() -> tuple[Gpu, ...]:
    """List the GPUs that this process may use; none without a working NVIDIA driver.

    NVML lists all of the machine, so `CUDA_VISIBLE_DEVICES` is applied here.
    """
    import pynvml  # noqa: PLC0415 - not needed to load the plugin

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        found = tuple(_describe(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    finally:
        pynvml.nvmlShutdown()
    return visible_gpus(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible_gpus(gpus: Sequence[Gpu], selection: str | None) -> tuple[Gpu, ...]:
    """Apply a `CUDA_VISIBLE_DEVICES` of numbers or UUIDs; like CUDA, end at the first unknown."""
    if selection is None:
        return tuple(gpus)
    chosen = []
    for word in (part.strip() for part in selection.split(",")):
        match = [
            gpu
            for gpu in gpus
            if str(gpu.index) == word or (word.startswith("GPU-") and gpu.uuid.startswith(word))
        ]
        if not match:
            break
        chosen.append(match[0])
    return tuple(chosen)


def resolve_hardware(asked: str = AUTO, *, gpus: Sequence[Gpu] | None = None) -> Hardware:
    """Decide on the hardware class: the named one, or what the machine has most of.

    Args:
        asked: `auto`, `cpu` or a class of GPUs.
        gpus: What to choose from; None detects them.

    Raises:
        UsageError: No such class, or no such GPU here; the message names what was found.
    """
    if asked == CPU:
        return _hardware(CPU, ())
    groups = group_by_class(detect_gpus() if gpus is None else gpus)
    if asked == AUTO:
        name = next(iter(groups), CPU)
        return _hardware(name, groups.get(name, ()))
    if asked not in groups:
        known = [AUTO, CPU, *(known.name for known in CLASSES)]
        found = ", ".join(f"{len(group)}x {group[0].name}" for group in groups.values())
        here = f"this machine has {found or 'no NVIDIA GPU'}"
        if asked not in known:
            raise UsageError(f"--gpu {asked}: unknown; valid are {', '.join(known)}; {here}")
        usable = ", ".join(f"--gpu {name}" for name in (*groups, CPU))
        raise UsageError(f"--gpu {asked}: {here}; use {usable}")
    return _hardware(asked, groups[asked])


def _hardware(name: str, gpus: tuple[Gpu, ...]) -> Hardware:
    return Hardware(
        name=name,
        gpus=gpus,
        cpu_model=probe.cpu_model(),
        cpu_cores=probe.usable_cores(),
        core_ids=probe.core_ids(),
        memory_gib=probe.memory_gib(),
    )


def _describe(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        memory_gib=nvml.nvmlDeviceGetMemoryInfo(handle).total / GIB,
        uuid=nvml.nvmlDeviceGetUUID(handle),
    )
