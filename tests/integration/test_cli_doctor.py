"""`moeperf doctor` on machines that a recording stands in for."""

import json
import sys
from pathlib import Path

import pytest

from pytest_moeperf.cli import main
from pytest_moeperf.testing.nvml import RecordedNvml

RECORDING = Path(__file__).parents[1] / "data" / "nvml" / "2x-h200.json"
NOBODY = 2**22 + 1
"""No process has this number: it is over the greatest that Linux gives."""


@pytest.fixture
def nvml(monkeypatch, tmp_path):
    recorded = RecordedNvml(RECORDING)
    monkeypatch.setitem(sys.modules, "pynvml", recorded)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("MOEPERF_CACHE", str(tmp_path))
    return recorded


@pytest.fixture
def checks(capsys):
    """Runs the command and returns its checks by name."""

    def run():
        assert main(["doctor", "--json"]) in {0, 1}
        return {check.pop("name"): check for check in json.loads(capsys.readouterr().out)}

    return run


def test_each_gpu_is_shown_with_what_its_driver_tells(nvml, checks):
    found = checks()
    assert found["hardware"]["found"] == "h200: 2x NVIDIA H200, 140 GiB each"
    assert found["driver"]["found"] == "580.159.04"
    assert found["gpu 1"] == {
        "ok": True,
        "found": "NVIDIA H200, 140.4 GiB, 700 W, ECC on, PCIe 5.0 x16, NV18 to gpu 0, free",
        "remedy": "",
    }


def test_a_lowered_power_limit_shows_and_what_is_not_told_does_not(nvml, checks):
    nvml.change(0, "nvmlDeviceGetPowerManagementLimit", 500000)
    nvml.change(0, "nvmlDeviceGetCurrentEccMode", {"error": 3})
    nvml.change(0, "nvmlDeviceGetMaxPcieLinkWidth", {"error": 3})
    assert checks()["gpu 0"]["found"] == (
        "NVIDIA H200, 140.4 GiB, 500 W (made for 700 W), NV18 to gpu 1, free"
    )


def test_a_gpu_in_use_is_no_place_to_measure_on(nvml, checks):
    nvml.change(0, "nvmlDeviceGetComputeRunningProcesses", [{"pid": NOBODY, "usedGpuMemory": 1}])
    found = checks()["gpu 0"]
    assert not found["ok"]
    assert found["found"].endswith(f"in use: {NOBODY}, 0.0 GiB used")
    assert found["remedy"] == "end what runs there: nvidia-smi lists it"


def test_gpus_that_cannot_be_used_are_told_beside_the_cpu(nvml, checks, capsys):
    nvml.change(0, "nvmlDeviceGetMigMode", [1, 1])
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["NO", "hardware"]
    assert "GPU 0 (NVIDIA H200) is in MIG mode" in lines[1]
    assert lines[2].split()[:3] == ["ok", "hardware", "cpu:"]


def test_a_machine_without_a_gpu_has_no_line_of_them(nvml, checks, monkeypatch):
    without = RecordedNvml({"system": {"nvmlInit": {"error": 12}}, "gpus": []})
    monkeypatch.setitem(sys.modules, "pynvml", without)
    found = checks()
    assert found["hardware"]["found"].startswith("cpu: ")
    assert not {"driver", "gpu 0"} & found.keys()
