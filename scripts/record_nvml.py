"""Record what the driver of this machine tells of its GPUs, for tests without any.

    python scripts/record_nvml.py tests/data/nvml/8x-b200.json --source "eight B200 of one host"
    python scripts/record_nvml.py … --busy python load.py    # also while a command keeps them busy

The file is what `pytest_moeperf.testing.nvml` answers from. UUIDs are replaced and processes are
left out: they name a machine and what its users do.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from pytest_moeperf.gpu import detect_gpus, detect_links
from pytest_moeperf.telemetry import GpuWatch

CHANGING = (
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetCurrentClocksEventReasons",
)
"""Stored as a series where it changed."""
LEFT_OUT = {"nvmlDeviceGetUUID": None, "nvmlDeviceGetComputeRunningProcesses": []}
FIELDS = ("total", "used", "free", "gpu", "memory", "busId")
"""What we read of the driver's structures."""


class Handle(NamedTuple):
    """A GPU as the driver takes it, with its index."""

    index: int
    real: Any


class Recorder:
    """`pynvml`, remembering what the driver answers."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self._indices: dict[str, int] = {}
        self.answers: dict[int, dict[str, list[Any]]] = {}
        """By GPU and call, in their order."""
        self.system: dict[str, Any] = {}

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Handle:  # noqa: N802 - NVML's name
        """Remember which GPU a handle is."""
        return Handle(index, self._real.nvmlDeviceGetHandleByIndex(index))

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Handle:  # noqa: N802
        """The same."""
        real = self._real.nvmlDeviceGetHandleByUUID(uuid)
        return Handle(self._indices[uuid], real)

    def __getattr__(self, name: str) -> Any:
        """Pass anything else on."""
        found = getattr(self._real, name)
        if name.startswith("nvmlSystem"):
            return lambda: self.system.setdefault(name, found())
        if not name.startswith("nvmlDevice") or name == "nvmlDeviceGetCount":
            return found

        def call(handle: Handle, *arguments: Any) -> Any:
            real = [each.real if isinstance(each, Handle) else each for each in arguments]
            words = [str(each.index if isinstance(each, Handle) else each) for each in arguments]
            if name == "nvmlDeviceGetMemoryInfo":
                words = []  # The version that is asked for is the caller's business.
            calls = self.answers.setdefault(handle.index, {}).setdefault(
                " ".join([name, *words]), []
            )
            try:
                answer = found(handle.real, *real)
            except self._real.NVMLError as error:
                calls.append({"error": error.value})
                raise
            calls.append(plain(answer))
            if name == "nvmlDeviceGetUUID":
                self._indices[answer] = handle.index
            return answer

        return call

    def states(self) -> dict[int, dict[str, Any]]:
        """What was answered since the last time, by GPU."""
        found = {
            index: {
                call: LEFT_OUT.get(call, series(call, answers)) for call, answers in calls.items()
            }
            for index, calls in sorted(self.answers.items())
        }
        self.answers = {}
        return found


def plain(answer: Any) -> Any:
    if isinstance(answer, int | float | str):
        return answer
    if isinstance(answer, list | tuple):
        return [plain(each) for each in answer]
    return {name: getattr(answer, name) for name in FIELDS if hasattr(answer, name)}


def series(call: str, answers: list[Any]) -> Any:
    """One answer where it never changed."""
    if call.startswith(CHANGING) and any(answer != answers[0] for answer in answers):
        return {"series": answers}
    return answers[-1]


def pseudonym(uuid: str, index: int) -> str:
    return f"GPU-{hashlib.sha256(uuid.encode()).hexdigest()[:8]}-0000-4000-8000-{index:012d}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--source", required=True, help="what machine this is, without its name")
    parser.add_argument("--seconds", type=float, default=5.0, help="to watch for (default: 5)")
    parser.add_argument("--busy", nargs=argparse.REMAINDER, help="a command to watch as well")
    args = parser.parse_args(argv)

    import pynvml  # noqa: PLC0415 - put in its place here

    # The driver numbers all GPUs of the machine.
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    recorder: Any = Recorder(pynvml)
    sys.modules["pynvml"] = recorder
    try:
        gpus = detect_gpus()
        detect_links(gpus)
        uuids = [gpu.uuid for gpu in gpus]
        with GpuWatch(uuids):
            time.sleep(args.seconds)
        idle = recorder.states()
        busy = {}
        if args.busy:
            with GpuWatch(uuids):
                subprocess.run(args.busy, check=True)
            busy = recorder.states()
    finally:
        sys.modules["pynvml"] = pynvml
    for gpu in gpus:
        idle[gpu.index]["nvmlDeviceGetUUID"] = pseudonym(gpu.uuid, gpu.index)
    found = [
        {
            "idle": idle[gpu.index],
            "busy": {
                call: answer
                for call, answer in busy.get(gpu.index, {}).items()
                if call.startswith(CHANGING)
            },
        }
        for gpu in gpus
    ]
    recording = {"source": args.source, "system": recorder.system, "gpus": found}
    args.file.write_text(json.dumps(recording, indent=1) + "\n", encoding="utf-8")
    print(f"{args.file}: {len(gpus)} GPUs")
    return 0 if gpus else 1


if __name__ == "__main__":
    sys.exit(main())
