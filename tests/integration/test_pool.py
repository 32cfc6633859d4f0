"""Servers are shared, make room for each other, and one session measures at a time."""

import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_moeperf import pool as pool_module
from pytest_moeperf.errors import ServerStartError, UsageError
from pytest_moeperf.gpu import detect_gpus, detect_links
from pytest_moeperf.hardware import Gpu, Link
from pytest_moeperf.pool import MachineLease, ServerPool
from pytest_moeperf.records import EngineInstall
from pytest_moeperf.testing import FakeEngine
from pytest_moeperf.testing.nvml import RecordedNvml
from pytest_moeperf.timeline import Timeline

GIB = 2**30
RECORDING = Path(__file__).parents[1] / "data" / "nvml" / "2x-h200.json"
WITHOUT_DRIVER = {"system": {"nvmlInit": {"error": 12}}, "gpus": []}

HOLDER = """\
import sys, time
from pathlib import Path
from pytest_moeperf.pool import MachineLease
MachineLease(folder=Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def make_pool(machine, tmp_path):
    pools = []

    def make(hardware=machine, **options):
        lease = MachineLease(folder=tmp_path / "lease")
        pools.append(
            ServerPool(
                hardware,
                log_dir=tmp_path / "logs",
                lease=lease,
                gpu_folder=tmp_path / "gpus",
                **options,
            )
        )
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def holder(tmp_path):
    """Another session that holds the machine; its process."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "lease"], stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_equal_specs_share_a_server_and_others_do_not(make_pool, make_spec, model):
    pool = make_pool()
    first = pool.acquire(make_spec(), model)
    assert pool.acquire(make_spec(), model) is first
    other = pool.acquire(make_spec(itl_ms=2), model)
    assert pool.running == (first, other)
    for identity in ("start_id", "log_path", "port", "pid"):
        assert getattr(first, identity) != getattr(other, identity)


def test_a_server_that_died_is_started_anew(make_pool, make_spec, model):
    pool = make_pool()
    first = pool.acquire(make_spec(), model)
    first.process.kill()
    second = pool.acquire(make_spec(), model)
    assert second is not first
    assert second.alive


def test_stopping_ends_one_server_and_closing_all_and_frees_the_machine(
    make_pool, make_spec, model, tmp_path
):
    with make_pool() as pool:
        stopped = pool.acquire(make_spec(), model)
        assert pool.stop(stopped).clean
        assert pool.running == ()
        server = pool.acquire(make_spec(), model)
    assert not server.alive
    other = MachineLease(folder=tmp_path / "lease", timeout_s=0)
    other.acquire()
    other.release()


def test_the_server_unused_longest_makes_room_for_memory(make_pool, make_spec, model, monkeypatch):
    told = []
    pool = make_pool(on_progress=lambda phase, detail: told.append((phase, detail)))
    old, used = pool.acquire(make_spec(), model), pool.acquire(make_spec(itl_ms=2), model)
    assert pool.acquire(make_spec(), model) is old
    # The model needs 4.4 GiB with its cache and processes: 0.9 x 4 is too little, 0.9 x 5 enough.
    available = iter([4.0, 5.0])
    monkeypatch.setattr(pool_module, "_available_gib", lambda: next(available))
    pool.acquire(make_spec(itl_ms=3), model)
    assert not used.alive
    assert old.alive
    assert ("stopping mini-moe", "to make room") in told
    assert any(phase == "starting mini-moe" for phase, _ in told)


def test_a_server_that_never_fits_is_still_tried(make_pool, make_spec, model, monkeypatch):
    monkeypatch.setattr(pool_module, "_available_gib", lambda: 0.1)
    assert make_pool().acquire(make_spec(), model).alive


@pytest.fixture
def with_gpus(machine, monkeypatch):
    """Makes hardware of so many GPUs; the machine's own driver is not asked."""
    monkeypatch.setitem(sys.modules, "pynvml", RecordedNvml(WITHOUT_DRIVER))

    def make(count, *links):
        gpus = tuple(
            Gpu(index=i, name="NVIDIA H200", memory_gib=141.0, uuid=f"GPU-{i}")
            for i in range(count)
        )
        return replace(machine, name="h200", gpus=gpus, links=tuple(Link(*link) for link in links))

    return make


def test_gpus_are_handed_out_and_taken_back(make_pool, make_spec, model, with_gpus):
    pool = make_pool(with_gpus(3))
    two = replace(make_spec(), tensor_parallel_size=2)
    first = pool.acquire(two, model)
    second = pool.acquire(make_spec(itl_ms=2), model)
    assert (first.gpu_ids, second.gpu_ids) == (("GPU-0", "GPU-1"), ("GPU-2",))
    third = pool.acquire(make_spec(itl_ms=3), model)
    assert not first.alive
    assert second.alive
    assert third.gpu_ids == ("GPU-0",)


