import dataclasses
import hashlib
import json

import pytest

from pytest_moeperf.errors import InstallError, UsageError
from pytest_moeperf.installs.bundle import (
    Bundle,
    HostPackage,
    LeftOut,
    Wheel,
    read_bundle,
    read_host_packages,
    select,
    write_bundle,
)
from pytest_moeperf.installs.lockfile import EngineLock, read_lock, read_pins
from pytest_moeperf.installs.piptool import _complaint, wheel_platforms

HEAD = """\
# engine: vllm
# distribution: vllm
# version: 0.24.0
# device: cuda
# python: 3.12
# platform: linux-x86_64
# glibc: 2.35
"""
PINS = {"numpy": "2.2.6", "nvidia-cuda-crt": "13.3", "torch": "2.11.0", "vllm": "0.24.0"}


@pytest.fixture
def lock(tmp_path) -> EngineLock:
    path = tmp_path / "vllm-0.24.0.txt"
    path.write_text(
        HEAD
        + "".join(
            f"{name}=={version} \\\n    --hash=sha256:{'a' * 64} \\\n    --hash=sha256:{'b' * 64}\n"
            for name, version in PINS.items()
        )
    )
    return read_lock(path)


def choose(lock, *, host_has=None, pack=(), leave_out=()):
    return select(
        lock, read_pins(lock), host_has=host_has or {}, pack=pack, leave_out=list(leave_out)
    )


def packed(selection):
    return [pin.name for pin in selection.packed]


class TestPins:
    def test_a_pin_has_every_hash_and_makes_its_line_again(self, lock):
        pin = read_pins(lock)[0]

        assert (pin.name, pin.version, pin.sha256) == ("numpy", "2.2.6", ("a" * 64, "b" * 64))
        assert pin.requirement == (
            f"numpy==2.2.6 --hash=sha256:{'a' * 64} --hash=sha256:{'b' * 64}"
        )

    @pytest.mark.parametrize("line", ["torch==2.11.0", "torch", "-r others.txt"])
    def test_a_line_without_version_or_hash_is_refused(self, lock, line):
        lock.path.write_text(f"{HEAD}{line}\n")

        with pytest.raises(InstallError, match="not NAME==VERSION with --hash"):
            read_pins(lock)

    def test_a_lock_that_says_no_glibc_is_for_the_one_of_2018(self, lock):
        lock.path.write_text(HEAD.replace("# glibc: 2.35\n", ""))

        assert lock.glibc == "2.35"
        assert read_lock(lock.path).glibc == "2.28"


class TestSelect:
    def test_without_a_list_everything_is_packed(self, lock):
        assert packed(choose(lock)) == list(PINS)

    def test_what_the_host_has_is_not_packed(self, lock):
        selection = choose(lock, host_has={"torch": None, "numpy": "2.2.6"})

        assert packed(selection) == ["nvidia-cuda-crt", "vllm"]
        assert selection.on_host == (
            HostPackage(name="numpy", locked="2.2.6", listed="2.2.6"),
            HostPackage(name="torch", locked="2.11.0", listed=None),
        )

    @pytest.mark.parametrize(
        ("listed", "suffices"),
        [(None, True), ("2.11.0", True), ("2.11.0+cu130", True), ("2.11", True), ("2.11.1", False)],
    )
    def test_a_version_of_the_host_must_meet_the_pin(self, lock, listed, suffices):
        assert ("torch" not in packed(choose(lock, host_has={"torch": listed}))) is suffices

    def test_a_name_is_packed_in_spite_of_the_list_and_of_a_pattern(self, lock):
        selection = choose(
            lock,
            host_has={"torch": None},
            pack=["Torch", "nvidia_cuda.crt"],
            leave_out=["nvidia-*"],
        )

        assert packed(selection) == list(PINS)

    def test_a_pattern_leaves_out_what_the_host_lacks_and_says_which(self, lock):
        selection = choose(lock, leave_out=["nvidia-cuda-*"])

        assert packed(selection) == ["numpy", "torch", "vllm"]
        assert selection.left_out == (
            LeftOut(name="nvidia-cuda-crt", locked="13.3", pattern="nvidia-cuda-*"),
        )

    def test_the_engine_is_packed_also_where_the_host_has_one(self, lock):
        assert "vllm" in packed(choose(lock, host_has={"vllm": "0.24.0"}))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"pack": ["torhc"]}, "--pack 'torhc': the lock of vllm==0.24.0 has no such package"),
            (
                {"leave_out": ["torhc*"]},
                "--leave-out 'torhc*': matches no package in the lock of vllm==0.24.0",
            ),
            ({"leave_out": ["v*"]}, "--leave-out 'v*': matches vllm, the engine itself"),
        ],
    )
    def test_what_means_no_package_is_a_typing_error(self, lock, arguments, message):
        with pytest.raises(UsageError) as refusal:
            choose(lock, **arguments)
        assert str(refusal.value) == message


