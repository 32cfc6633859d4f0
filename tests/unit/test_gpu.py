"""Which hardware a run measures on."""

import sys

import pytest

from pytest_moeperf import gpu as gpu_module
from pytest_moeperf.errors import UsageError
from pytest_moeperf.gpu import resolve_hardware, visible_gpus
from pytest_moeperf.hardware import Gpu, class_of, group_by_class


def gpus(*names):
    return tuple(
        Gpu(index=index, name=name, memory_gib=140.4, uuid=f"GPU-{index}{index}")
        for index, name in enumerate(names)
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA GH200 480GB", "gh200-480gb"),
        ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090"),
    ],
)
def test_class_of_a_gpu(name, expected):
    assert class_of(name) == expected


def test_the_class_with_most_gpus_comes_first():
    groups = group_by_class(gpus("NVIDIA L40S", "NVIDIA H200", "NVIDIA H200"))
    assert {name: len(group) for name, group in groups.items()} == {"h200": 2, "l40s": 1}
    assert next(iter(groups)) == "h200"


def test_auto_takes_what_the_machine_has_most_of():
    hardware = resolve_hardware("auto", gpus=gpus("NVIDIA L40S", "NVIDIA H200", "NVIDIA H200"))
    assert hardware.name == "h200"
    assert [gpu.index for gpu in hardware.gpus] == [1, 2]
    assert hardware.label == "2x NVIDIA H200, 140 GiB each"


def test_auto_is_the_cpu_without_a_gpu():
    hardware = resolve_hardware("auto", gpus=())
    assert (hardware.name, hardware.gpus) == ("cpu", ())
    assert hardware.cpu_cores >= 1
    assert f"{hardware.cpu_cores} cores" in hardware.label


def test_the_cpu_can_be_asked_for_beside_a_gpu():
    assert resolve_hardware("cpu", gpus=gpus("NVIDIA H200")).gpus == ()


def test_a_class_that_the_machine_lacks_names_what_it_has():
    with pytest.raises(UsageError) as caught:
        resolve_hardware("h100", gpus=gpus("NVIDIA H200", "NVIDIA H200"))
    assert str(caught.value) == (
        "--gpu h100: this machine has 2x NVIDIA H200; use --gpu h200, --gpu cpu"
    )


def test_a_class_that_nobody_knows_lists_the_known_ones():
    with pytest.raises(UsageError) as caught:
        resolve_hardware("h300", gpus=())
    assert str(caught.value) == (
        "--gpu h300: unknown; valid are auto, cpu, h200, h100, a100, b200, l40s; "
        "this machine has no NVIDIA GPU"
    )


def test_a_gpu_that_is_not_listed_can_be_asked_for_by_its_own_class():
    assert resolve_hardware("gb200", gpus=gpus("NVIDIA GB200")).name == "gb200"


@pytest.mark.parametrize(
    ("selection", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("2,0", [2, 0]),
        ("GPU-11", [1]),
        ("0,-1,2", [0]),
        ("0, 1", [0, 1]),
    ],
)
def test_cuda_visible_devices_selects_as_in_cuda(selection, indices):
    found = visible_gpus(gpus("NVIDIA H200", "NVIDIA H200", "NVIDIA H200"), selection)
    assert [gpu.index for gpu in found] == indices


class FakeNvml:
    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, names):
        self.names = names
        self.open = False

    def nvmlInit(self):  # noqa: N802 - NVML's name
        if self.names is None:
            raise self.NVMLError
        self.open = True

    def nvmlShutdown(self):  # noqa: N802
        self.open = False

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return self.names[handle]

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, _handle):  # noqa: N802
        return type("Info", (), {"total": 2**30 * 80})


def test_gpus_are_read_from_the_driver(monkeypatch):
    nvml = FakeNvml(["NVIDIA H100 80GB HBM3"])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_module.detect_gpus() == (
        Gpu(index=0, name="NVIDIA H100 80GB HBM3", memory_gib=80.0, uuid="GPU-0"),
    )
    assert not nvml.open


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(None))
    assert gpu_module.detect_gpus() == ()
