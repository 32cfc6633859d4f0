"""What GPUs did that makes a repeat invalid."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.gpuhealth import gpu_findings
from pytest_moeperf.records import GpuReading
from pytest_moeperf.validity import FINDINGS

UUIDS = ("GPU-4581ee0d-0000-4000-8000-000000000000", "GPU-685432b6-0000-4000-8000-000000000001")


def reading(uuid=UUIDS[0], samples=50, **fields):
    return GpuReading(
        uuid=uuid, samples=samples, sm_clock_mhz=1980, sm_clock_mhz_min=1215, **fields
    )


def codes(*readings):
    return [finding.code for finding in gpu_findings(readings)]


@pytest.mark.parametrize("readings", [(), (reading(), reading(UUIDS[1]))])
def test_gpus_at_full_speed_and_on_their_own_are_fine(readings):
    assert gpu_findings(readings) == ()


@pytest.mark.parametrize(
    "reason",
    ["hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown"],
)
def test_heat_and_the_hardware_may_not_hold_clocks_down_at_all(reason):
    assert codes(reading(), reading(UUIDS[1], throttled={reason: 0.02})) == ["throttled"]


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_the_power_limit_is_no_fault_of_a_repeat(share):
    assert codes(reading(throttled={"sw_power_cap": share})) == []


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_throttling_is_never_better(less, more):
    low, high = sorted((less, more))
    found = codes(reading(throttled={"sw_thermal_slowdown": low}))
    assert len(codes(reading(throttled={"sw_thermal_slowdown": high}))) >= len(found)


def test_a_throttled_gpu_is_named_with_the_reasons_and_its_lowest_clock():
    (finding,) = gpu_findings(
        [reading(), reading(UUIDS[1], throttled={"hw_slowdown": 0.5, "sw_power_cap": 0.04})]
    )
    assert finding.message == (
        "a GPU was throttled: GPU-685432b6 by the hardware in 50 % of the samples, "
        "down to 1,215 MHz"
    )
    assert "nvidia-smi" in finding.advice


def test_the_hardwares_own_reason_is_told_in_its_place():
    throttled = {"hw_slowdown": 0.5, "hw_thermal_slowdown": 0.5, "sw_power_cap": 0.2}
    (finding,) = gpu_findings([reading(throttled=throttled)])
    assert finding.message == (
        "a GPU was throttled: GPU-4581ee0d by heat (hardware) in 50 % of the samples, "
        "down to 1,215 MHz"
    )


def test_each_kind_is_one_finding_over_all_gpus():
    found = gpu_findings(
        [
            reading(foreign=("4711 python3", "4712 python3"), idle_before=False),
            reading(UUIDS[1], foreign=("99 Xorg",), throttled={"hw_slowdown": 1.0}),
        ]
    )
    assert [finding.code for finding in found] == ["throttled", "foreign_process", "gpu_not_idle"]
    assert found[1].message == (
        "others computed on a GPU of the server: 4711 python3, 4712 python3 on GPU-4581ee0d; "
        "99 Xorg on GPU-685432b6"
    )
    assert found[2].message == "work was still running when the repeat began: on GPU-4581ee0d"
    assert {finding.code for finding in found} <= set(FINDINGS)


def test_what_was_not_told_is_no_reason():
    assert codes(GpuReading(uuid=UUIDS[0], samples=0)) == []