class TestHostPackages:
    def test_names_are_brought_to_their_normal_form(self, tmp_path):
        path = tmp_path / "host.txt"
        path.write_text("# of host 1\n\ntorch==2.11.0+cu130\nPyYAML  # any\nruamel.yaml == 0.18\n")

        assert read_host_packages(path) == {
            "torch": "2.11.0+cu130",
            "pyyaml": None,
            "ruamel-yaml": "0.18",
        }

    @pytest.mark.parametrize(
        "line", ["torch>=2", "-e .", "torch @ file:///x", "torch==", "torch==2.*", "==2", "a b"]
    )
    def test_other_lines_are_refused_by_number(self, tmp_path, line):
        path = tmp_path / "host.txt"
        path.write_text(f"numpy\n{line}\n")

        with pytest.raises(UsageError) as refusal:
            read_host_packages(path)
        assert str(refusal.value) == (
            f"{path}:2: {line!r} is neither NAME nor NAME==VERSION; "
            "`pip list --format=freeze` on that machine writes such lines"
        )

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(UsageError, match=r"--host-has '.*gone\.txt': cannot be read: No such"):
            read_host_packages(tmp_path / "gone.txt")


@pytest.fixture
def bundle(tmp_path):
    """One that is on disk, with a wheel that is a wheel by its name only."""
    wheel = tmp_path / "vllm-0.24.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    made = Bundle(
        engine="vllm",
        distribution="vllm",
        version="0.24.0",
        device="cuda",
        python="3.12",
        platform="linux-x86_64",
        glibc="2.35",
        lock_sha256="c" * 64,
        wheels=(
            Wheel(
                name="vllm",
                version="0.24.0",
                file=wheel.name,
                sha256=hashlib.sha256(b"wheel").hexdigest(),
                size_bytes=5,
            ),
        ),
        on_host=(HostPackage(name="torch", locked="2.11.0", listed=None),),
        left_out=(LeftOut(name="tilelang", locked="0.1", pattern="tile*"),),
    )
    write_bundle(made, tmp_path)
    return made


def rewrite(directory, change):
    path = directory / "bundle.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


class TestBundleFile:
    def test_it_is_read_as_it_was_written(self, bundle, tmp_path):
        assert read_bundle(tmp_path) == bundle

    def test_its_digest_depends_on_its_wheels(self, bundle):
        (wheel,) = bundle.wheels
        other = dataclasses.replace(wheel, sha256="d" * 64)

        assert dataclasses.replace(bundle).sha256 == bundle.sha256
        assert dataclasses.replace(bundle, wheels=(other,)).sha256 != bundle.sha256

    def test_a_directory_without_one_says_how_it_is_made(self, tmp_path):
        with pytest.raises(UsageError, match=r"no bundle there: .*`moeperf engine bundle` makes"):
            read_bundle(tmp_path)

    def test_a_wheel_that_was_lost_on_the_way_is_named(self, bundle, tmp_path):
        (tmp_path / bundle.wheels[0].file).unlink()

        with pytest.raises(InstallError, match=r"1 of 1 wheels are not there, such as vllm-0\.24"):
            read_bundle(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda value: value.update(schema=2), "bundle format 2; this version reads 1"),
            (lambda value: value.pop("wheels"), "not what a bundle says of itself: 'wheels'"),
            (lambda value: value.update(more=1), "not what a bundle says of itself: .*'more'"),
            (lambda value: value.update(version="../../x"), r"of itself: '\.\./\.\./x'"),
            (
                lambda value: value.update(distribution="evil"),
                "'evil' is no build of 'vllm'",
            ),
            (
                lambda value: value.update(engine="sglang"),
                "'vllm' is no build of 'sglang'",
            ),
            (lambda value: value["wheels"][0].update(file="../a.whl"), r"itself: '\.\./a\.whl'"),
            (lambda value: value["wheels"][0].update(file="a b"), "of itself: 'a b'"),
            (lambda value: value["wheels"][0].update(sha256="0"), "no SHA-256 of vllm-"),
            (lambda value: value["wheels"][0].update(sha256=None), "no SHA-256 of vllm-"),
            (lambda value: value.update(on_host=[{"name": "torch"}]), "of itself: .*locked"),
        ],
    )
    @pytest.mark.usefixtures("bundle")
    def test_what_it_should_not_say_is_refused(self, tmp_path, change, message):
        rewrite(tmp_path, change)

        with pytest.raises(InstallError, match=message) as refusal:
            read_bundle(tmp_path)
        assert str(refusal.value).startswith(f"{tmp_path / 'bundle.json'}: ")

    @pytest.mark.parametrize("text", ["", "[]", "null", "{", "3"])
    def test_other_json_is_refused_in_one_line(self, tmp_path, text):
        (tmp_path / "bundle.json").write_text(text)

        with pytest.raises(InstallError) as refusal:
            read_bundle(tmp_path)
        assert "\n" not in str(refusal.value)


class TestPip:
    def test_platforms_reach_from_the_oldest_glibc_to_that_of_the_host(self):
        tags = wheel_platforms("2.17")

        assert tags[:2] == ("manylinux1_x86_64", "manylinux_2_5_x86_64")
        assert tags[-4:] == ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "linux_x86_64", "any")
        assert "manylinux_2_18_x86_64" not in tags

    def test_the_last_error_speaks_without_credentials(self):
        said = [
            "Collecting torch==2.11.0",
            "ERROR: Could not find a version that satisfies the requirement torch==2.11.0",
            "WARNING: Retrying",
            "ERROR: No matching distribution found for torch==2.11.0",
            "  from https://me:s3cret@host/simple/",
        ]

        assert _complaint(said) == (
            "No matching distribution found for torch==2.11.0 from https://***@host/simple/"
        )
        assert _complaint([]) == ""
