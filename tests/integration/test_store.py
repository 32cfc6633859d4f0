"""Baselines on a real file system."""

import errno
import fcntl
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_moeperf import files, store
from pytest_moeperf.baseline import Baseline
from pytest_moeperf.baseline_format import encode
from pytest_moeperf.errors import BaselineError, StorageError, UsageError
from pytest_moeperf.records import Finding, Sample
from pytest_moeperf.waiver import Waiver

CELL = "serving/mini-moe.closed-c1-isl32-osl48-n8"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "baselines"


@pytest.fixture
def path(root):
    return root / "cpu" / "vllm" / f"{CELL}.json"


@pytest.fixture
def recorded(root, path, make_recording):
    """The path of a baseline with one start."""
    writer = store.BaselineWriter(root)
    writer.add(make_recording())
    writer.flush()
    return path


def names_in(folder):
    return sorted(str(found.relative_to(folder)) for found in folder.rglob("*") if found.is_file())


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Reading


def test_a_baseline_that_was_never_recorded_is_none(path):
    assert store.load(path, cell=CELL) is None


def test_what_was_recorded_is_what_is_loaded(recorded, make_recording):
    assert store.load(recorded, cell=CELL) == Baseline.begun(make_recording())


def test_another_cell_is_refused(recorded):
    with pytest.raises(BaselineError) as caught:
        store.load(recorded, cell="serving/mini-moe.other")
    assert str(caught.value) == (
        f"{recorded}: holds the cell {CELL}, not serving/mini-moe.other; its path must be its cell"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1 column 1: not JSON: Expecting value"),
        (b"\xff\xfe{}", "not JSON: byte 0 is not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"schema": NaN}', "$.schema is not a finite number"),
        (b'{"schema": 1}', "is a required property"),
        (b" " * (4 * 1024 * 1024 + 1), "larger than 4 MiB, not a baseline"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "b.json"
    path.write_bytes(content)
    with pytest.raises(BaselineError) as caught:
        store.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_device_a_pipe_and_a_folder_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "zero"):
        with pytest.raises(BaselineError, match=r"not a file$"):
            store.read(tmp_path / name)
    with pytest.raises(StorageError, match="folder"):
        store.read(tmp_path / "folder")


def test_a_path_below_a_file_cannot_be_read(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        store.read(tmp_path / "file" / "b.json")
    assert str(caught.value) == (
        f"cannot read {tmp_path}/file/b.json: a file is in the place of one of its folders"
    )


def test_a_file_without_read_permission_is_explained(recorded, monkeypatch):
    # Root may read everything, so the kernel's answer is given here.
    def denied(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(StorageError, match=r"^cannot read .*\.json: no permission$"):
        store.read(recorded)


def test_a_path_with_escape_sequences_is_shown_harmless(tmp_path):
    path = tmp_path / "\x1b[2J.json"
    path.write_text("{")
    with pytest.raises(BaselineError) as caught:
        store.read(path)
    assert str(caught.value).isprintable()


# Names


def test_a_baseline_lies_at_hardware_engine_suite_and_cell(root):
    assert store.baseline_path(root, hardware="h200", engine="vllm", cell="moe/a.b") == (
        root / "h200" / "vllm" / "moe" / "a.b.json"
    )


@pytest.mark.parametrize(
    "cell", ["../../etc/passwd", "serving/../x", "/etc/passwd", "a//b", "a b", "", ".hidden", "a\n"]
)
def test_a_cell_that_would_leave_its_folder_is_refused(root, cell):
    with pytest.raises(UsageError, match="cannot name a baseline"):
        store.baseline_path(root, hardware="cpu", engine="vllm", cell=cell)


def test_a_file_must_lie_where_it_says(root, recorded):
    assert store.load_placed(root, recorded).cell == CELL
    for elsewhere, message in (
        ("h200/vllm", "was recorded on cpu/vllm; its path must say the same"),
        ("cpu/sglang", "was recorded on cpu/vllm; its path must say the same"),
        ("cpu/vllm/more", "its path must be its cell"),
    ):
        copy = root / elsewhere / f"{CELL}.json"
        copy.parent.mkdir(parents=True)
        shutil.copy(recorded, copy)
        with pytest.raises(BaselineError, match=message):
            store.load_placed(root, copy)
    shallow = root / "x.json"
    shutil.copy(recorded, shallow)
    with pytest.raises(BaselineError, match=r"not at <hardware>/<engine>/<suite>/<cell>\.json"):
        store.load_placed(root, shallow)


def test_a_link_to_nothing_is_a_bad_file(root, path):
    path.parent.mkdir(parents=True)
    path.symlink_to("nowhere")
    assert store.find(root) == (path,)
    with pytest.raises(BaselineError, match="a link to nothing"):
        store.load_placed(root, path)


def test_a_folder_that_is_not_there_cannot_be_searched(root):
    with pytest.raises(UsageError, match="no folder"):
        store.find(root)


# Recording


def test_nothing_is_written_before_the_flush(root, make_recording):
    writer = store.BaselineWriter(root)
    writer.add(make_recording())
    assert not root.exists()
    assert [change.label for change in writer.flush()] == [
        f"new, 1 start: {root}/cpu/vllm/{CELL}.json"
    ]


def test_a_flush_writes_once_and_says_what(root, path, recorded, make_recording, make_start):
    writer = store.BaselineWriter(root)
    writer.add(make_recording(start=make_start("start-2")))
    writer.add(make_recording(start=make_start("start-3")))
    before = path.read_text()
    (change,) = writer.flush()
    assert change.label == f"1 → 3 starts: {path}"
    assert (change.cell, change.before, change.after) == (CELL, before, path.read_text())
    assert writer.flush() == ()
    assert names_in(root) == [f"cpu/vllm/{CELL}.json"]


def test_a_start_that_another_session_added_meanwhile_is_kept(
    root, path, make_recording, make_start
):
    ours, theirs = store.BaselineWriter(root), store.BaselineWriter(root)
    ours.add(make_recording(start=make_start("ours")))
    theirs.add(make_recording(start=make_start("theirs")))
    theirs.flush()
    ours.flush()
    stored = store.load(path, cell=CELL)
    assert [start.start_id for start in stored.starts] == ["theirs", "ours"]


def test_two_sessions_that_write_at_once_lose_nothing(root, path, make_recording, make_start):
    """Processes, as the lock is the system's; each waits for the others to be ready."""
    code = (
        "import pickle, sys\n"
        "from pathlib import Path\n"
        "from pytest_moeperf import store\n"
        "root, recordings = pickle.loads(sys.stdin.buffer.read())\n"
        "for recording in recordings:\n"
        "    writer = store.BaselineWriter(Path(root))\n"
        "    writer.add(recording)\n"
        "    writer.flush()\n"
    )
    names = [[f"{process}-{number}" for number in range(3)] for process in "abc"]
    processes = []
    for starts in names:
        recordings = [make_recording(start=make_start(name)) for name in starts]
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        processes.append((process, pickle.dumps((str(root), recordings))))
    for process, _ in processes:
        assert process.poll() is None
    for process, given in processes:
        process.stdin.write(given)
        process.stdin.close()
    assert [process.wait(60) for process, _ in processes] == [0, 0, 0]
    stored = store.load(path, cell=CELL)
    assert sorted(start.start_id for start in stored.starts) == sorted(
        name for each in names for name in each
    )
    assert names_in(root) == [f"cpu/vllm/{CELL}.json"]


def test_who_writes_waits_for_who_holds_the_folder(root, recorded, make_recording, make_start):
    writer = store.BaselineWriter(root)
    writer.add(make_recording(start=make_start("start-2")))
    with store.locked(root):
        waiting = threading.Thread(target=writer.flush)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        assert len(store.read(recorded).starts) == 1
    waiting.join(10)
    assert len(store.read(recorded).starts) == 2


def test_a_network_file_system_without_locks_is_written_all_the_same(
    root, recorded, make_recording, make_start, monkeypatch
):
    def unsupported(*_):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    writer = store.BaselineWriter(root)
    writer.add(make_recording(start=make_start("start-2")))
    writer.flush()
    assert len(store.read(recorded).starts) == 2


def test_a_lock_that_fails_for_another_reason_is_told(root, monkeypatch):
    def failed(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", failed)
    with (
        pytest.raises(StorageError, match=r"cannot write .*baselines: Input/output error"),
        store.locked(root),
    ):
        pass


def test_what_cannot_be_removed_is_explained(root, recorded):
    with pytest.raises(StorageError, match=r"cannot remove .*serving: "):
        store.remove(root, [recorded.parent])


def test_only_our_own_leftovers_are_removed(root, recorded, make_recording, make_start):
    ours, theirs = recorded.with_name(".x.json.0123abcd.tmp"), recorded.with_name(".notes.tmp")
    ours.touch()
    theirs.touch()
    with store.locked(root):
        assert not ours.exists()
    assert theirs.exists()


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_a_kill_in_the_middle_of_a_write_leaves_every_file_whole(
    root, recorded, make_recording, make_start, when
):
    """SIGKILL, which nothing can tidy up after; the next writer does."""
    before = recorded.read_text()
    place = {"fsync": "os.fsync", "replace": "Path.replace"}[when]
    code = (
        "import os, pickle, signal, sys\n"
        "from pathlib import Path\n"
        "from pytest_moeperf import store\n"
        "root, recordings = pickle.loads(sys.stdin.buffer.read())\n"
        "writer = store.BaselineWriter(Path(root))\n"
        "for recording in recordings:\n"
        "    writer.add(recording)\n"
        f"{place} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "writer.flush()\n"
    )
    recordings = [
        make_recording(start=make_start("start-2")),
        make_recording(cell="serving/zz"),
    ]
    died = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps((str(root), recordings)),
        check=False,
        timeout=60,
    )
    assert died.returncode == -signal.SIGKILL
    assert recorded.read_text() == before
    assert any(name.endswith(".tmp") for name in names_in(root))
    assert [baseline.cell for baseline in map(store.read, store.find(root))] == [CELL]
    writer = store.BaselineWriter(root)
    for recording in recordings:
        writer.add(recording)
    writer.flush()
    assert names_in(root) == [f"cpu/vllm/{CELL}.json", "cpu/vllm/serving/zz.json"]


def test_a_file_of_version_1_is_extended_as_version_2(root, path, make_recording, make_start):
    path.parent.mkdir(parents=True)
    shutil.copy(Path(__file__).parents[1] / "data" / "baseline-1.json", path)
    writer = store.BaselineWriter(root)
    writer.add(make_recording(start=make_start("start-3")))
    [change] = writer.flush()
    assert change.label == f"2 → 3 starts: {path}"
    assert json.loads(path.read_text())["schema"] == 2
    assert store.read(path).repeats("tpot_ms.p50")[0] == (31.4159, 31.5)


def test_a_truncated_file_is_refused_and_left(root, recorded, make_recording, make_start):
    text = recorded.read_text()
    recorded.write_text(text[: len(text) // 2])
    writer = store.BaselineWriter(root)
    with pytest.raises(BaselineError, match="it ends in the middle, so restore the file"):
        writer.add(make_recording(start=make_start("start-2")))
    assert recorded.read_text() == text[: len(text) // 2]


def test_waivers_are_no_baseline(root, recorded):
    waiver = Waiver(
        baseline=f"cpu/vllm/{CELL}",
        metric=None,
        rule="removed",
        reason="r",
        owner="o",
        issue="https://example.org/1",
        expires="2026-02-01",
    )
    assert store.read_waivers(root) == ()
    store.write_waivers(root, [waiver])
    assert store.read_waivers(root) == (waiver,)
    assert store.find(root) == (recorded,)
    store.write_waivers(root, [])
    assert names_in(root) == [f"cpu/vllm/{CELL}.json"]


def test_a_removed_baseline_leaves_no_empty_folder(root, recorded, make_recording):
    store.write_baselines(root, [Baseline.begun(make_recording(cell="moe/other"))])
    store.remove(root, [recorded])
    assert names_in(root) == ["cpu/vllm/moe/other.json"]
    assert not recorded.parent.exists()
    store.remove(root, [root / "cpu/vllm/moe/other.json"])
    assert list(root.iterdir()) == []


def test_every_file_ends_as_everyone_may_read_it(recorded):
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(recorded.stat().st_mode) == 0o666 & ~mask
    content = recorded.read_bytes()
    assert content.endswith(b"}\n")
    assert b"\r" not in content


def test_an_invalid_repeat_is_not_recorded(root, make_recording, make_start):
    start = make_start()
    bad = Sample(seed=9, values={}, findings=(Finding(code="failed_requests", message="m"),))
    object.__setattr__(start, "repeats", (*start.repeats, bad))
    writer = store.BaselineWriter(root)
    with pytest.raises(UsageError, match=r"seed 9 is invalid \(failed_requests\)"):
        writer.add(make_recording(start=start))
    assert writer.flush() == ()


def test_what_could_not_be_read_back_is_not_written(root, recorded, make_recording, make_start):
    before = recorded.read_bytes()
    writer = store.BaselineWriter(root)
    writer.add(make_recording(start=make_start("two\nlines")))
    with pytest.raises(BaselineError, match="must not contain control characters"):
        writer.flush()
    assert recorded.read_bytes() == before


def test_a_recording_that_cannot_join_is_refused_when_it_is_added(root, recorded, make_recording):
    writer = store.BaselineWriter(root)
    other = make_recording(cell="serving/other")
    writer.add(other)
    recorded.write_text("{")
    with pytest.raises(BaselineError, match="not JSON"):
        writer.add(make_recording())
    assert [change.cell for change in writer.flush()] == ["serving/other"]


def test_a_folder_that_links_elsewhere_is_not_written_through(tmp_path, root, make_recording):
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "cpu").mkdir(parents=True)
    (root / "cpu" / "vllm").symlink_to(outside)
    writer = store.BaselineWriter(root)
    writer.add(make_recording())
    with pytest.raises(StorageError, match="a link leads out of"):
        writer.flush()
    assert names_in(outside) == []


def test_a_file_that_links_elsewhere_is_replaced_and_not_written_through(
    tmp_path, root, path, make_recording, make_start
):
    outside = tmp_path / "outside.json"
    outside.write_text(encode(Baseline.begun(make_recording())))
    before = outside.read_text()
    path.parent.mkdir(parents=True)
    path.symlink_to(outside)
    writer = store.BaselineWriter(root)
    writer.add(make_recording(start=make_start("start-2")))
    writer.flush()
    assert not path.is_symlink()
    assert outside.read_text() == before


# Failing to write


@pytest.fixture
def writer(root, make_recording, make_start):
    """Has a second start of the recorded cell queued."""
    writer = store.BaselineWriter(root)
    writer.add(make_recording(start=make_start("start-2")))
    return writer


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(recorded, writer, monkeypatch, failing):
    root, before = writer.root, recorded.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[failing], full_disk)
        with pytest.raises(StorageError) as caught:
            writer.flush()
    assert str(caught.value) == (
        f"cannot write {recorded}: the disk is full; free some space and run again"
    )
    assert recorded.read_bytes() == before
    assert names_in(root) == [f"cpu/vllm/{CELL}.json"]
    writer.flush()  # what was queued is not lost
    assert len(store.load(recorded, cell=CELL).starts) == 2


def test_when_the_second_file_does_not_fit_the_first_is_left_alone_too(
    recorded, writer, make_recording, monkeypatch
):
    root, before = writer.root, recorded.read_bytes()
    writer.add(make_recording(cell="serving/zz"))
    synced = []

    def second_fails(descriptor):
        synced.append(descriptor)
        if len(synced) == 2:
            full_disk()

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(StorageError, match=r"zz\.json: the disk is full"):
        writer.flush()
    assert recorded.read_bytes() == before
    assert names_in(root) == [f"cpu/vllm/{CELL}.json"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB; skips where the kernel does not let us mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_really_full_disk_leaves_the_old_file(small_disk):
    path = small_disk / "run.json"
    files.write_text_atomic(path, "old")
    with pytest.raises(StorageError, match="the disk is full; free some space"):
        files.write_text_atomic(path, "x" * 200_000)
    assert path.read_text() == "old"
    assert names_in(small_disk) == ["run.json"]
    files.write_text_atomic(path, "x" * 30_000)  # the space came back
    assert len(path.read_text()) == 30_000


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    path.write_text("old")

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["run.json"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EACCES, "no permission"),
        (errno.EPERM, "no permission"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EDQUOT, "the disk is full; free some space and run again"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_file_that_cannot_be_written_is_explained(tmp_path, monkeypatch, code, reason):
    # Root may write everywhere, so the kernel's answers are given here.
    def denied(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(StorageError) as caught:
        files.write_text_atomic(tmp_path / "run.json", "x")
    assert str(caught.value) == f"cannot write {tmp_path}/run.json: {reason}"


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("old")
    for attempt in (
        lambda: files.write_text_atomic(tmp_path / "file" / "a" / "run.json", "x"),
        lambda: files.ensure_writable(tmp_path / "file"),
        lambda: files.ensure_writable(tmp_path / "file" / "a"),
    ):
        with pytest.raises(StorageError, match="a file is in the place of one of its folders"):
            attempt()
    assert (tmp_path / "file").read_text() == "old"


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    files.ensure_writable(tmp_path / "a" / "b")
    assert names_in(tmp_path) == []
    assert (tmp_path / "a" / "b").is_dir()


def test_a_text_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "run.json"
    files.write_text_atomic(path, json.dumps({"a": 1}))
    files.write_text_atomic(path, "größe\n")
    assert path.read_bytes() == "größe\n".encode()


def test_a_text_is_added_to_what_others_wrote(tmp_path):
    path = tmp_path / "summary.md"
    path.write_text("theirs\n")
    files.append_text(path, "größe\n")
    assert path.read_bytes() == "theirs\ngröße\n".encode()
    with pytest.raises(StorageError, match="cannot write /dev/full: the disk is full"):
        files.append_text(Path("/dev/full"), "x")
