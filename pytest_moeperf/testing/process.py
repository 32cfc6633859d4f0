"""A fake engine as a process, with vLLM's command line and log."""

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

from pytest_moeperf.testing.script import Script
from pytest_moeperf.testing.scripted import ScriptedEngine, open_port

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

ORPHAN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"


def main(argv: Sequence[str] | None = None, *, script_path: Path | None = None) -> int:
    """Serve as a process with vLLM's command line; unknown flags are accepted as vLLM's own.

    `--set NAME=VALUE` (JSON) changes fields of the script from the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m pytest_moeperf.testing", allow_abbrev=False)
    parser.add_argument("--model", default="mini-moe")
    parser.add_argument("--served-model-name", default=None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-key", default=None)
    parser.add_argument("--max-model-len", type=int, default=None)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="fields")
    args, flags = parser.parse_known_args(argv)
    try:
        script = _configured(Script.load(script_path), args)
    except ValueError as error:
        parser.error(str(error))
    _log_start(script, args, flags)
    time.sleep(script.start_delay_s)
    if script.start_exit_code is not None:
        return script.start_exit_code
    if script.start_hang:
        threading.Event().wait()
    children = [
        subprocess.Popen([sys.executable, "-c", ORPHAN]) for _ in range(script.child_processes)
    ]
    try:
        asyncio.run(_serve_process(script, args))
    except OSError as error:
        _log(f"OSError: [Errno {error.errno}] {os.strerror(error.errno or 0)}")
        return 1
    finally:
        for child in children:
            child.kill()
            child.wait()
    return 0


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


async def _serve_process(script: Script, args: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, (lambda: None) if script.ignore_sigterm else stop.set)
    name = args.served_model_name or args.model
    runner = await open_port(
        ScriptedEngine(script, name, _log, die=os._exit), host=args.host, port=args.port
    )
    port = runner.addresses[0][1]
    _log_line("APIServer", "entry.py:140", f"Starting vLLM server on http://{args.host}:{port}")
    _log(f"INFO:     Started server process [{os.getpid()}]")
    _log("INFO:     Waiting for application startup.")
    _log("INFO:     Application startup complete.")
    await stop.wait()
    await runner.cleanup()


def _log_start(script: Script, args: argparse.Namespace, flags: Sequence[str]) -> None:
    api, core, worker = "APIServer", "EngineCore", "Worker"
    context = script.max_model_len or script.kv_tokens
    _log_line(api, "api_utils.py:347", f"version {script.version}")
    _log_line(api, "api_utils.py:347", f"model   {args.model}")
    _log_line(api, "api_utils.py:286", f"non-default args: {' '.join(flags)}")
    _log_line(core, "core.py:133", f"Initializing a V1 LLM engine (v{script.version})")
    _log_line(worker, "cpu_model_runner.py:68", f"Starting to load model {args.model}...")
    for line in script.start_log:
        _log(line)
    _log_line(worker, "default_loader.py:501", "Loading weights took 0.01 seconds")
    _log_line(worker, "unquantized.py:529", "Using CPUUnquantizedExperts MoE backend")
    _log_line(worker, "cpu_worker.py:260", "Explicitly set (1.0/7.21) GiB for KV cache on node 0.")
    _log_line(
        core,
        "kv_cache_utils.py:2327",
        f"CPU KV cache size: {script.kv_tokens:,} tokens, Maximum concurrency for {context:,} "
        f"tokens per request: {script.kv_tokens / context:.2f}x",
    )
    took = "init engine (profile, create kv cache, warmup model) took 0.02 s"
    _log_line(core, "core.py:402", took)


def _log_line(process: str, place: str, message: str) -> None:
    stamp = time.strftime("%m-%d %H:%M:%S")
    _log(f"({process} pid={os.getpid()}) INFO {stamp} [{place}] {message}")


def _log(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
