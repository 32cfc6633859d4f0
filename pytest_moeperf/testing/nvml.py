"""A driver that answers from a recording, in the place of the module `pynvml`.

A recording is a JSON object. `system` holds the answers that belong to no GPU; `gpus` has one
object a GPU with two sets of answers, `idle` and, over them, `busy`. A key is the name of the
function with its further arguments, as `nvmlDeviceGetClockInfo 1`; another GPU is given by its
index. A value is

- a number, a text or a list: the answer itself;
- an object: a structure with these fields;
- `{"error": 3}`: NVML's error of that number;
- `{"series": [...]}`: one of these a call, over and over.

What is not in it is not supported, as on a GPU that cannot tell.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["IDLE", "RecordedNvml"]

IDLE, BUSY = "idle", "busy"
PROCESSES = "nvmlDeviceGetComputeRunningProcesses"
NOT_SUPPORTED = {"error": 3}
UUID = "nvmlDeviceGetUUID"
OWN_BYTES = 2**30
"""What each process is said to have taken; the sum is in the memory's own answer."""


class _Handle:
    """A GPU, as the functions take it."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __str__(self) -> str:
        return str(self.index)


class RecordedNvml:
    """The functions and constants of `pynvml` over a recording.

    A GPU is busy while `processes` names a process for its index; these processes are listed by the
    driver beside those of the recording.
    """

    def __init__(
        self,
        recording: Path | str | Mapping[str, Any],
        *,
        processes: Callable[[int], Iterable[int]] = lambda _index: (),
        salt: str = "",
    ) -> None:
        """Read the recording; `salt` makes UUIDs of their own from those that it has."""
        import pynvml  # noqa: PLC0415 - the real one, for its constants and errors

        self._real = pynvml
        self._recording: dict[str, Any] = (
            json.loads(Path(recording).read_text(encoding="utf-8"))
            if isinstance(recording, str | Path)
            else copy.deepcopy(dict(recording))
        )
        self._processes = processes
        self._calls: Counter[tuple[int, str, str]] = Counter()
        self.users = 0
        """Inits without a shutdown."""
        for gpu in self._recording["gpus"]:
            gpu[IDLE][UUID] += salt

    @property
    def uuids(self) -> tuple[str, ...]:
        """The GPUs in the order of their index."""
        return tuple(gpu[IDLE][UUID] for gpu in self._recording["gpus"])

    def change(self, index: int, call: str, answer: Any, *, state: str = IDLE) -> None:
        """Answer this call otherwise from now on; a series begins anew."""
        self._recording["gpus"][index].setdefault(state, {})[call] = answer
        self._calls.clear()

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        """Open the driver; the recording may hold an error for it."""
        self._answer(self._recording["system"].get("nvmlInit"), -1, "nvmlInit", "")
        self.users += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        """Close what was opened."""
        self._check_open()
        self.users -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """As many as were recorded."""
        self._check_open()
        return len(self._recording["gpus"])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> _Handle:  # noqa: N802
        """Raise an error of NVML for an unknown index."""
        self._check_open()
        if not 0 <= index < len(self._recording["gpus"]):
            raise self._real.NVMLError(self._real.NVML_ERROR_INVALID_ARGUMENT)
        return _Handle(index)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> _Handle:  # noqa: N802
        """Raise an error of NVML for an unknown UUID."""
        self._check_open()
        if uuid not in self.uuids:
            raise self._real.NVMLError(self._real.NVML_ERROR_NOT_FOUND)
        return _Handle(self.uuids.index(uuid))

    def nvmlDeviceGetMemoryInfo(  # noqa: N802
        self, handle: _Handle, _version: int | None = None
    ) -> Any:
        """Answer what was recorded, in whatever version."""
        self._check_open()
        return self._ask("nvmlDeviceGetMemoryInfo", handle)

    def __getattr__(self, name: str) -> Any:
        """Answer any other function; constants and errors are the real ones."""
        if not name.startswith(("nvmlDevice", "nvmlSystem")):
            return getattr(self._real, name)

        def call(*arguments: Any) -> Any:
            self._check_open()
            if name.startswith("nvmlSystem"):
                recorded = self._recording["system"].get(name, NOT_SUPPORTED)
                return self._answer(recorded, -1, name, "")
            return self._ask(name, *arguments)

        return call

    def _check_open(self) -> None:
        if not self.users:
            raise self._real.NVMLError(self._real.NVML_ERROR_UNINITIALIZED)

    def _ask(self, name: str, handle: _Handle, *arguments: Any) -> Any:
        gpu = self._recording["gpus"][handle.index]
        running = list(self._processes(handle.index))
        call = " ".join([name, *map(str, arguments)])
        state = BUSY if running and call in gpu.get(BUSY, {}) else IDLE
        answer = self._answer(gpu[state].get(call, NOT_SUPPORTED), handle.index, state, call)
        if name == PROCESSES:
            own = [SimpleNamespace(pid=pid, usedGpuMemory=OWN_BYTES) for pid in running]
            return [*own, *(SimpleNamespace(**process) for process in answer)]
        return answer

    def _answer(self, recorded: Any, index: int, state: str, call: str) -> Any:
        if isinstance(recorded, dict) and "series" in recorded:
            series = recorded["series"]
            recorded = series[self._calls[index, state, call] % len(series)]
            self._calls[index, state, call] += 1
        if isinstance(recorded, dict) and "error" in recorded:
            raise self._real.NVMLError(recorded["error"])
        return SimpleNamespace(**recorded) if isinstance(recorded, dict) else copy.copy(recorded)
