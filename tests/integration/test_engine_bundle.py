"""Bundles, made by the real pip and installed by the real uv on a Python that has the rest."""

import functools
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys

import pytest
from uv import find_uv_bin

from pytest_moeperf import cli, installs
from pytest_moeperf.errors import InstallError, UsageError

PYTHON = ".".join(map(str, sys.version_info[:2]))
DISTRIBUTIONS = {"vllm": "vllm", "needed": "needed", "torch": "torch"}
"""Package by distribution, as in the lock of `vllm==0.9.0`: one of each kind of place."""

UNPACK = """\
import sys, time
from pathlib import Path
from pytest_moeperf import installs

def on_progress(phase, elapsed_s):
    if list(Path(sys.argv[3]).glob("*/pyvenv.cfg")):
        print("stalled", flush=True)
        time.sleep(60)

installs.install_bundle(Path(sys.argv[1]), python=Path(sys.argv[2]), on_progress=on_progress)
"""


def ignore_progress(phase, elapsed_s):
    pass


@pytest.fixture
def locks(tmp_path, make_wheel):
    """A directory with a lock of three packages, whose wheels pip finds."""
    here = f"{platform.system().lower()}-{platform.machine()}"
    pins = ""
    for name, package in DISTRIBUTIONS.items():
        wheel = make_wheel(name, "0.9.0", package=package)
        pins += f"{name}==0.9.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
    directory = tmp_path / "locks"
    directory.mkdir()
    (directory / "vllm-0.9.0.txt").write_text(
        "# engine: vllm\n# distribution: vllm\n# version: 0.9.0\n# device: cuda\n"
        f"# python: {PYTHON}\n# platform: {here}\n{pins}"
    )
    return directory


@pytest.fixture
def host(tmp_path, cache):
    """A virtual environment with torch, which counts as what the machine has by itself."""
    path = tmp_path / "host"
    subprocess.run(
        [find_uv_bin(), "venv", "--quiet", "--offline", "--python", sys.executable, path],
        check=True,
        env={**os.environ, "UV_CACHE_DIR": str(tmp_path / "uv")},
    )
    (packages,) = path.glob("lib/python*/site-packages")
    for name in ("torch", "needed"):
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text("__version__ = 'of the host'\n")
    info = packages / "torch-0.9.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.9.0+cu130\n")
    return path / "bin" / "python"


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "host.txt"
    path.write_text("torch==0.9.0+cu130\n")
    return path


@pytest.fixture(scope="module")
def usual_bundle(tmp_path_factory):
    """Where `pack` keeps what it made first."""
    return tmp_path_factory.mktemp("usual") / "bundle"


@pytest.fixture
def pack(locks, listed, tmp_path, usual_bundle):
    """Makes the bundle of `vllm==0.9.0` for the host, unless told otherwise.

    Where nothing else is told, it is copied from the first test that needs it.
    """

    def make(**changes):
        if not changes:
            if not usual_bundle.exists():
                make(out=usual_bundle)
            return shutil.copytree(usual_bundle, tmp_path / "bundle")
        arguments = {"out": tmp_path / "bundle", "host_has": listed, "locks": locks} | changes
        installs.bundle("vllm", "0.9.0", on_progress=ignore_progress, **arguments)
        return arguments["out"]

    return make


def unpack(directory, host):
    return installs.install_bundle(directory, python=host, on_progress=ignore_progress)


def resolve(text, *, locks, gpu=True):
    return installs.resolve(
        installs.parse_engine(text),
        allow_build=False,
        on_progress=ignore_progress,
        gpu=gpu,
        locks=locks,
    )


def ask(python, expression):
    code = f"import vllm, needed, torch; print({expression})"
    return subprocess.check_output([python, "-c", code], cwd="/", text=True).strip()


def visible(directory):
    return [path.name for path in directory.iterdir() if not path.name.startswith(".")]