@pytest.mark.parametrize(
    "end",
    [lambda server: server.process.kill(), lambda server: server.stop()],
    ids=["died", "stopped after a hang"],
)
def test_a_server_that_ended_leaves_its_gpu_to_the_next_one(
    make_pool, make_spec, model, with_gpus, end
):
    pool = make_pool(with_gpus(2))
    used, ended = pool.acquire(make_spec(), model), pool.acquire(make_spec(itl_ms=2), model)
    end(ended)
    third = pool.acquire(make_spec(itl_ms=3), model)
    assert used.alive
    assert third.gpu_ids == ended.gpu_ids == ("GPU-1",)
    assert pool.running == (used, third)
    # What its end took stays in the time of the session.
    assert ended.life.stopping_s > 0


def test_a_port_that_was_chosen_serves_again_once_its_server_died(make_pool, make_spec, model):
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port = chosen.getsockname()[1]
    pool = make_pool(port=port)
    first = pool.acquire(make_spec(), model)
    first.process.kill()
    second = pool.acquire(make_spec(itl_ms=2), model)
    assert (first.port, second.port) == (port, port)


def test_a_server_that_died_is_told_from_those_that_were_stopped(make_pool, make_spec, model):
    pool = make_pool()
    died, hung = pool.acquire(make_spec(), model), pool.acquire(make_spec(itl_ms=2), model)
    died.process.kill()
    hung.stop()
    assert pool.died(died)
    stopped = pool.acquire(make_spec(itl_ms=3), model)
    pool.stop(stopped)
    assert [pool.died(server) for server in (died, hung, stopped)] == [True, False, False]


def test_gpus_that_are_near_to_each_other_go_together(make_pool, make_spec, model, with_gpus):
    hardware = with_gpus(3, ("GPU-0", "GPU-1", "SYS"), ("GPU-1", "GPU-2", "NV18"))
    server = make_pool(hardware).acquire(replace(make_spec(), tensor_parallel_size=2), model)
    assert server.gpu_ids == ("GPU-1", "GPU-2")


@pytest.fixture
def two_h200(machine, monkeypatch):
    """Hardware and driver of two recorded GPUs."""
    nvml = RecordedNvml(RECORDING)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = detect_gpus()
    return replace(machine, name="h200", gpus=gpus, links=detect_links(gpus)), nvml


def test_a_gpu_on_which_others_compute_is_taken_last(make_pool, make_spec, model, two_h200):
    hardware, nvml = two_h200
    nvml.change(0, "nvmlDeviceGetComputeRunningProcesses", [{"pid": 1, "usedGpuMemory": 1}])
    assert make_pool(hardware).acquire(make_spec(), model).gpu_ids == (nvml.uuids[1],)


def test_a_server_starts_when_the_memory_of_its_gpus_is_back(make_pool, make_spec, model, two_h200):
    hardware, nvml = two_h200
    told = []
    pool = make_pool(hardware, on_progress=lambda phase, detail: told.append((phase, detail)))
    # Looked at for the choice, then while it is waited for.
    used = [{"total": 141 * GIB, "used": gib * GIB, "free": 0} for gib in (120, 120, 30, 0)]
    nvml.change(1, "nvmlDeviceGetMemoryInfo", {"series": used})
    server = pool.acquire(replace(make_spec(), tensor_parallel_size=2), model)
    assert server.gpu_ids == nvml.uuids
    assert [each for each in told if not each[0].startswith("starting")] == [
        ("waiting for GPU memory", "GPU 1 (120.0 GiB used)"),
        ("waiting for GPU memory", "GPU 1 (30.0 GiB used)"),
    ]


def test_two_sessions_measure_on_a_gpu_each(make_pool, make_spec, model, with_gpus):
    here, there = make_pool(with_gpus(2)), make_pool(with_gpus(2))
    first = here.acquire(make_spec(), model)
    second = there.acquire(make_spec(), model)
    assert (first.gpu_ids, second.gpu_ids) == (("GPU-0",), ("GPU-1",))
    # Of its own GPU a session may make use again, of the other's it may not.
    third = here.acquire(make_spec(itl_ms=2), model)
    assert third.gpu_ids == ("GPU-0",)
    assert not first.alive
    assert second.alive


def test_a_session_that_needs_the_others_gpu_gives_up_its_own_and_waits(
    make_pool, make_spec, model, with_gpus
):
    told = []

    def announce(phase, detail):
        told.append((phase, detail))
        if phase.startswith("waiting for GPUs"):
            there.close()

    here = make_pool(with_gpus(2), on_progress=announce)
    there = make_pool(with_gpus(2))
    first = here.acquire(make_spec(), model)
    there.acquire(make_spec(), model)
    server = here.acquire(replace(make_spec(), tensor_parallel_size=2), model)
    assert server.gpu_ids == ("GPU-0", "GPU-1")
    assert not first.alive
    assert here._timeline.spent([]).waiting_s > 0
    command = Path("/proc/self/comm").read_text().strip()
    assert [each for each in told if not each[0].startswith("starting")] == [
        ("stopping mini-moe", "to make room"),
        (f"waiting for GPUs of pid {os.getpid()} {command}", ""),
    ]


