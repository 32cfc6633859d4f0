"""Classes of hardware, and GPUs that are near to each other."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytest_moeperf
from pytest_moeperf.gpu import hardware_classes
from pytest_moeperf.hardware import Gpu, Hardware, Link, class_of, group_by_class, nearest

CLASSES = hardware_classes()
NAMES = {
    "NVIDIA H200": "h200",
    "NVIDIA H200 NVL": "h200-nvl",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA A100-SXM4-80GB": "a100",
    "A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100 80GB PCIe": "a100-pcie",
    "NVIDIA A100-PCIE-40GB": "a100-pcie-40gb",
    "NVIDIA B200": "b200",
    "NVIDIA L40S": "l40s",
}
"""What the driver calls each product that has a class file."""
OTHERS = {
    "NVIDIA GB200": "gb200",
    "NVIDIA GH200 480GB": "gh200-480gb",
    "NVIDIA L40": "l40",
    "NVIDIA GeForce RTX 4090": "geforce-rtx-4090",
}


def gpus(*names):
    return tuple(
        Gpu(index=index, name=name, memory_gib=140.4, uuid=f"GPU-{index}")
        for index, name in enumerate(names)
    )


@pytest.mark.parametrize(("name", "expected"), [*NAMES.items(), *OTHERS.items()])
def test_class_of_a_gpu(name, expected):
    assert class_of(name, CLASSES) == expected


def test_every_class_but_the_cpu_has_a_name_of_the_driver_that_is_its_alone():
    assert {each.name for each in CLASSES} == {*NAMES.values(), "cpu"}
    for name, expected in NAMES.items():
        found = [each.name for each in CLASSES if each.pattern and re.search(each.pattern, name)]
        assert found == [expected]


@pytest.mark.parametrize("known", CLASSES, ids=lambda known: known.name)
def test_a_class_file_has_the_name_of_its_class_and_a_source(known):
    path = Path(pytest_moeperf.__file__).parent / "gpus" / f"{known.name}.json"
    assert json.loads(path.read_text())["name"] == known.name
    assert known.source
    figures = (known.pattern, known.memory_gib, known.memory_gb_per_s, known.nominal_power_w)
    assert all(figures) or (known.name == "cpu" and not any(figures))


def test_the_documentation_lists_every_class():
    text = (Path(pytest_moeperf.__file__).parents[1] / "docs" / "hardware.md").read_text()
    for name, expected in NAMES.items():
        (known,) = [each for each in CLASSES if each.name == expected]
        # The driver's older form of the name is not shown.
        shown = (
            f"| `{expected}` | `NVIDIA {name.removeprefix('NVIDIA ')}` | {known.memory_gib:g} GiB |"
        )
        assert f"{shown} {known.memory_gb_per_s:,} GB/s | {'yes' if known.fp8 else 'no'} |" in text


def test_the_class_with_most_gpus_comes_first():
    found = group_by_class(gpus("NVIDIA L40S", "NVIDIA H200", "NVIDIA H200"), CLASSES)
    assert {name: len(group) for name, group in found.items()} == {"h200": 2, "l40s": 1}
    assert next(iter(found)) == "h200"


def test_hardware_tells_what_is_published_of_its_class_and_none_where_nothing_is():
    known = {each.name: each for each in CLASSES}
    common = {"cpu_model": "CPU", "cpu_cores": 2, "memory_gib": 24.0}
    h200 = Hardware(
        name="h200", gpus=gpus("NVIDIA H200", "NVIDIA H200"), facts=known["h200"], **common
    )
    assert (h200.count, h200.gpu_memory_gib, h200.memory_gb_per_s) == (2, 140.4, 4800)
    cpu = Hardware(name="cpu", facts=known["cpu"], **common)
    assert (cpu.count, cpu.gpu_memory_gib, cpu.memory_gb_per_s) == (0, None, None)
    assert Hardware(name="geforce-rtx-4090", **common).memory_gb_per_s is None


def test_gpus_are_chosen_by_the_slowest_way_between_them():
    four = gpus(*["NVIDIA A100-PCIE-40GB"] * 4)
    # Two bridged pairs, 0-2 and 1-3; everything else goes by way of the host.
    bridged = {(0, 2): "NV12", (1, 3): "NV12", (0, 1): "PIX", (2, 3): "SYS", (0, 3): "PHB"}
    links = [Link(f"GPU-{a}", f"GPU-{b}", kind) for (a, b), kind in bridged.items()]
    chosen = [[gpu.index for gpu in each] for each in nearest(four, 2, links)]
    assert chosen == [[0, 2], [1, 3], [0, 1], [0, 3], [2, 3], [1, 2]]


def test_more_links_are_nearer_and_any_nvlink_is_nearer_than_any_other_way():
    ranks = [
        Link("a", "b", kind).rank
        for kind in ("SYS", "NODE", "PHB", "PXB", "PIX", "NV1", "NV4", "NV18")
    ]
    assert ranks == sorted(set(ranks))


@given(count=st.integers(1, 5), have=st.integers(0, 5))
def test_without_links_gpus_are_taken_in_their_order(count, have):
    found = list(nearest(gpus(*["NVIDIA H200"] * have), count, ()))
    if count > have:
        assert found == []
    else:
        assert [gpu.index for gpu in found[0]] == list(range(count))
