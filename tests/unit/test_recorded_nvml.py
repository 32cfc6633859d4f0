"""The stand-in for the driver, and the script that records a real one for it."""

import json
import runpy
import sys
from pathlib import Path

import pynvml
import pytest

from pytest_moeperf.gpu import detect_gpus, resolve_hardware
from pytest_moeperf.telemetry import GpuWatch
from pytest_moeperf.testing.nvml import RecordedNvml

ROOT = Path(__file__).parents[2]
TWO_H200 = ROOT / "tests" / "data" / "nvml" / "2x-h200.json"


@pytest.fixture
def nvml():
    recorded = RecordedNvml(TWO_H200)
    recorded.nvmlInit()
    return recorded


def test_constants_and_errors_are_the_real_ones(nvml):
    assert nvml.NVML_CLOCK_MEM == pynvml.NVML_CLOCK_MEM
    assert nvml.NVMLError is pynvml.NVMLError


def test_it_is_as_strict_as_the_driver(nvml):
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetHandleByIndex(2)
    with pytest.raises(pynvml.NVMLError_NotFound):
        nvml.nvmlDeviceGetHandleByUUID("GPU-gone")
    with pytest.raises(pynvml.NVMLError_NotSupported):
        nvml.nvmlDeviceGetFanSpeed(nvml.nvmlDeviceGetHandleByIndex(0))
    nvml.nvmlShutdown()
    for call in (nvml.nvmlDeviceGetCount, nvml.nvmlShutdown, nvml.nvmlSystemGetDriverVersion):
        with pytest.raises(pynvml.NVMLError_Uninitialized):
            call()


def test_every_recorded_call_is_a_function_of_the_driver():
    for path in TWO_H200.parent.iterdir():
        for gpu in json.loads(path.read_text())["gpus"]:
            for call in {**gpu["idle"], **gpu["busy"]}:
                assert callable(getattr(pynvml, call.split()[0]))


def test_a_salt_makes_other_gpus_of_them():
    salted = RecordedNvml(TWO_H200, salt="-7").uuids
    assert salted == tuple(f"{uuid}-7" for uuid in RecordedNvml(TWO_H200).uuids)


def test_what_was_recorded_reads_like_what_it_was_recorded_from(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    machine = RecordedNvml(TWO_H200)
    machine.change(0, "nvmlDeviceGetClockInfo 1", {"series": [345, 1980]})
    machine.change(1, "nvmlDeviceGetComputeRunningProcesses", [{"pid": 1, "usedGpuMemory": 5}])
    monkeypatch.setitem(sys.modules, "pynvml", machine)
    main = runpy.run_path(str(ROOT / "scripts" / "record_nvml.py"))["main"]
    file = tmp_path / "recorded.json"
    arguments = [
        str(file),
        "--source",
        "a test",
        "--seconds",
        "0.5",
        "--busy",
        sys.executable,
        "-c",
        "",
    ]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{file}: 2 GPUs\n"
    assert sys.modules["pynvml"] is machine

    original = resolve_hardware("auto")
    replayed = RecordedNvml(file)
    monkeypatch.setitem(sys.modules, "pynvml", replayed)
    copied = resolve_hardware("auto")
    assert [link.kind for link in copied.links] == [link.kind for link in original.links]
    for mine, theirs in zip(copied.gpus, original.gpus, strict=True):
        assert mine.uuid != theirs.uuid
        for name in (
            "index",
            "name",
            "memory_gib",
            "driver",
            "power_limit_w",
            "ecc",
            "mig",
            "pcie",
        ):
            assert getattr(mine, name) == getattr(theirs, name)
    # Nobody's processes are in it, and nothing that names the machine.
    assert not any(uuid in file.read_text() for uuid in machine.uuids)
    with GpuWatch([gpu.uuid for gpu in detect_gpus()], interval_s=0.01) as watching:
        pass
    assert [(each.foreign, each.memory_clock_mhz) for each in watching.readings] == [((), 3201)] * 2
    assert watching.readings[0].sm_clock_mhz in {345, 1980}
