"""What GPUs are seen to do, and who is seen on them."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_moeperf import telemetry
from pytest_moeperf.errors import ServerStartError
from pytest_moeperf.gpu import detect_gpus
from pytest_moeperf.telemetry import GpuWatch, await_free, compute_pids, occupancy
from pytest_moeperf.testing.nvml import RecordedNvml

TWO_H200 = Path(__file__).parents[1] / "data" / "nvml" / "2x-h200.json"
PROCESSES = "nvmlDeviceGetComputeRunningProcesses"
REASONS = "nvmlDeviceGetCurrentClocksEventReasons"
UTILISATION = "nvmlDeviceGetUtilizationRates"
NOBODY = 2**22 + 1
"""No process has this number: it is over the greatest that Linux gives."""
ALONE = {"pid": NOBODY, "usedGpuMemory": None}


@pytest.fixture
def running():
    """Processes of the server, which make both GPUs busy; none until a test adds some."""
    return set()


@pytest.fixture
def nvml(monkeypatch, running):
    recorded = RecordedNvml(TWO_H200, processes=lambda _index: sorted(running))
    monkeypatch.setitem(sys.modules, "pynvml", recorded)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(telemetry, "POLL_S", 0.001)
    yield recorded
    assert recorded.users == 0


@pytest.fixture
def watch(nvml, monkeypatch):
    """Watches both GPUs for exactly `samples` looks, and returns what was seen."""

    def seen(samples=5, **options):
        looks = threading.Semaphore(0)
        look = telemetry._Watched.look

        def counted(self, *arguments):
            if self.samples < samples:
                look(self, *arguments)
            looks.release()

        monkeypatch.setattr(telemetry._Watched, "look", counted)
        with GpuWatch(nvml.uuids, interval_s=0.001, **options) as watching:
            for _ in range(2 * samples):
                assert looks.acquire(timeout=10)
        return watching.readings

    return seen


def test_a_reading_holds_the_medians_of_what_the_driver_told(nvml, running, watch):
    running.add(4711)
    first, second = watch(samples=5, own_pids=frozenset({4711}))
    assert (first.uuid, second.uuid) == nvml.uuids
    assert first.samples == 5
    # Of 92.7, 228, 357, 479, 611 W and 39, 54, 57, 58, 59 degrees.
    assert (first.power_w, first.temperature_c, second.temperature_c) == (357.396, 57, 39)
    # Of 1980, 1560, 1530, 1515, 1515 MHz: after the first look the power limit holds them down.
    assert (first.sm_clock_mhz, first.memory_clock_mhz) == (1530, 3201)
    assert first.throttled == {"sw_power_cap": 0.8}
    # 1,059,913,728 bytes.
    assert first.memory_used_gib == pytest.approx(0.987, abs=0.001)
    assert 0.9 < first.utilisation <= 1
    assert (first.foreign, first.idle_before) == ((), True)


def test_the_lowest_clock_is_told_beside_the_median(nvml, watch):
    nvml.change(0, "nvmlDeviceGetClockInfo 1", {"series": [1980, 1980, 1215, 1980, 1980]})
    first, _ = watch(samples=5)
    assert (first.sm_clock_mhz, first.sm_clock_mhz_min) == (1980, 1215)


def test_what_holds_clocks_down_is_told_with_its_share(nvml, watch):
    # Power cap 4, hardware slowdown 8 with heat 64; idle 1 and clocks set by a user 2 are none.
    nvml.change(0, REASONS, {"series": [1, 2, 4, 4 | 8 | 64]})
    first, second = watch(samples=4)
    assert first.throttled == {
        "hw_slowdown": 0.25,
        "hw_thermal_slowdown": 0.25,
        "sw_power_cap": 0.5,
    }
    assert second.throttled == {}


def test_processes_that_are_not_the_servers_are_named(nvml, running, watch):
    running.add(4711)
    nvml.change(1, PROCESSES, [{"pid": os.getpid(), "usedGpuMemory": 1}, ALONE])
    first, second = watch(own_pids=frozenset({4711}))
    assert first.foreign == ()
    named = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
    assert set(second.foreign) == {f"{os.getpid()} {named}", str(NOBODY)}


def test_what_a_server_starts_later_is_its_own(nvml, watch):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        nvml.change(0, PROCESSES, [{"pid": child.pid, "usedGpuMemory": 1}])
        first, _ = watch(samples=2)
        child.communicate(b"\n")
    assert first.foreign == ()


def test_work_that_goes_on_is_not_idle(nvml, watch, monkeypatch):
    monkeypatch.setattr(telemetry, "QUIET_WAIT_S", 0.01)
    nvml.change(0, UTILISATION, {"gpu": 40, "memory": 5})
    first, second = watch()
    assert (first.idle_before, second.idle_before) == (False, True)


def test_what_the_driver_still_shows_of_an_earlier_play_is_waited_for(nvml, watch):
    nvml.change(
        0, UTILISATION, {"series": [{"gpu": 97, "memory": 50}] * 3 + [{"gpu": 0, "memory": 0}]}
    )
    first, _ = watch()
    assert first.idle_before


def test_what_cannot_be_told_is_none(nvml, watch):
    for call in (*nvml._recording["gpus"][0]["idle"],):
        if call != "nvmlDeviceGetUUID":
            nvml.change(0, call, {"error": 3})
    first, second = watch(samples=3)
    assert first == telemetry.GpuReading(uuid=nvml.uuids[0], samples=3)
    assert second.sm_clock_mhz == 345


def test_without_a_driver_or_with_a_gpu_that_has_gone_a_watch_sees_nothing(nvml, monkeypatch):
    with GpuWatch(["GPU-gone"], interval_s=60) as watching:
        pass
    (gone,) = watching.readings
    assert (gone.samples, gone.sm_clock_mhz, gone.memory_used_gib) == (1, None, None)
    without = RecordedNvml({"system": {"nvmlInit": {"error": 12}}, "gpus": []})
    monkeypatch.setitem(sys.modules, "pynvml", without)
    with GpuWatch(["GPU-0"]) as watching:
        pass
    assert watching.readings == (telemetry.GpuReading(uuid="GPU-0", samples=0),)
    assert occupancy(["GPU-0"])["GPU-0"].free


def test_a_watch_over_a_play_of_any_length_has_a_sample_and_ends_its_thread(nvml):
    with GpuWatch(nvml.uuids, interval_s=60) as watching:
        pass
    assert [reading.samples for reading in watching.readings] == [1, 1]
    assert not [thread for thread in threading.enumerate() if thread.name == "gpu-watch"]


def test_the_processes_on_gpus_are_told(nvml, running):
    assert compute_pids(nvml.uuids) == frozenset()
    running.update({11, 12})
    assert compute_pids(nvml.uuids) == {11, 12}
    assert not occupancy(nvml.uuids)[nvml.uuids[0]].free


def test_gpus_are_waited_for_until_their_memory_is_back(nvml):
    told = []
    total = 143771 * 2**20
    used = [{"total": total, "used": gib * 2**30, "free": 0} for gib in (120, 40, 0)]
    nvml.change(1, "nvmlDeviceGetMemoryInfo", {"series": used})
    gpus = detect_gpus()
    nvml.change(1, "nvmlDeviceGetMemoryInfo", {"series": used})
    await_free(gpus, on_wait=lambda phase, detail: told.append((phase, detail)))
    assert told == [
        ("waiting for GPU memory", "GPU 1 (120.0 GiB used)"),
        ("waiting for GPU memory", "GPU 1 (40.0 GiB used)"),
    ]


def test_a_gpu_that_stays_taken_is_an_error_that_names_who_is_there(nvml):
    nvml.change(0, PROCESSES, [ALONE])
    with pytest.raises(ServerStartError) as caught:
        await_free(detect_gpus(), timeout_s=0.02, on_wait=lambda _phase, _detail: None)
    assert str(caught.value) == (
        f"still in use after 0.02 s: GPU 0 ({NOBODY}, 0.0 GiB used); end what runs there "
        "(nvidia-smi lists it), or leave the GPU out with CUDA_VISIBLE_DEVICES"
    )