def test_a_session_gives_up_on_gpus_after_its_patience(make_pool, make_spec, model, with_gpus):
    make_pool(with_gpus(1)).acquire(make_spec(), model)
    with pytest.raises(ServerStartError) as caught:
        make_pool(with_gpus(1), gpu_timeout_s=0.1).acquire(make_spec(), model)
    assert str(caught.value) == (
        f"another session (pid {os.getpid()}) has used the GPUs for the last 0.1 s; wait for it or "
        "stop it"
    )


def test_a_server_that_does_not_start_gives_its_gpus_back(make_pool, make_spec, model, with_gpus):
    with pytest.raises(ServerStartError, match="the engine ended before it was ready"):
        make_pool(with_gpus(1)).acquire(make_spec(start_exit_code=3), model)
    other = make_pool(with_gpus(1), gpu_timeout_s=0.0)
    assert other.acquire(make_spec(), model).alive


def test_a_server_on_gpus_does_not_keep_the_machine(
    make_pool, make_spec, model, with_gpus, tmp_path
):
    make_pool(with_gpus(1)).acquire(make_spec(), model)
    other = MachineLease(folder=tmp_path / "lease", timeout_s=0)
    other.acquire()
    other.release()


def test_a_start_on_gpus_tells_what_may_explain_a_difference(
    make_pool, make_spec, model, with_gpus
):
    plain = with_gpus(2, ("GPU-0", "GPU-1", "NV18"))
    gpus = tuple(replace(gpu, driver="580.159.04", power_limit_w=700.0) for gpu in plain.gpus)
    pool = make_pool(replace(plain, gpus=gpus))
    server = pool.acquire(replace(make_spec(), tensor_parallel_size=2), model)
    expected = {
        "cpu_model": "Test CPU",
        "cpu_cores": "2",
        "gpu_driver": "580.159.04",
        "gpu_power_limit_w": "700",
        "gpu_links": "NV18",
    }
    assert expected.items() <= server.environment.items()
    alone = make_pool(with_gpus(3)).acquire(make_spec(), model).environment
    assert not {"gpu_driver", "gpu_power_limit_w", "gpu_links"} & alone.keys()


def test_more_gpus_than_there_are_is_an_error(make_pool, make_spec, model, with_gpus):
    with pytest.raises(ServerStartError, match="mini-moe tp4: needs 4 GPUs, this machine has 1"):
        make_pool(with_gpus(1)).acquire(replace(make_spec(), tensor_parallel_size=4), model)


def test_an_attached_server_is_never_stopped(make_pool, make_spec, model):
    pool = make_pool()
    with FakeEngine() as engine:
        spec = make_spec().on(EngineInstall(engine="vllm", url=engine.url))
        server = pool.acquire(spec, model)
        with pytest.raises(UsageError, match="an attached server is not stopped"):
            pool.stop(server)
        assert server.alive


def test_a_second_session_waits_and_says_for_whom(holder, tmp_path):
    told = []

    def announce(phase, detail):
        told.append((phase, detail))
        holder.kill()

    lease = MachineLease(folder=tmp_path / "lease")
    lease.acquire(on_progress=announce)
    lease.acquire()
    lease.release()
    lease.release()
    [(phase, detail), *_] = told
    # The number comes before what a terminal of 60 columns cuts; the kernel names the program.
    assert re.fullmatch(
        rf"waiting for pid {holder.pid} python\S*, which measures on this machine", phase
    )
    assert detail == ""


def test_a_note_that_names_nobody_is_not_quoted(holder, tmp_path):
    (tmp_path / "lease" / "machine.pid").write_text("")
    told = []

    def announce(phase, _detail):
        told.append(phase)
        holder.kill()

    MachineLease(folder=tmp_path / "lease").acquire(on_progress=announce)
    assert told[0] == "waiting for another session, which measures on this machine"


def test_the_wait_for_another_session_is_waiting(holder, make_pool, make_spec, model):
    seconds = iter([10.0, 17.0])
    timeline = Timeline(clock=lambda: next(seconds))
    pool = make_pool(timeline=timeline, on_progress=lambda *_: holder.kill())
    pool.acquire(make_spec(), model)
    assert timeline.spent([]).waiting_s == 7.0


def test_a_second_session_gives_up_after_its_patience(holder, tmp_path):
    lease = MachineLease(folder=tmp_path / "lease", timeout_s=0.1)
    with pytest.raises(ServerStartError) as caught:
        lease.acquire()
    assert str(caught.value) == (
        f"another session (pid {holder.pid}) has measured on this machine for the last 0.1 s; "
        "wait for it or stop it"
    )


def test_the_lease_names_its_holder(tmp_path):
    lease = MachineLease(folder=tmp_path)
    lease.acquire()
    assert (tmp_path / "machine.pid").read_text() == str(os.getpid())
    lease.release()


def test_an_engine_is_told_its_gpus_as_the_driver_counts_them(
    make_pool, make_spec, model, with_gpus
):
    here, there = make_pool(with_gpus(2)), make_pool(with_gpus(2))
    here.acquire(make_spec(), model)
    server = there.acquire(make_spec(), model)
    words = Path(f"/proc/{server.pid}/environ").read_text().split("\0")
    assert {"CUDA_VISIBLE_DEVICES=1", "CUDA_DEVICE_ORDER=PCI_BUS_ID"} <= set(words)
