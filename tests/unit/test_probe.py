"""What is read from the machine."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_moeperf import probe
from pytest_moeperf.probe import CopySpeed, CoreTime

CPUINFO = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
stepping\t: 1

processor\t: 1
vendor_id\t: AuthenticAMD
cpu family\t: 99
"""


def test_a_processor_is_told_from_another_of_the_same_name():
    assert probe.cpu_model(CPUINFO) == "AMD EPYC (family 26 model 2 stepping 1)"


def test_a_processor_without_numbers_keeps_its_bare_name():
    assert probe.cpu_model("model name\t: Cortex-X\n") == "Cortex-X"


def test_a_processor_without_any_text_still_has_a_name():
    assert probe.cpu_model("")


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000\n", None), ("150000 100000\n", 1.5), ("", None), ("rubbish", None)],
)
def test_the_control_groups_limit_is_in_cores(text, cores):
    assert probe.cpu_quota(text) == cores


def test_usable_cores_heed_the_control_group(monkeypatch):
    monkeypatch.setattr(probe, "core_ids", lambda: (0, 1, 2, 3))
    monkeypatch.setattr(probe, "cpu_quota", lambda: 1.5)
    assert probe.usable_cores() == 2
    monkeypatch.setattr(probe, "cpu_quota", lambda: 64.0)
    assert probe.usable_cores() == 4
    monkeypatch.setattr(probe, "cpu_quota", lambda: None)
    assert probe.usable_cores() == 4


def test_the_machine_has_memory_a_kernel_and_a_speed():
    assert probe.memory_gib() > 0.1
    assert probe.kernel().startswith("Linux ")
    assert probe.memory_copy_gib_per_s(megabytes=1, copies=1) > 0


def test_busy_time_is_all_but_idle_and_waiting_on_the_cores_that_count():
    hertz = os.sysconf("SC_CLK_TCK")
    #                     user nice system idle iowait irq softirq steal guest
    one = " ".join(str(number * hertz) for number in (1, 2, 3, 90, 80, 4, 5, 6, 70))
    stat = f"cpu  9 9 9 9 9 9 9 9\ncpu0 {one}\ncpu1 {one}\ncpu10 {one}\nintr 5\n"
    assert probe.core_time([0], stat) == CoreTime(busy_s=15.0, stolen_s=6.0)
    assert probe.core_time([0, 1], stat) == CoreTime(busy_s=30.0, stolen_s=12.0)
    assert probe.core_time([7], stat) == CoreTime(busy_s=0.0, stolen_s=0.0)


def test_an_old_kernel_tells_no_stolen_time():
    assert probe.core_time([0], "cpu0 100 0 0 900 0 0 0\n").stolen_s == 0.0


def test_what_a_hypervisor_took_counts_among_the_others(monkeypatch):
    times = iter([CoreTime(busy_s=5.0, stolen_s=1.0), CoreTime(busy_s=5.0, stolen_s=1.5)])
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(probe, "core_time", lambda _: next(times))
    monkeypatch.setattr(probe.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr("psutil.process_iter", list)
    others = probe.BusyWatch().bystanders()
    assert others.stolen_cores == 0.25
    assert others.cores <= 0.25


def test_under_full_load_every_core_is_at_work():
    began = time.process_time()
    with probe.full_load():
        at_work = [each for each in threading.enumerate() if each.name == "full-load"]
        time.sleep(0.2)
    assert len(at_work) == probe.usable_cores()
    assert time.process_time() > began
    assert not any(each.is_alive() for each in at_work)


def test_a_process_rests_when_it_and_its_children_do():
    script = (
        "import subprocess, sys, time\n"
        "spin = 'import time; end = time.monotonic() + 1.0\\nwhile time.monotonic() < end: pass'\n"
        "subprocess.run([sys.executable, '-c', spin + '\\nprint(1, flush=True); time.sleep(60)'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", script], stdout=subprocess.PIPE, start_new_session=True
    ) as busy:
        try:
            time.sleep(0.3)
            assert probe.await_rest(busy.pid, patience_s=20.0)
            assert select.select([busy.stdout], [], [], 0.5)[0], "it was still at work"
        finally:
            os.killpg(busy.pid, signal.SIGKILL)


def test_who_has_gone_rests():
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert probe.await_rest(int(done.stdout), patience_s=60.0)


def test_who_goes_on_does_not_rest(spinner):
    with subprocess.Popen(spinner, stdout=subprocess.PIPE, start_new_session=True) as busy:
        try:
            busy.stdout.readline()
            assert not probe.await_rest(busy.pid, patience_s=0.3)
        finally:
            busy.kill()


def test_a_descendant_may_count_as_a_bystander(spinner):
    with subprocess.Popen(spinner, stdout=subprocess.PIPE, start_new_session=True) as busy:
        try:
            busy.stdout.readline()
            watch = probe.BusyWatch([busy.pid])
            time.sleep(0.3)
            assert Path(spinner[0]).name in watch.bystanders().names
        finally:
            busy.kill()


def test_the_copy_speed_is_measured_once_a_minute_and_only_at_rest(monkeypatch):
    speeds, clock = iter([6.0, 7.0]), iter([0.0, 1.0, 59.0, 61.5, 62.0])
    monkeypatch.setattr(probe, "memory_copy_gib_per_s", lambda: next(speeds))
    speed = CopySpeed(clock=lambda: next(clock))
    assert speed.gib_per_s(lambda: False) is None
    assert [speed.gib_per_s(lambda: True) for _ in range(4)] == [6.0, 6.0, 7.0, 7.0]


@pytest.fixture
def spinner(tmp_path):
    """A program that uses a core, under a name that nothing else has, in other workers neither."""
    program = tmp_path / f"spin-{os.getpid()}"
    program.symlink_to(Path(sys.executable).resolve())
    return [str(program), "-I", "-S", "-c", "print('go', flush=True)\nwhile True: pass"]


def others_for_a_while():
    watch = probe.BusyWatch()
    time.sleep(0.3)
    return watch.bystanders()


def test_an_own_child_is_no_bystander(spinner):
    with subprocess.Popen(spinner, stdout=subprocess.PIPE, start_new_session=True) as busy:
        try:
            busy.stdout.readline()
            assert Path(spinner[0]).name not in others_for_a_while().names
        finally:
            busy.kill()


def test_an_orphan_is_a_bystander(spinner):
    script = (
        "import subprocess, sys\n"
        "spin = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, start_new_session=True)\n"
        "print(spin.pid, flush=True)\n"
    )
    command = [sys.executable, "-c", script, *spinner]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=20)
    try:
        others = others_for_a_while()
        assert Path(spinner[0]).name in others.names
        assert others.cores > 0.1
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)
