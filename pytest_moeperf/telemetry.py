"""Looks at GPUs while they work: who is on them, how fast they run, what holds them back.

Nothing here breaks a measurement: what the driver does not tell is None, or nobody.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pytest_moeperf.errors import ServerStartError
from pytest_moeperf.gpu import ask, memory, open_nvml
from pytest_moeperf.records import GpuReading
from pytest_moeperf.units import GIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from pytest_moeperf.hardware import Gpu

__all__ = ["GpuWatch", "Occupancy", "await_free", "compute_pids", "occupancy"]

FREE_GIB = 1.0
"""An old driver counts as used what it keeps for itself, about half of this."""
FREE_WAIT_S = 60.0
"""Memory comes back seconds after its process; so long is waited for a process to go, too."""
QUIET = 0.05
"""Utilisation of a GPU on which nothing runs."""
QUIET_WAIT_S = 2.0
"""The driver tells utilisation over the last second: what has just ended still shows."""
POLL_S = 0.05
REASONS = {
    "SwPowerCap": "sw_power_cap",
    "HwSlowdown": "hw_slowdown",
    "SyncBoost": "sync_boost",
    "SwThermalSlowdown": "sw_thermal_slowdown",
    "HwThermalSlowdown": "hw_thermal_slowdown",
    "HwPowerBrakeSlowdown": "hw_power_brake_slowdown",
}
"""What holds clocks down, by NVML's name. To be idle and to have clocks set by the user do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """Who is on a GPU; None where the driver does not tell."""

    pids: frozenset[int] = frozenset()
    """Processes with a context for computing, as the driver numbers them: in a container these
    may be numbers of the host."""
    used_gib: float | None = None

    @property
    def free(self) -> bool:
        """Whether a server may be started on it."""
        return not self.pids and (self.used_gib is None or self.used_gib < FREE_GIB)

    @property
    def label(self) -> str:
        """`4711 python3, 12.3 GiB used`."""
        used = [] if self.used_gib is None else [f"{self.used_gib:.1f} GiB used"]
        return ", ".join([*map(named, sorted(self.pids)), *used])


def named(pid: int) -> str:
    """`4711 python3`; the number alone where that process cannot be seen from here."""
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace")
        return f"{pid} {command.strip()}"
    return str(pid)


def descends_from_here(pid: int) -> bool:
    """Whether this process started it, at any distance; a guardian keeps what a server orphans."""
    import psutil  # noqa: PLC0415 - not needed to load the plugin

    try:
        return os.getpid() in {parent.pid for parent in psutil.Process(pid).parents()}
    except psutil.Error:
        return False


def occupancy(uuids: Iterable[str]) -> dict[str, Occupancy]:
    """Who is on these GPUs now."""
    wanted = tuple(uuids)
    with open_nvml() as nvml:
        if nvml is None:
            return {uuid: Occupancy() for uuid in wanted}
        return {uuid: _occupancy(nvml, _handle(nvml, uuid)) for uuid in wanted}


def compute_pids(uuids: Iterable[str]) -> frozenset[int]:
    """The processes that compute on these GPUs, as the driver numbers them."""
    return frozenset().union(*(each.pids for each in occupancy(uuids).values()))


def await_free(
    gpus: Sequence[Gpu],
    *,
    timeout_s: float = FREE_WAIT_S,
    on_wait: Callable[[str, str], None],
) -> None:
    """Wait until nobody is on these GPUs and their memory is back.

    Raises:
        ServerStartError: Somebody stays; the message names who and how to see more.
    """
    deadline = time.monotonic() + timeout_s
    by_uuid = {gpu.uuid: gpu for gpu in gpus}
    while True:
        taken = [
            f"GPU {by_uuid[uuid].index} ({found.label})"
            for uuid, found in occupancy(by_uuid).items()
            if not found.free
        ]
        if not taken:
            return
        if time.monotonic() >= deadline:
            raise ServerStartError(
                f"still in use after {timeout_s:g} s: {'; '.join(taken)}; end what runs there "
                "(nvidia-smi lists it), or leave the GPU out with CUDA_VISIBLE_DEVICES"
            )
        on_wait("waiting for GPU memory", "; ".join(taken))
        time.sleep(POLL_S)