class TestPack:
    def test_a_bundle_has_what_the_host_lacks_with_hashes(self, pack, wheels):
        directory = pack()

        described = json.loads((directory / "bundle.json").read_text())
        assert {path.name for path in directory.glob("*.whl")} == {
            "vllm-0.9.0-py3-none-any.whl",
            "needed-0.9.0-py3-none-any.whl",
        }
        assert {each["file"]: each["sha256"] for each in described["wheels"]} == {
            path.name: hashlib.sha256((wheels / path.name).read_bytes()).hexdigest()
            for path in directory.glob("*.whl")
        }
        assert described["on_host"] == [
            {"name": "torch", "locked": "0.9.0", "listed": "0.9.0+cu130"}
        ]

    def test_the_same_is_packed_byte_by_byte(self, pack, tmp_path):
        first, second = pack(), pack(out=tmp_path / "again")

        assert (first / "bundle.json").read_bytes() == (second / "bundle.json").read_bytes()

    @pytest.mark.parametrize("broken", ["removed", "changed"])
    def test_a_wheel_that_cannot_be_had_leaves_nothing(self, pack, wheels, tmp_path, broken):
        wheel = wheels / "needed-0.9.0-py3-none-any.whl"
        if broken == "removed":
            wheel.unlink()
        else:
            wheel.write_bytes(wheel.read_bytes() + b"\0")
        before = set(tmp_path.iterdir())

        with pytest.raises(InstallError, match=r"(?i)needed|hash") as failure:
            pack(out=tmp_path / "bundle")
        assert "\n" not in str(failure.value)
        assert set(tmp_path.iterdir()) == before

    def test_nothing_that_is_there_is_overwritten(self, pack, tmp_path):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.tex").touch()
        (tmp_path / "empty").mkdir()

        with pytest.raises(UsageError, match="there is something already; name a new directory"):
            pack(out=tmp_path / "full")
        assert visible(tmp_path / "full") == ["thesis.tex"]
        assert visible(pack(out=tmp_path / "empty"))

    def test_another_python_than_the_one_of_the_lock_is_refused(self, pack):
        with pytest.raises(UsageError, match=f"--python '3.99': the lock .* for Python {PYTHON}"):
            pack(python="3.99")


