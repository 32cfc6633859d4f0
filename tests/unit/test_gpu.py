"""Which hardware a run measures on."""

import sys
from pathlib import Path

import pytest

from pytest_moeperf import gpu as gpu_module
from pytest_moeperf.errors import UsageError
from pytest_moeperf.gpu import detect_gpus, detect_links, resolve_hardware, visible_gpus
from pytest_moeperf.hardware import Gpu
from pytest_moeperf.testing.nvml import RecordedNvml

TWO_H200 = Path(__file__).parents[1] / "data" / "nvml" / "2x-h200.json"
NVLINK_P2P = "nvmlDeviceGetP2PStatus 1 2"
"""Of GPU 0 to GPU 1; 2 is NVLink. 0 is yes, 4 is no."""


def gpus(*names):
    return tuple(
        Gpu(index=index, name=name, memory_gib=140.4, uuid=f"GPU-{index}{index}")
        for index, name in enumerate(names)
    )


@pytest.fixture
def nvml(monkeypatch):
    """Two H200 in the place of this machine's GPUs."""
    recorded = RecordedNvml(TWO_H200)
    monkeypatch.setitem(sys.modules, "pynvml", recorded)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield recorded
    assert recorded.users == 0


def test_auto_takes_what_the_machine_has_most_of():
    hardware = resolve_hardware("auto", gpus=gpus("NVIDIA L40S", "NVIDIA H200", "NVIDIA H200"))
    assert hardware.name == "h200"
    assert [gpu.index for gpu in hardware.gpus] == [1, 2]
    assert hardware.label == "2x NVIDIA H200, 140 GiB each"


def test_auto_is_the_cpu_without_a_gpu():
    hardware = resolve_hardware("auto", gpus=())
    assert (hardware.name, hardware.gpus, hardware.facts.name) == ("cpu", (), "cpu")
    assert hardware.cpu_cores >= 1
    assert f"{hardware.cpu_cores} cores" in hardware.label


def test_the_cpu_can_be_asked_for_beside_a_gpu():
    assert resolve_hardware("cpu", gpus=gpus("NVIDIA H200")).gpus == ()


def test_two_forms_of_a_product_are_two_classes():
    machine = gpus("NVIDIA H200 NVL", "NVIDIA H200 NVL", "NVIDIA H200")
    assert resolve_hardware("auto", gpus=machine).name == "h200-nvl"
    assert resolve_hardware("h200", gpus=machine).count == 1


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
        "--gpu h300: unknown; valid are auto, cpu, a100, a100-40gb, a100-pcie, a100-pcie-40gb, "
        "b200, h100, h100-nvl, h100-pcie, h200, h200-nvl, l40s; this machine has no NVIDIA GPU"
    )


def test_a_number_before_the_class_is_told_what_decides_on_it():
    with pytest.raises(UsageError) as caught:
        resolve_hardware("2xh200", gpus=gpus("NVIDIA H200", "NVIDIA H200"))
    assert str(caught.value) == (
        "--gpu 2xh200: give the class alone, --gpu h200; how many GPUs a server takes is in its "
        "spec, and CUDA_VISIBLE_DEVICES says of which; this machine has 2x NVIDIA H200"
    )


@pytest.mark.parametrize("asked", ["2xcpu", "2xh100", "x", "2x"])
def test_a_number_before_anything_else_is_unknown(asked):
    with pytest.raises(UsageError, match=f"--gpu {asked}: unknown; valid are auto, cpu"):
        resolve_hardware(asked, gpus=gpus("NVIDIA H200"))


def test_a_gpu_that_is_not_listed_can_be_asked_for_by_its_own_class():
    found = resolve_hardware("gb200", gpus=gpus("NVIDIA GB200"))
    assert (found.name, found.facts) == ("gb200", None)


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


def test_a_slice_of_a_gpu_is_refused(nvml, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-4c9f")
    with pytest.raises(UsageError) as caught:
        detect_gpus()
    assert str(caught.value) == (
        "CUDA_VISIBLE_DEVICES=MIG-4c9f: MIG-4c9f is a slice of a GPU, on which no figure can be "
        "compared; name whole GPUs, or use --gpu cpu"
    )


def test_a_gpu_that_is_cut_into_slices_is_refused_but_can_be_left_out(nvml, monkeypatch):
    nvml.change(1, "nvmlDeviceGetMigMode", [1, 1])
    with pytest.raises(UsageError) as caught:
        resolve_hardware("auto")
    assert str(caught.value) == (
        "GPU 1 (NVIDIA H200) is in MIG mode: its slices share the memory's bandwidth, so their "
        "figures cannot be compared; turn MIG off, hide the GPU with CUDA_VISIBLE_DEVICES, or use "
        "--gpu cpu"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert resolve_hardware("auto").count == 1


def test_gpus_are_read_from_the_driver(nvml):
    assert detect_gpus()[1] == Gpu(
        index=1,
        name="NVIDIA H200",
        # 143,771 MiB
        memory_gib=pytest.approx(140.401, abs=0.001),
        uuid=nvml.uuids[1],
        driver="580.159.04",
        power_limit_w=700.0,
        ecc=True,
        mig=False,
        pcie="5.0 x16",
    )


def test_what_a_gpu_cannot_tell_is_none(nvml):
    for call in (
        "nvmlDeviceGetPowerManagementLimit",
        "nvmlDeviceGetCurrentEccMode",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetMaxPcieLinkWidth",
    ):
        nvml.change(0, call, {"error": 3})
    gpu = detect_gpus()[0]
    assert (gpu.power_limit_w, gpu.ecc, gpu.mig, gpu.pcie) == (None, None, None, None)
    assert resolve_hardware("auto").count == 2


def test_a_gpu_that_does_not_answer_is_none(nvml):
    nvml.change(0, "nvmlDeviceGetMemoryInfo", {"error": 15})
    assert [gpu.index for gpu in detect_gpus()] == [1]


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch):
    without = RecordedNvml({"system": {"nvmlInit": {"error": 12}}, "gpus": []})
    monkeypatch.setitem(sys.modules, "pynvml", without)
    assert gpu_module.detect_gpus() == ()
    assert gpu_module.detect_links(gpus("NVIDIA H200", "NVIDIA H200")) == ()


def test_the_way_between_two_gpus_is_counted_in_nvlinks(nvml):
    (link,) = detect_links(detect_gpus())
    assert (link.first, link.second, link.kind) == (*nvml.uuids, "NV18")


def test_links_that_are_down_do_not_count(nvml):
    nvml.change(1, "nvmlDeviceGetNvLinkState 17", 0)
    assert detect_links(detect_gpus())[0].kind == "NV17"


def test_links_to_a_third_gpu_do_not_count(nvml):
    for number in range(18):
        bus = "00000000:00:07.0" if number < 4 else "00000000:05:00.0"
        nvml.change(0, f"nvmlDeviceGetNvLinkRemotePciInfo {number}", {"busId": bus})
    assert detect_links(detect_gpus())[0].kind == "NV4"


@pytest.mark.parametrize(
    ("ancestor", "links"), [(10, ["PIX"]), (50, ["SYS"]), (99, []), ({"error": 3}, [])]
)
def test_without_nvlink_the_way_is_where_the_two_meet(nvml, ancestor, links):
    nvml.change(0, NVLINK_P2P, 4)
    nvml.change(0, "nvmlDeviceGetTopologyCommonAncestor 1", ancestor)
    assert [link.kind for link in detect_links(detect_gpus())] == links
