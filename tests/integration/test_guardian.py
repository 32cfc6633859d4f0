"""Nothing that a guarded process started outlives the session, however that ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_moeperf.errors import ServerStartError
from pytest_moeperf.guardian import process_table
from pytest_moeperf.process import GuardedProcess

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the place is the point
READY = "print('ready', flush=True)\n"
IDLE = f"import time\n{READY}time.sleep(60)\n"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + IDLE
FAMILY = """\
import os, subprocess, sys
idle = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
same = subprocess.Popen([sys.executable, "-c", idle])
away = subprocess.Popen([sys.executable, "-c", idle], start_new_session=True)
print(os.getpid(), same.pid, away.pid, flush=True)
"""
SESSION = """\
import sys, time
from pathlib import Path
from pytest_moeperf.process import GuardedProcess
folder = Path(sys.argv[1])
scratch = folder / "scratch"
scratch.mkdir()
process = GuardedProcess(
    [sys.executable, "-c", sys.argv[2]], env={}, log=folder / "log", scratch=scratch
)
print("started", flush=True)
time.sleep(60)
"""


@pytest.fixture
def guard(tmp_path):
    """Starts a Python program under a guardian, and waits until it has written a line."""
    started = []

    def start(code):
        scratch = tmp_path / f"scratch-{len(started)}"
        scratch.mkdir()
        log = tmp_path / f"log-{len(started)}"
        process = GuardedProcess([sys.executable, "-c", code], env={}, log=log, scratch=scratch)
        started.append(process)
        wait_for(lambda: "\n" in log.read_text())
        return process, log

    yield start
    for process in started:
        process.kill()


def wait_for(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def alive(*pids):
    table = process_table()
    return [pid for pid in pids if pid in table and not table[pid].zombie]


def test_a_process_runs_until_it_is_stopped_and_ends_cleanly(guard, tmp_path):
    process, _ = guard(IDLE)
    assert not process.ended
    assert process.exit_code is None
    shutdown = process.stop(patience_s=5)
    assert shutdown.exit_code == -signal.SIGTERM
    assert shutdown.clean
    assert process.ended
    assert not alive(process.pid)
    assert not (tmp_path / "scratch-0").exists()


def test_a_process_that_ignores_sigterm_is_killed_after_the_patience(guard):
    process, _ = guard(STUBBORN)
    shutdown = process.stop(patience_s=0.2)
    assert not alive(process.pid)
    assert shutdown.killed == 1
    assert not shutdown.clean


def test_children_in_other_sessions_end_too(guard):
    process, log = guard(FAMILY + "import time; time.sleep(60)")
    pids = [int(word) for word in log.read_text().split()]
    assert len(alive(*pids)) == 3
    process.kill()
    assert not alive(*pids)


def test_orphans_of_a_process_that_died_end_too(guard):
    process, log = guard(FAMILY + "import signal; os.kill(os.getpid(), signal.SIGKILL)")
    wait_for(lambda: process.ended)
    assert process.exit_code == -signal.SIGKILL
    pids = [int(word) for word in log.read_text().split()]
    shutdown = process.stop(patience_s=1)
    assert not alive(*pids)
    assert shutdown.killed == 2


def test_the_exit_code_of_a_process_is_known(guard):
    process, _ = guard(READY + "raise SystemExit(7)")
    wait_for(lambda: process.ended)
    assert process.exit_code == 7


def test_shared_memory_of_killed_processes_is_removed_and_of_others_is_kept(guard):
    kept = SHARED_MEMORY / f"model-{os.getpid()}"
    kept.write_bytes(b"weights")
    code = (
        "import mmap, os, time\n"
        "from multiprocessing import shared_memory, resource_tracker\n"
        "segment = shared_memory.SharedMemory(create=True, size=64)\n"
        "resource_tracker.unregister('/' + segment.name, 'shared_memory')\n"
        f"weights = mmap.mmap(os.open({str(kept)!r}, os.O_RDONLY), 0, prot=mmap.PROT_READ)\n"
        "print(segment.name, flush=True)\n"
        "time.sleep(60)\n"
    )
    try:
        process, log = guard(code)
        name = log.read_text().strip()
        assert (SHARED_MEMORY / name).exists()
        process.note_shared_memory()
        shutdown = process.stop(patience_s=5)
        assert shutdown.removed == (name,)
        assert not (SHARED_MEMORY / name).exists()
        assert kept.exists()
    finally:
        kept.unlink()


def test_a_program_that_does_not_exist_is_an_error_and_leaves_nothing(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(ServerStartError, match="/no/such: cannot be started: No such file"):
        GuardedProcess(["/no/such"], env={}, log=tmp_path / "log", scratch=scratch)
    assert not scratch.exists()


def test_all_processes_end_when_the_session_is_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", SESSION, tmp_path, FAMILY + "import time; time.sleep(60)"],
        stdout=subprocess.PIPE,
    ) as session:
        assert session.stdout.readline() == b"started\n"
        log = tmp_path / "log"
        wait_for(lambda: "\n" in log.read_text())
        pids = [int(word) for word in log.read_text().split()]
        assert len(alive(*pids)) == 3
        session.kill()
    wait_for(lambda: not alive(*pids))
    wait_for(lambda: not (tmp_path / "scratch").exists())


def test_a_killed_guardian_takes_its_process_with_it(guard):
    process, _ = guard(IDLE)
    guardian = process_table()[process.pid].parent
    os.kill(guardian, signal.SIGKILL)
    wait_for(lambda: process.ended)
    assert process.exit_code is None
    process.stop(patience_s=1)
    wait_for(lambda: not alive(process.pid))


def test_ctrl_c_in_the_terminal_does_not_reach_the_process(guard):
    process, _ = guard(IDLE)
    assert os.getsid(process.pid) == process.pid
    assert os.getpgid(process_table()[process.pid].parent) != os.getpgid(0)
