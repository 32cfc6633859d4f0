"""`moeperf doctor`: what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pytest_moeperf import probe
from pytest_moeperf.cache import cache_root
from pytest_moeperf.errors import MoeperfError, UsageError
from pytest_moeperf.files import ensure_writable
from pytest_moeperf.gpu import resolve_hardware
from pytest_moeperf.hardware import CPU
from pytest_moeperf.installs import installed, parse_engine, resolve
from pytest_moeperf.loadgen import stamps
from pytest_moeperf.models import catalogue
from pytest_moeperf.telemetry import occupancy
from pytest_moeperf.units import GIB

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from pytest_moeperf.hardware import Gpu, Hardware

HELP = "Show what this machine has, what is missing, and the command that mends it"

NEEDED_DISK_GIB = 6.0
"""An engine environment of 3.5 GiB, its download, and the small models."""
NEEDED_MEMORY_GIB = 10.0
"""Two CPU servers with a small model and 1 GiB of KV cache each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the answer."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    """What to type or do; empty where nothing needs to be done."""


def configure(parser: argparse.ArgumentParser) -> None:
    """How the checks are printed: all of them are always made."""
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(args: argparse.Namespace) -> int:
    """Print every check; 1 if any of them failed."""
    checks = list(_checks())
    if args.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{'ok ' if check.ok else 'NO '} {check.name:<{width}}  {check.found}")
            if check.remedy:
                print(f"    {'':<{width}}  → {check.remedy}")
    return 0 if all(check.ok for check in checks) else 1


def _checks() -> Iterator[Check]:
    try:
        hardware = resolve_hardware("auto")
    except UsageError as error:
        yield Check(name="hardware", ok=False, found="not usable", remedy=str(error))
        hardware = resolve_hardware(CPU)
    yield Check(name="hardware", ok=True, found=f"{hardware.name}: {hardware.label}")
    yield from _gpus(hardware)
    yield _memory()
    yield _cache()
    yield _disk()
    yield _engine(hardware)
    yield _timestamps()
    yield Check(
        name="models",
        ok=True,
        found=", ".join(name for name, entry in catalogue().items() if entry.small),
    )


def _gpus(hardware: Hardware) -> Iterator[Check]:
    """Each GPU as the driver tells it, and whether a server could be started on it now."""
    if hardware.gpus:
        driver = hardware.gpus[0].driver
        yield Check(name="driver", ok=True, found=driver or "its version is not told")
    seen = occupancy(gpu.uuid for gpu in hardware.gpus)
    for gpu in hardware.gpus:
        now = seen[gpu.uuid]
        yield Check(
            name=f"gpu {gpu.index}",
            ok=now.free,
            found=", ".join(
                [*_facts(gpu, hardware), "free" if now.free else f"in use: {now.label}"]
            ),
            remedy="" if now.free else "end what runs there: nvidia-smi lists it",
        )


def _facts(gpu: Gpu, hardware: Hardware) -> Iterator[str]:
    yield f"{gpu.name}, {gpu.memory_gib:.1f} GiB"
    if gpu.power_limit_w is not None:
        nominal = hardware.facts.nominal_power_w if hardware.facts is not None else None
        lowered = nominal is not None and gpu.power_limit_w < nominal
        yield f"{gpu.power_limit_w:g} W" + (f" (made for {nominal:g} W)" if lowered else "")
    if gpu.ecc is not None:
        yield "ECC on" if gpu.ecc else "ECC off"
    if gpu.pcie is not None:
        yield f"PCIe {gpu.pcie}"
    index = {each.uuid: each.index for each in hardware.gpus}
    reached: dict[str, list[int]] = {}
    for link in hardware.links:
        if gpu.uuid in {link.first, link.second}:
            other = link.second if gpu.uuid == link.first else link.first
            reached.setdefault(link.kind, []).append(index[other])
    for kind, others in reached.items():
        yield f"{kind} to gpu {' and '.join(map(str, others))}"


def _memory() -> Check:
    gib = probe.memory_gib()
    ok = gib >= NEEDED_MEMORY_GIB
    remedy = "" if ok else f"measure on a machine with {NEEDED_MEMORY_GIB:g} GiB or more"
    return Check(name="memory", ok=ok, found=f"{gib:.0f} GiB", remedy=remedy)


def _cache() -> Check:
    root = cache_root()
    try:
        ensure_writable(root)
    except MoeperfError as error:
        remedy = "set MOEPERF_CACHE to a folder that can be written"
        return Check(name="cache", ok=False, found=str(error), remedy=remedy)
    return Check(name="cache", ok=True, found=str(root))


def _disk() -> Check:
    root = cache_root()
    place = next(folder for folder in (root, *root.parents) if folder.exists())
    gib = shutil.disk_usage(place).free / GIB
    ok = gib >= NEEDED_DISK_GIB or bool(installed())
    remedy = "" if ok else f"free {NEEDED_DISK_GIB:g} GiB, or set MOEPERF_CACHE to another disk"
    return Check(name="disk", ok=ok, found=f"{gib:.0f} GiB free at {place}", remedy=remedy)


def _timestamps() -> Check:
    """Where the load client's arrival times come from here."""
    if stamps.supported():
        return Check(name="timestamps", ok=True, found="by the kernel, when data arrives")
    return Check(
        name="timestamps",
        ok=True,
        found="by the client, when it reads",
        remedy="run on Linux with SO_TIMESTAMPNS for arrival times that a busy client cannot blur",
    )


def _engine(hardware: Hardware) -> Check:
    """What `pytest suites/` would take on this hardware without `--engine`."""
    try:
        found = resolve(
            parse_engine("vllm"),
            allow_build=False,
            gpu=bool(hardware.gpus),
            on_progress=lambda _phase, _elapsed_s: None,
        )
    except UsageError as error:
        _, _, command = str(error).partition("run: ")
        return Check(name="engine", ok=False, found="none", remedy=command or str(error))
    return Check(name="engine", ok=True, found=f"{found.label}: {found.python}")
