"""What this machine is, and how busy it is with other things."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.units import GIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import psutil

__all__ = [
    "BusyWatch",
    "Bystanders",
    "CopySpeed",
    "CoreTime",
    "await_rest",
    "core_ids",
    "core_time",
    "cpu_model",
    "cpu_quota",
    "full_load",
    "kernel",
    "memory_copy_gib_per_s",
    "memory_gib",
    "usable_cores",
]

LEAST_CORES = 0.02
"""Who takes less is not worth naming."""
GLANCE_S = 0.2
REST_SHARE = 0.1
"""Of a core, over a glance; the kernel counts in hundredths of a second."""
BUSY_FIELDS = (0, 1, 2, 5, 6)
"""Of a core's line in `/proc/stat`: user nice system (idle iowait) irq softirq."""
STEAL_FIELD = 7
"""Of the same line: when there was work, but the hypervisor gave the core to another machine."""
_CHUNK = bytes(2**20)
_CPUINFO_FIELDS = ("vendor_id", "model name", "cpu family", "model", "stepping")


def cpu_model(cpuinfo: str | None = None) -> str:
    """Name the processor so that two different ones never share a name.

    Virtual machines often cut the name to a bare `AMD EPYC`: family, model and stepping tell
    these apart.

    Args:
        cpuinfo: Content of `/proc/cpuinfo`; None reads it.
    """
    text = _read("/proc/cpuinfo") if cpuinfo is None else cpuinfo
    fields = {
        name: match[1].strip()
        for name in _CPUINFO_FIELDS
        if (match := re.search(rf"^{name}\s*:(.*)$", text, re.MULTILINE))
    }
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = [
        f"{label} {fields[field]}"
        for label, field in (("family", "cpu family"), ("model", "model"), ("stepping", "stepping"))
        if field in fields
    ]
    return f"{name} ({' '.join(numbers)})" if numbers else name


def core_ids() -> tuple[int, ...]:
    """Cores that this process may run on: what `taskset` and container limits leave of them."""
    return tuple(sorted(os.sched_getaffinity(0)))


