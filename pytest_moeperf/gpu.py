"""Finds the GPUs of this machine and decides what hardware a run measures on."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from pytest_moeperf import probe
from pytest_moeperf.errors import UsageError
from pytest_moeperf.hardware import CPU, Gpu, Hardware, HardwareClass, Link, group_by_class
from pytest_moeperf.units import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "ask",
    "detect_gpus",
    "detect_links",
    "hardware_classes",
    "memory",
    "open_nvml",
    "resolve_hardware",
]

AUTO = "auto"
MIG_PREFIX = "MIG-"
COMMON_ANCESTORS = {10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""NVML's numbers for how far up the tree of PCIe two GPUs meet."""


@cache
def hardware_classes() -> tuple[HardwareClass, ...]:
    """The classes that have a file, in the order of their names."""
    files = (resources.files("pytest_moeperf") / "gpus").iterdir()
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files if _is_json(file.name)]
    return tuple(sorted((HardwareClass(**each) for each in found), key=lambda each: each.name))


def _is_json(name: str) -> bool:
    return name.endswith(".json")


@contextlib.contextmanager
def open_nvml() -> Iterator[Any]:
    """Open NVML and yield the module; None without a working NVIDIA driver."""
    import pynvml  # noqa: PLC0415 - only to ask it; tests put a recorded one in its place

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def ask(nvml: Any, function: str, *arguments: Any) -> Any:
    """What the driver answers; None where it cannot, as GPUs and containers differ in that."""
    try:
        return getattr(nvml, function)(*arguments)
    except nvml.NVMLError:
        return None


def memory(nvml: Any, handle: Any) -> Any:
    """The memory of a GPU; `used` is without what the driver keeps for itself, if it says so."""
    function = "nvmlDeviceGetMemoryInfo"
    return ask(nvml, function, handle, nvml.nvmlMemory_v2) or ask(nvml, function, handle)