class TestUnpack:
    def test_its_own_packages_come_before_those_of_the_host(self, pack, host):
        python = unpack(pack(), host).install.python

        assert ask(python, "vllm.__version__, needed.__version__, torch.__version__") == (
            "0.9.0 0.9.0 of the host"
        )

    def test_it_needs_neither_pips_places_nor_those_of_uv(self, pack, host, wheels, monkeypatch):
        directory = pack()
        for wheel in wheels.iterdir():
            wheel.unlink()
        for name in ("UV_INDEX", "UV_FIND_LINKS", "UV_DEFAULT_INDEX", "PIP_INDEX_URL"):
            monkeypatch.setenv(name, "http://127.0.0.1:9/simple")

        environment = unpack(directory, host)

        assert environment.install.label == "vllm==0.9.0"
        assert list(environment.path.glob("lib/python*/site-packages/vllm/__pycache__/*.pyc"))

    def test_it_is_found_by_version_and_by_name_with_and_without_a_lock(
        self, pack, host, locks, tmp_path
    ):
        environment = unpack(pack(), host)

        assert environment.device == "cuda"
        assert environment.host == host
        for text in ("vllm", "vllm==0.9.0"):
            assert resolve(text, locks=locks) == environment.install
            assert resolve(text, locks=tmp_path) == environment.install

    def test_a_machine_without_a_gpu_gets_it_only_by_its_version(self, pack, host, locks):
        environment = unpack(pack(), host)

        with pytest.raises(UsageError, match="for this machine without a GPU"):
            resolve("vllm", locks=locks, gpu=False)
        assert resolve("vllm==0.9.0", locks=locks, gpu=False) == environment.install

    def test_unpacking_again_finds_it_and_another_bundle_lies_beside(self, pack, host, tmp_path):
        first = unpack(pack(), host)

        assert unpack(tmp_path / "bundle", host) == first
        other = unpack(pack(out=tmp_path / "other", pack=["torch"]), host)
        assert other.path != first.path
        assert ask(other.install.python, "torch.__version__") == "0.9.0"

    def test_a_host_that_lost_its_python_has_no_engine(self, pack, host, locks):
        unpack(pack(), host)
        host.unlink()

        assert installs.installed() == ()
        with pytest.raises(UsageError, match="not installed"):
            resolve("vllm==0.9.0", locks=locks)

    def test_what_the_host_lacks_is_named(self, pack, host, listed):
        listed.write_text("torch\nneeded\n")

        with pytest.raises(InstallError) as refusal:
            unpack(pack(host_has=listed), host)
        assert str(refusal.value) == (
            f"vllm==0.9.0: not all that the bundle counts on is in {host}: it lacks needed. "
            "Install it there, or make the bundle with a --host-has that is true of this machine"
        )
        assert installs.installed() == ()

    @pytest.mark.parametrize(("line", "refused"), [("torch==0.9.0", True), ("torch", False)])
    def test_a_version_matters_where_one_was_listed(self, pack, host, listed, line, refused):
        listed.write_text(f"{line}\n")
        (info,) = host.parents[1].glob("lib/python*/site-packages/*.dist-info/METADATA")
        info.write_text(info.read_text().replace("0.9.0+cu130", "0.8.0"))

        if refused:
            with pytest.raises(InstallError, match=r"it has torch 0\.8\.0 instead of 0\.9\.0\."):
                unpack(pack(host_has=listed), host)
        else:
            assert unpack(pack(host_has=listed), host).install.version == "0.9.0"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"python": "3.99"}, rf"for Python 3\.99, .* is {PYTHON}; name another one"),
            ({"platform": "plan9-mips"}, "the bundle is for plan9-mips, this is linux-"),
        ],
    )
    def test_a_bundle_for_another_machine_is_refused(self, pack, host, change, message):
        directory = pack()
        described = json.loads((directory / "bundle.json").read_text())
        (directory / "bundle.json").write_text(json.dumps(described | change))

        with pytest.raises(InstallError, match=message):
            unpack(directory, host)

    def test_a_wheel_that_was_damaged_on_the_way_is_refused(self, pack, host, cache):
        directory = pack()
        wheel = directory / "needed-0.9.0-py3-none-any.whl"
        wheel.write_bytes(wheel.read_bytes() + b"\0")

        with pytest.raises(InstallError, match=r"(?i)hash.*Carry it over again"):
            unpack(directory, host)
        assert visible(cache) == []

    @pytest.mark.parametrize("path", ["gone", "bundle", "bundle/bundle.json"])
    def test_what_is_no_interpreter_is_refused(self, pack, tmp_path, path):
        with pytest.raises(UsageError, match=f"--python '{tmp_path / path}': not a Python interp"):
            unpack(pack(), tmp_path / path)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    def test_an_interrupted_one_does_not_count(self, pack, host, cache, number):
        directory = pack()
        with subprocess.Popen(
            [sys.executable, "-c", UNPACK, directory, host, cache],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout.readline() == "stalled\n"
            process.send_signal(number)
            process.communicate(timeout=30)

        assert installs.installed() == ()
        if number == signal.SIGINT:
            assert visible(cache) == []
        environment = unpack(directory, host)
        assert visible(cache) == [environment.path.name]


class TestCommand:
    @pytest.fixture
    def moeperf(self, locks, monkeypatch, capsys):
        monkeypatch.setattr(installs, "bundle", functools.partial(installs.bundle, locks=locks))

        def call(*words):
            code = cli.main(["engine", *map(str, words)])
            return code, *capsys.readouterr()

        return call

    def test_from_spec_to_engine(self, moeperf, listed, host, tmp_path):
        out = tmp_path / "out"
        code, said, progress = moeperf(
            *("bundle", "vllm==0.9.0", "--python", PYTHON, "--out", out),
            *("--host-has", listed, "--leave-out", "need*"),
        )
        assert code == 0
        assert said == (
            f"vllm==0.9.0 for Python {PYTHON}, linux-x86_64 with glibc 2.28: 1 wheel, 0 MB in "
            f"{out}\nnot packed, expected there: 1\nleft out: needed\n"
        )
        assert progress.startswith("vllm==0.9.0: downloading packages, 0 of 1\n")

        code, said, progress = moeperf("install", "--from", out, "--python", host)

        (environment,) = installs.installed()
        assert (code, said) == (0, f"vllm==0.9.0 is installed: {environment.install.python}\n")
        assert progress.startswith(f"{out}: resolving packages\n")
        assert moeperf("list")[1].startswith("vllm==0.9.0  installed  ")
        assert moeperf("remove", "vllm==0.9.0")[0] == 0
        assert installs.installed() == ()

    def test_json_goes_to_stdout_alone(self, moeperf, listed, host, tmp_path):
        out = tmp_path / "out"

        described = json.loads(
            moeperf("bundle", "vllm==0.9.0", "--out", out, "--host-has", listed, "--json")[1]
        )
        installed = json.loads(moeperf("install", "--from", out, "--python", host, "--json")[1])

        assert described["path"] == str(out)
        assert [each["name"] for each in described["wheels"]] == ["vllm", "needed"]
        assert installed["host"] == str(host)
        assert installed["lock_sha256"] == described["lock_sha256"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("install",), "give either SPEC, such as vllm==0.24.0, or --from DIR"),
            (("install", "vllm==0.9.0", "--from", "d"), "give either SPEC"),
            (("install", "vllm==0.9.0", "--python", "p"), "--python goes with --from"),
            (("bundle", "vllm@/usr/bin/python3", "--out", "d"), "only a version can be bundled"),
            (("bundle", "vllm", "--out", "d"), "engine 'vllm': a version must be given"),
        ],
    )
    def test_misuse_is_one_line(self, moeperf, words, message):
        code, out, said = moeperf(*words)

        assert (code, out, said.count("\n")) == (2, "", 1)
        assert message in said