def cpu_quota(cpu_max: str | None = None) -> float | None:
    """Cores' worth of time that the control group allows; None without a limit.

    Args:
        cpu_max: Content of the group's `cpu.max`, `200000 100000` or `max 100000`; None reads it.
    """
    text = _read("/sys/fs/cgroup/cpu.max") if cpu_max is None else cpu_max
    quota, _, period = text.strip().partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def usable_cores() -> int:
    """Cores that this process can keep busy, by affinity and control group."""
    cores = len(core_ids())
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def memory_gib() -> float:
    """Main memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def kernel() -> str:
    """System and release, as `Linux 6.18.44`."""
    return f"{platform.system()} {platform.release()}"


def memory_copy_gib_per_s(*, megabytes: int = 128, copies: int = 6) -> float:
    """Bytes that one core copies within main memory, the best of several attempts.

    Decoding on a CPU is bound by this, so it tells a machine that got slower from an engine
    that did.
    """
    import numpy as np  # noqa: PLC0415 - not needed to load the plugin

    source = np.ones(megabytes * 2**20, dtype=np.uint8)
    target = np.zeros_like(source)
    best_s = math.inf
    for _ in range(copies):
        started = time.perf_counter()
        np.copyto(target, source)
        best_s = min(best_s, time.perf_counter() - started)
    return source.nbytes / GIB / best_s


@dataclass(frozen=True, slots=True)
class Bystanders:
    """What others took of the usable cores while something was to be measured."""

    cores: float = 0.0
    """CPU seconds per second, of processes that ended meanwhile and other guests too."""
    stolen_cores: float = 0.0
    """That part of it which other virtual machines on the same host took."""
    names: tuple[str, ...] = ()
    """The processes that can still be named, the busiest first."""


class BusyWatch:
    """Adds up what others take of the machine from its creation on.

    This process and its descendants are not others; servers are among them, as each has a
    guardian that is their parent.

    Args:
        strangers: Descendants that count as others, with what descends from them.
    """

    def __init__(self, strangers: Sequence[int] = ()) -> None:
        self._strangers = strangers
        self._before = _read_usage(strangers)

    def bystanders(self) -> Bystanders:
        """Who used the usable cores since."""
        before, after = self._before, _read_usage(self._strangers)
        elapsed_s = after.at_s - before.at_s
        stolen_s = after.cores.stolen_s - before.cores.stolen_s
        own_s = after.own_s - before.own_s
        others_s = after.cores.busy_s - before.cores.busy_s - own_s + stolen_s
        used_s = {
            key: cpu_s - before.others_s[key]
            for key, cpu_s in after.others_s.items()
            if key in before.others_s
        }
        named = sorted(used_s, key=lambda key: -used_s[key])
        return Bystanders(
            cores=max(0.0, others_s / elapsed_s),
            stolen_cores=stolen_s / elapsed_s,
            names=tuple(key[1] for key in named if used_s[key] > elapsed_s * LEAST_CORES),
        )


def await_rest(pid: int, *, patience_s: float) -> bool:
    """Wait until a process and its descendants use next to no core; False if they go on."""
    give_up_at = time.monotonic() + patience_s
    before = _tree_s(pid)
    while time.monotonic() < give_up_at:
        time.sleep(GLANCE_S)
        after = _tree_s(pid)
        # Less than before: one has ended, and took what it had used out of the sum.
        if 0 <= after - before < GLANCE_S * REST_SHARE:
            return True
        before = after
    return False


def _tree_s(pid: int) -> float:
    """CPU seconds of a process and of those of its descendants that live."""
    return sum(_used_s(process) for process in _tree(pid))


def _tree(pid: int) -> list[psutil.Process]:
    import psutil  # noqa: PLC0415 - not needed to load the plugin

    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.Error:
        return []


def _used_s(process: psutil.Process) -> float:
    """With what its ended children had used; 0 if it has ended itself."""
    import psutil  # noqa: PLC0415 - not needed to load the plugin

    try:
        used = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(used.user + used.system + used.children_user + used.children_system)


@dataclass(frozen=True, slots=True)
class _Usage:
    at_s: float
    cores: CoreTime
    own_s: float
    others_s: dict[tuple[int, str], float]


def _read_usage(strangers: Sequence[int]) -> _Usage:
    import psutil  # noqa: PLC0415 - not needed to load the plugin

    apart = {process.pid for pid in strangers for process in _tree(pid)}
    own = {process.pid for process in _tree(os.getpid())} - apart
    own_s = 0.0
    others_s = {}
    for process in psutil.process_iter():
        if process.pid in own:
            own_s += _used_s(process)
            continue
        try:
            used = process.cpu_times()
            others_s[process.pid, process.name()] = used.user + used.system
        except psutil.Error:
            # It ended between being listed and being asked.
            continue
    return _Usage(time.monotonic(), core_time(core_ids()), own_s, others_s)


@dataclass(frozen=True, slots=True)
class CoreTime:
    """What became of the time of some cores, since the machine started."""

    busy_s: float
    """Used by the kernel and all processes; that of guests within does not count twice."""
    stolen_s: float
    """Wanted, but given to other guests of the hypervisor."""


def core_time(cores: Sequence[int], stat: str | None = None) -> CoreTime:
    """Add up the time of `cores`.

    Args:
        cores: By number.
        stat: Content of `/proc/stat`; None reads it.
    """
    wanted = {f"cpu{core}" for core in cores}
    lines = (line.split() for line in (_read("/proc/stat") if stat is None else stat).splitlines())
    times = [[int(field) for field in fields] for name, *fields in lines if name in wanted]
    hertz = os.sysconf("SC_CLK_TCK")
    return CoreTime(
        busy_s=sum(fields[index] for fields in times for index in BUSY_FIELDS) / hertz,
        stolen_s=sum(sum(fields[STEAL_FIELD : STEAL_FIELD + 1]) for fields in times) / hertz,
    )


@contextmanager
def full_load() -> Iterator[None]:
    """Keep all usable cores busy.

    A hypervisor takes cores only from a machine that wants them: one that idles looks as if it
    had the host alone.
    """
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            hashlib.sha256(_CHUNK).digest()

    threads = [
        threading.Thread(target=work, name="full-load", daemon=True) for _ in range(usable_cores())
    ]
    try:
        for thread in threads:
            thread.start()
        yield
    finally:
        over.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


@dataclass(slots=True)
class CopySpeed:
    """How fast this machine copies memory, looked at once a minute at most."""

    max_age_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _known: tuple[float, float] | None = None

    def gib_per_s(self, await_rest: Callable[[], bool]) -> float | None:
        """Measure it when the servers rest; None where they do not.

        An engine that spins on the cores would make the machine look slow, and be excused by it.
        """
        now = self.clock()
        if self._known is None or now - self._known[0] > self.max_age_s:
            if not await_rest():
                return None
            self._known = now, memory_copy_gib_per_s()
        return self._known[1]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
