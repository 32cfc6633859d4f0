"""Which servers a machine has room for, and which it can measure side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_moeperf.memory import weight_bytes
from pytest_moeperf.units import GIB

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pytest_moeperf.hardware import Hardware
    from pytest_moeperf.memory import Architecture
    from pytest_moeperf.records import ServerSpec

__all__ = ["gpus_lacking", "in_turns", "lacking"]


def gpus_lacking(needed: int, available: int) -> str:
    """What is said where there are fewer GPUs than needed; empty where there are enough."""
    if needed <= available:
        return ""
    return f"needs {needed} GPU{'s' if needed > 1 else ''}, this machine has {available}"


def lacking(spec: ServerSpec, arch: Architecture, hardware: Hardware, *, gpus: int) -> str:
    """Why the server's weights do not fit `gpus` of this machine's GPUs; empty where they do.

    There are as many (`gpus_lacking`). Nothing is said of a server with flags of its own, which may
    quantize or spread its weights.
    """
    if spec.flags:
        return ""
    weights_gib = weight_bytes(arch, tensor_parallel_size=spec.tensor_parallel_size) / GIB
    fitting = [gpu for gpu in hardware.gpus if gpu.memory_gib > weights_gib]
    if len(fitting) >= gpus:
        return ""
    largest = max(hardware.gpus, key=lambda gpu: gpu.memory_gib)
    return (
        f"its weights take {weights_gib:.1f} GiB a GPU, "
        f"{largest.name} has {largest.memory_gib:.1f} GiB"
    )


def in_turns(
    specs: Sequence[ServerSpec], hardware: Hardware, *, running: Collection[ServerSpec]
) -> list[list[int]]:
    """Group cells, given by their servers, into those that are played in turns; by their index.

    On a CPU all are, for its pace changes with its neighbours. GPUs keep theirs, and may not have
    room for two servers: there one server follows the other, those that run first, so that each
    starts once.
    """
    if not hardware.gpus:
        return [list(range(len(specs)))] if specs else []
    groups: dict[ServerSpec, list[int]] = {}
    for index, spec in enumerate(specs):
        groups.setdefault(spec, []).append(index)
    return [groups[spec] for spec in sorted(groups, key=lambda spec: spec not in running)]