class GpuWatch:
    """Samples GPUs from a thread while the block runs; read `readings` after it."""

    def __init__(
        self,
        uuids: Sequence[str],
        *,
        interval_s: float = 0.2,
        own_pids: frozenset[int] = frozenset(),
    ) -> None:
        """Watch `uuids`; what is neither of `own_pids` nor started from here is foreign there."""
        self.readings: tuple[GpuReading, ...] = ()
        self._gpus = [_Watched(uuid, own_pids) for uuid in uuids]
        self._interval_s = interval_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-watch", daemon=True)
        self._begun = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        # The play begins when it is known whether the GPUs were idle.
        self._begun.wait(timeout=2 * QUIET_WAIT_S)
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(timeout=2 * QUIET_WAIT_S)
        self.readings = tuple(gpu.reading() for gpu in self._gpus)

    def _run(self) -> None:
        try:
            with open_nvml() as nvml:
                if nvml is not None and self._gpus:
                    self._watch(nvml)
        finally:
            self._begun.set()

    def _watch(self, nvml: Any) -> None:
        handles = {gpu.uuid: _handle(nvml, gpu.uuid) for gpu in self._gpus}
        self._see_idle(nvml, handles)
        self._begun.set()
        # A play that is shorter than the interval is looked at once, as it ends.
        while not self._over.wait(self._interval_s) or not self._gpus[0].samples:
            for gpu in self._gpus:
                gpu.look(nvml, handles[gpu.uuid])

    def _see_idle(self, nvml: Any, handles: Mapping[str, Any]) -> None:
        """Note which GPUs become quiet within the time that their driver needs to say so."""
        deadline = time.monotonic() + QUIET_WAIT_S
        busy = list(self._gpus)
        while busy and time.monotonic() < deadline and not self._over.is_set():
            busy = [gpu for gpu in busy if not gpu.quiet(nvml, handles[gpu.uuid])]
            self._over.wait(POLL_S if busy else 0.0)
        for gpu in busy:
            gpu.idle_before = False


@dataclass(slots=True)
class _Watched:
    """One GPU and what was seen of it."""

    uuid: str
    own_pids: frozenset[int]
    idle_before: bool = True
    samples: int = 0
    figures: dict[str, list[float]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    foreign: dict[int, str] = field(default_factory=dict)

    def quiet(self, nvml: Any, handle: Any) -> bool:
        """Whether nothing runs now; yes where the driver cannot tell."""
        rates = _ask(nvml, "nvmlDeviceGetUtilizationRates", handle)
        return rates is None or rates.gpu / 100 <= QUIET

    def look(self, nvml: Any, handle: Any) -> None:
        """Take one sample."""
        self.samples += 1
        occupied = _occupancy(nvml, handle)
        figures = {**_figures(nvml, handle), "memory_used_gib": occupied.used_gib}
        for name, value in figures.items():
            if value is not None:
                self.figures.setdefault(name, []).append(value)
        mask = _ask(nvml, "nvmlDeviceGetCurrentClocksEventReasons", handle) or 0
        self.reasons.update(
            word
            for reason, word in REASONS.items()
            if mask & getattr(nvml, f"nvmlClocksEventReason{reason}")
        )
        for pid in occupied.pids - self.own_pids - self.foreign.keys():
            if descends_from_here(pid):
                self.own_pids |= {pid}
            else:
                # Named at once: later it may be gone.
                self.foreign[pid] = named(pid)

    def reading(self) -> GpuReading:
        """What was seen, as one value a figure."""
        medians = {name: statistics.median(values) for name, values in self.figures.items()}
        return GpuReading(
            uuid=self.uuid,
            samples=self.samples,
            sm_clock_mhz_min=min(self.figures.get("sm_clock_mhz", ()), default=None),
            **medians,
            throttled={
                word: round(count / self.samples, 4) for word, count in sorted(self.reasons.items())
            },
            foreign=tuple(self.foreign.values()),
            idle_before=self.idle_before,
        )


def _figures(nvml: Any, handle: Any) -> dict[str, float | None]:
    """By the names of `GpuReading`."""
    power_mw = _ask(nvml, "nvmlDeviceGetPowerUsage", handle)
    rates = _ask(nvml, "nvmlDeviceGetUtilizationRates", handle)
    return {
        "sm_clock_mhz": _ask(nvml, "nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": _ask(nvml, "nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_MEM),
        "power_w": None if power_mw is None else power_mw / 1000,
        "temperature_c": _ask(nvml, "nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
        "utilisation": None if rates is None else rates.gpu / 100,
    }


def _occupancy(nvml: Any, handle: Any) -> Occupancy:
    processes = _ask(nvml, "nvmlDeviceGetComputeRunningProcesses", handle) or ()
    found = None if handle is None else memory(nvml, handle)
    return Occupancy(
        pids=frozenset(process.pid for process in processes),
        used_gib=None if found is None else found.used / GIB,
    )


def _handle(nvml: Any, uuid: str) -> Any:
    return ask(nvml, "nvmlDeviceGetHandleByUUID", uuid)


def _ask(nvml: Any, function: str, handle: Any, *arguments: Any) -> Any:
    """As `told`; None for a GPU that is not there any more."""
    return None if handle is None else ask(nvml, function, handle, *arguments)