def detect_gpus() -> tuple[Gpu, ...]:
    """List the GPUs that this process may use; none without a working NVIDIA driver.

    NVML lists all of the machine, so `CUDA_VISIBLE_DEVICES` is applied here.

    Raises:
        UsageError: `CUDA_VISIBLE_DEVICES` names a slice of a GPU.
    """
    with open_nvml() as nvml:
        if nvml is None:
            return ()
        found = [_describe(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    alive = [gpu for gpu in found if gpu is not None]
    return visible_gpus(alive, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible_gpus(gpus: Sequence[Gpu], selection: str | None) -> tuple[Gpu, ...]:
    """Apply a `CUDA_VISIBLE_DEVICES` of numbers or UUIDs; like CUDA, end at the first unknown.

    Raises:
        UsageError: It names a slice of a GPU.
    """
    if selection is None:
        return tuple(gpus)
    chosen = []
    for word in (part.strip() for part in selection.split(",")):
        if word.startswith(MIG_PREFIX):
            raise UsageError(
                f"CUDA_VISIBLE_DEVICES={selection}: {word} is a slice of a GPU, on which no figure "
                "can be compared; name whole GPUs, or use --gpu cpu"
            )
        match = [
            gpu
            for gpu in gpus
            if str(gpu.index) == word or (word.startswith("GPU-") and gpu.uuid.startswith(word))
        ]
        if not match:
            break
        chosen.append(match[0])
    return tuple(chosen)


def detect_links(gpus: Sequence[Gpu]) -> tuple[Link, ...]:
    """How every pair of `gpus` is connected, as far as the driver tells."""
    with open_nvml() as nvml:
        if nvml is None:
            return ()
        pairs = itertools.combinations(gpus, 2)
        found = [(a, b, _connection(nvml, a.index, b.index)) for a, b in pairs]
    return tuple(Link(a.uuid, b.uuid, kind) for a, b, kind in found if kind is not None)


def resolve_hardware(asked: str = AUTO, *, gpus: Sequence[Gpu] | None = None) -> Hardware:
    """Decide on the hardware class: the named one, or what the machine has most of.

    Args:
        asked: `auto`, `cpu` or a class of GPUs.
        gpus: What to choose from; None detects them.

    Raises:
        UsageError: No such class, no such GPU here (the message names what was found), or one
            that is cut into slices.
    """
    if asked == CPU:
        return _hardware(CPU, ())
    groups = group_by_class(detect_gpus() if gpus is None else gpus, hardware_classes())
    if asked == AUTO:
        name = next(iter(groups), CPU)
        return _hardware(name, groups.get(name, ()))
    if asked not in groups:
        known = [AUTO, CPU, *(each.name for each in hardware_classes() if each.name != CPU)]
        found = ", ".join(f"{len(group)}x {group[0].name}" for group in groups.values())
        here = f"this machine has {found or 'no NVIDIA GPU'}"
        number, _, alone = asked.partition("x")
        if number.isdigit() and alone in groups:
            raise UsageError(
                f"--gpu {asked}: give the class alone, --gpu {alone}; how many GPUs a server takes "
                f"is in its spec, and CUDA_VISIBLE_DEVICES says of which; {here}"
            )
        if asked not in known:
            raise UsageError(f"--gpu {asked}: unknown; valid are {', '.join(known)}; {here}")
        usable = ", ".join(f"--gpu {name}" for name in (*groups, CPU))
        raise UsageError(f"--gpu {asked}: {here}; use {usable}")
    return _hardware(asked, groups[asked])


def _hardware(name: str, gpus: tuple[Gpu, ...]) -> Hardware:
    for gpu in gpus:
        if gpu.mig:
            raise UsageError(
                f"GPU {gpu.index} ({gpu.name}) is in MIG mode: its slices share the memory's "
                "bandwidth, so their figures cannot be compared; turn MIG off, hide the GPU with "
                "CUDA_VISIBLE_DEVICES, or use --gpu cpu"
            )
    return Hardware(
        name=name,
        gpus=gpus,
        links=detect_links(gpus) if len(gpus) > 1 else (),
        facts=next((each for each in hardware_classes() if each.name == name), None),
        cpu_model=probe.cpu_model(),
        cpu_cores=probe.usable_cores(),
        core_ids=probe.core_ids(),
        memory_gib=probe.memory_gib(),
    )


def _describe(nvml: Any, index: int) -> Gpu | None:
    """None for a GPU that is listed and does not answer: it has fallen off the bus."""
    handle = ask(nvml, "nvmlDeviceGetHandleByIndex", index)
    held = None if handle is None else memory(nvml, handle)
    if held is None:
        return None
    limit_mw = ask(nvml, "nvmlDeviceGetPowerManagementLimit", handle)
    ecc = ask(nvml, "nvmlDeviceGetCurrentEccMode", handle)
    mig = ask(nvml, "nvmlDeviceGetMigMode", handle)
    generation = ask(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle)
    lanes = ask(nvml, "nvmlDeviceGetMaxPcieLinkWidth", handle)
    return Gpu(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        memory_gib=held.total / GIB,
        uuid=nvml.nvmlDeviceGetUUID(handle),
        driver=ask(nvml, "nvmlSystemGetDriverVersion"),
        power_limit_w=None if limit_mw is None else limit_mw / 1000,
        ecc=None if ecc is None else bool(ecc),
        mig=None if mig is None else bool(mig[0]),
        pcie=f"{generation}.0 x{lanes}" if generation and lanes else None,
    )


def _connection(nvml: Any, first: int, second: int) -> str | None:
    """`NV18`, or how far up the PCIe tree the two meet."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in (first, second)]
    status = ask(nvml, "nvmlDeviceGetP2PStatus", *handles, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
    if status == nvml.NVML_P2P_STATUS_OK and (count := _nvlinks(nvml, *handles)):
        return f"NV{count}"
    ancestor = ask(nvml, "nvmlDeviceGetTopologyCommonAncestor", *handles)
    return COMMON_ANCESTORS.get(ancestor)


def _nvlinks(nvml: Any, first: Any, second: Any) -> int:
    """Links that lead from one to the other: directly, or else all of them, by way of a switch."""
    active = [_active_links(nvml, handle) for handle in (first, second)]
    peer = ask(nvml, "nvmlDeviceGetPciInfo", second)
    remotes = [ask(nvml, "nvmlDeviceGetNvLinkRemotePciInfo", first, link) for link in active[0]]
    direct = [remote for remote in remotes if remote and peer and remote.busId == peer.busId]
    return len(direct) or min(len(links) for links in active)


def _active_links(nvml: Any, handle: Any) -> list[int]:
    links = range(nvml.NVML_NVLINK_MAX_LINKS)
    enabled = nvml.NVML_FEATURE_ENABLED
    return [
        link for link in links if ask(nvml, "nvmlDeviceGetNvLinkState", handle, link) == enabled
    ]
