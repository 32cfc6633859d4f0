"""Servers are shared, make room for each other, and one session measures at a time."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from pytest_moeperf import pool as pool_module
from pytest_moeperf.errors import ServerStartError, UsageError
from pytest_moeperf.hardware import Gpu
from pytest_moeperf.pool import MachineLease, ServerPool
from pytest_moeperf.records import EngineInstall
from pytest_moeperf.testing import FakeEngine

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
        pools.append(ServerPool(hardware, log_dir=tmp_path / "logs", lease=lease, **options))
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


def test_gpus_are_handed_out_and_taken_back(make_pool, make_spec, model, machine):
    gpus = tuple(
        Gpu(index=i, name="NVIDIA H200", memory_gib=141.0, uuid=f"GPU-{i}") for i in range(3)
    )
    pool = make_pool(replace(machine, name="h200", gpus=gpus))
    two = replace(make_spec(), tensor_parallel_size=2)
    first = pool.acquire(two, model)
    second = pool.acquire(make_spec(itl_ms=2), model)
    assert (first.gpu_ids, second.gpu_ids) == (("GPU-0", "GPU-1"), ("GPU-2",))
    third = pool.acquire(make_spec(itl_ms=3), model)
    assert not first.alive
    assert second.alive
    assert third.gpu_ids == ("GPU-0",)


def test_more_gpus_than_there_are_is_an_error(make_pool, make_spec, model, machine):
    gpu = Gpu(index=0, name="NVIDIA H200", memory_gib=141.0, uuid="GPU-0")
    pool = make_pool(replace(machine, name="h200", gpus=(gpu,)))
    with pytest.raises(ServerStartError, match="mini-moe tp4: needs 4 GPUs, this machine has 1"):
        pool.acquire(replace(make_spec(), tensor_parallel_size=4), model)


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
    assert told[0] == (
        "waiting for the machine",
        f"another session measures (pid {holder.pid})",
    )


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
