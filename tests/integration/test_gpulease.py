"""A GPU belongs to one server of the machine, for as long as anything of that server lives."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_moeperf.errors import StorageError
from pytest_moeperf.gpulease import GpuLease, holder, lease_folder
from pytest_moeperf.process import GuardedProcess

SESSION = """\
import sys, time
from pathlib import Path
from pytest_moeperf.gpulease import GpuLease
from pytest_moeperf.process import GuardedProcess
lease = GpuLease.take(["GPU-0"], folder=Path(sys.argv[1]))
folder = Path(sys.argv[2])
(folder / "scratch").mkdir()
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
server = GuardedProcess(
    [sys.executable, "-c", STUBBORN], env={}, log=folder / "log", scratch=folder / "scratch",
    held=lease.descriptors,
)
print(server.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "gpus"


@pytest.fixture
def take(folder):
    taken = []

    def take_for_the_test(*uuids):
        lease = GpuLease.take(uuids, folder=folder)
        if lease is not None:
            taken.append(lease)
        return lease

    yield take_for_the_test
    for lease in taken:
        lease.release()


def test_a_gpu_is_leased_once_and_again_after_its_release(take, folder):
    first = take("GPU-0")
    assert take("GPU-0") is None
    assert take("GPU-1") is not None
    assert holder("GPU-0", folder=folder) == os.getpid()
    first.release()
    assert take("GPU-0") is not None


def test_several_are_leased_together_or_not_at_all(take):
    one = take("GPU-1")
    assert take("GPU-0", "GPU-1") is None
    assert take("GPU-0") is not None
    one.release()


def test_a_lease_can_be_released_twice(take):
    lease = take("GPU-0")
    lease.release()
    lease.release()


def test_every_user_of_the_machine_can_lease_whatever_the_umask(take, folder):
    before = os.umask(0o077)
    try:
        take("GPU-0")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert stat.S_IMODE((folder / "GPU-0.lock").stat().st_mode) == 0o666


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "gpus").write_text("a file")
    with pytest.raises(StorageError) as caught:
        GpuLease.take(["GPU-0"], folder=tmp_path / "gpus")
    path = tmp_path / "gpus" / "GPU-0.lock"
    assert str(caught.value) == f"{path}: the GPU cannot be locked: File exists"


def test_a_link_that_somebody_put_there_is_not_followed(take, folder, tmp_path):
    folder.mkdir()
    (tmp_path / "precious").write_text("data")
    (folder / "GPU-0.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError):
        take("GPU-0")
    assert (tmp_path / "precious").read_text() == "data"


def test_who_holds_a_gpu_is_not_known_where_nobody_wrote_it(folder):
    assert holder("GPU-0", folder=folder) is None


def test_all_sessions_of_a_machine_share_one_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert lease_folder() == tmp_path / "moeperf-gpus"


def test_a_guardian_keeps_the_lease_until_the_server_is_gone(take, tmp_path):
    lease = take("GPU-0")
    (tmp_path / "scratch").mkdir()
    server = GuardedProcess(
        ["sleep", "60"],
        env={"PATH": os.environ["PATH"]},
        log=tmp_path / "log",
        scratch=tmp_path / "scratch",
        held=lease.descriptors,
    )
    lease.release()
    assert take("GPU-0") is None
    # The server itself holds nothing: what it leaves behind could not be found any more.
    try:
        assert not [path for path in open_files(server.pid) if path.suffix == ".lock"]
    finally:
        server.stop(patience_s=5)
    assert take("GPU-0") is not None


def open_files(pid):
    """Of a `sleep`, once it is one: before that it is a copy of the guardian."""
    process = Path(f"/proc/{pid}")
    while not (process / "cmdline").read_bytes().startswith(b"sleep\0"):
        pass
    files = []
    for each in (process / "fd").iterdir():
        # Its loader still opens and closes some.
        with contextlib.suppress(FileNotFoundError):
            files.append(each.readlink())
    return files


def test_a_session_that_is_killed_gives_its_gpus_back_when_its_server_is_gone(
    take, folder, tmp_path
):
    with subprocess.Popen(
        [sys.executable, "-c", SESSION, folder, tmp_path], stdout=subprocess.PIPE, text=True
    ) as session:
        server = int(session.stdout.readline())
        assert take("GPU-0") is None
        assert holder("GPU-0", folder=folder) == session.pid
        session.send_signal(signal.SIGKILL)
        session.wait()
        while (lease := take("GPU-0")) is None:
            pass
    # Whoever gets the GPU finds nobody on it.
    assert not Path(f"/proc/{server}").exists()
    lease.release()
