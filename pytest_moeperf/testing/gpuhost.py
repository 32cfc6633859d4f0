"""A pytest plugin that makes a session believe in recorded GPUs.

`MOEPERF_TEST_NVML=tests/data/nvml/2x-h200.json pytest -p pytest_moeperf.testing.gpuhost …` finds
the GPUs of the recording. One is busy while a server runs that was started on it, so that a fake
engine takes and frees it as a real one does. Sessions of one process, or with the same
`MOEPERF_TEST_HOST`, share their GPUs; to others these are different ones.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_moeperf.testing.nvml import RecordedNvml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

__all__ = ["HOST_VARIABLE", "RECORDING_VARIABLE", "Occupants"]

RECORDING_VARIABLE = "MOEPERF_TEST_NVML"
HOST_VARIABLE = "MOEPERF_TEST_HOST"
MODULE = "pynvml"
LEASES = Path(tempfile.gettempdir()) / "moeperf-gpus"
LOOK_AGAIN_S = 0.05
"""To read what all processes were started with takes a few milliseconds."""

_before: list[tuple[ModuleType | None, str | None]] = []


def pytest_configure() -> None:
    """Put the recording in the place of the driver."""
    recording = os.environ.get(RECORDING_VARIABLE)
    if recording is None:
        raise ValueError(f"{RECORDING_VARIABLE} must name a recording, see {__name__}")
    named = os.environ.get(HOST_VARIABLE)
    host = named or str(os.getpid())
    driver: Any = RecordedNvml(recording, processes=Occupants(host).of, salt=f"-{host}")
    _before.append((sys.modules.get(MODULE), named))
    sys.modules[MODULE] = driver
    # Servers inherit the name of the host that they run on.
    os.environ[HOST_VARIABLE] = host


def pytest_unconfigure() -> None:
    """Give the driver its place back."""
    driver = sys.modules[MODULE]
    module, host = _before.pop()
    if module is None:
        del sys.modules[MODULE]
    else:
        sys.modules[MODULE] = module
    if host is None:
        del os.environ[HOST_VARIABLE]
        # Nobody else has these GPUs, nor will anybody lease them again.
        for uuid in driver.uuids:
            (LEASES / f"{uuid}.lock").unlink(missing_ok=True)


class Occupants:
    """Who was started on a GPU of this host."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._looked_at = -LOOK_AGAIN_S
        self._visible: dict[int, list[str]] = {}

    def of(self, index: int) -> list[int]:
        """The processes that may use this GPU."""
        if time.monotonic() - self._looked_at >= LOOK_AGAIN_S:
            self._visible = dict(_visible_devices(self._host))
            self._looked_at = time.monotonic()
        return [pid for pid, visible in self._visible.items() if str(index) in visible]


def _visible_devices(host: str) -> Iterator[tuple[int, list[str]]]:
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            command = Path(entry.path, "cmdline").read_bytes()
            words = Path(entry.path, "environ").read_text(errors="replace").split("\0")
        except OSError:
            continue  # It has ended, or is another user's.
        environment = dict(word.split("=", 1) for word in words if "=" in word)
        here = environment.get(HOST_VARIABLE) == host and "CUDA_DEVICE_ORDER" in environment
        # A guardian has the environment of its server and computes nothing.
        if here and b"guardian.py" not in command:
            yield int(entry.name), environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
