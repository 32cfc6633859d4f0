"""A fake engine as a process, with the command line and the log of the engine that it plays."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.testing.dialects import DIALECTS, Dialect
from pytest_moeperf.testing.exchange import Port
from pytest_moeperf.testing.routed import counting_script
from pytest_moeperf.testing.script import Script
from pytest_moeperf.testing.scripted import ScriptedEngine
from pytest_moeperf.testing.sizes import ModelSizes
from pytest_moeperf.testing.startlog import Start

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

ORPHAN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"


def main(
    argv: Sequence[str] | None = None,
    *,
    script_path: Path | None = None,
    engine: str = "vllm",
) -> int:
    """Serve as a process with an engine's command line; unknown flags are taken for its own.

    `--set NAME=VALUE` (JSON) changes fields of the script from the command line.
    """
    parser = _parser()
    args, flags = parser.parse_known_args(argv)
    try:
        script = _configured(Script.load(script_path), args)
    except ValueError as error:
        parser.error(str(error))
    dialect = DIALECTS[engine]
    start = _start(script, dialect, args, flags)
    for line in start.sglang() if engine == "sglang" else start.vllm():
        _log(line)
    if not _has_weights(args):
        _log(f"RuntimeError: Cannot find any model weights with `{args.model}`")
        return 1
    counting = counting_script(script, dialect, flags, args.model)
    if isinstance(counting, str):
        _log(counting)
        return 1
    script = replace(counting, kv_tokens=start.kv_tokens)
    time.sleep(script.start_delay_s)
    if script.start_exit_code is not None:
        return script.start_exit_code
    if script.start_hang:
        threading.Event().wait()
    children = [
        subprocess.Popen([sys.executable, "-c", ORPHAN]) for _ in range(script.child_processes)
    ]
    try:
        asyncio.run(_serve_process(script, dialect, args))
    except OSError as error:
        _log(f"OSError: [Errno {error.errno}] {os.strerror(error.errno or 0)}")
        return 1
    finally:
        for child in children:
            child.kill()
            child.wait()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pytest_moeperf.testing", allow_abbrev=False)
    parser.add_argument("--model", "--model-path", default="mini-moe")
    parser.add_argument("--served-model-name", default=None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-key", default=None)
    parser.add_argument("--max-model-len", "--context-length", type=int, default=None)
    parser.add_argument("--tensor-parallel-size", "--tp-size", type=int, default=1)
    parser.add_argument("--enable-expert-parallel", action="store_true")
    parser.add_argument("--ep-size", type=int, default=1)
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="fields")
    return parser


def _start(
    script: Script, dialect: Dialect, args: argparse.Namespace, flags: Sequence[str]
) -> Start:
    # Without the order it is a setting of the machine that tests run on.
    on_gpus = {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"} <= os.environ.keys()
    return Start(
        script=script,
        version=script.version or dialect.version,
        model=args.model,
        flags=" ".join(flags),
        gpus=args.tensor_parallel_size if on_gpus else 0,
        expert_parallel=args.enable_expert_parallel or args.ep_size > 1,
        sizes=ModelSizes.of(args.model),
    )


def _has_weights(args: argparse.Namespace) -> bool:
    """Whether a real engine would find weights, where there is a model directory at all."""
    directory = Path(args.model)
    if args.load_format == "dummy" or not (directory / "config.json").is_file():
        return True
    return any(directory.glob("*.safetensors"))


def _configured(script: Script, args: argparse.Namespace) -> Script:
    """The script with what the command line and the model directory say."""
    if args.fields:
        given = {
            name: json.loads(value)
            for name, _, value in (text.partition("=") for text in args.fields)
        }
        script = Script.from_mapping(asdict(script) | given)
    context = args.max_model_len or script.max_model_len
    config = Path(args.model) / "config.json"
    if context is None and config.exists():
        context = json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings")
    return replace(script, max_model_len=context, api_key=args.api_key or script.api_key)


async def _serve_process(script: Script, dialect: Dialect, args: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, (lambda: None) if script.ignore_sigterm else stop.set)
    name = args.served_model_name or args.model
    asked_not_to = os.environ.get("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION") == "0"
    served = ScriptedEngine(
        script,
        name,
        _log,
        die=os._exit,
        dialect=dialect,
        health_generates=dialect.name == "sglang" and not asked_not_to,
    )
    port = await Port.open(served.respond, host=args.host, port=args.port)
    _log(f"INFO:     Started server process [{os.getpid()}]")
    _log("INFO:     Waiting for application startup.")
    _log("INFO:     Application startup complete.")
    _log(f"INFO:     Uvicorn running on http://{args.host}:{port.number} (Press CTRL+C to quit)")
    await stop.wait()
    await port.close()


def _log(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
