"""`moeperf load`: one play of a workload against any OpenAI-compatible server."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from pytest_moeperf import validity
from pytest_moeperf.cli import load_options
from pytest_moeperf.datasets import load_data
from pytest_moeperf.errors import StorageError, UsageError
from pytest_moeperf.files import write_text_atomic
from pytest_moeperf.report.load import Played, document, table
from pytest_moeperf.workload import plan

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from pytest_moeperf.cli.load_options import LoadOptions
    from pytest_moeperf.client import ServedModel
    from pytest_moeperf.datasets import Data
    from pytest_moeperf.workload import Plan

HELP = "Play one workload against a running server and print its latencies"

API_KEY_VARIABLE = "MOEPERF_API_KEY"

configure = load_options.configure


def run(args: argparse.Namespace) -> int:
    """Play, print, and return 1 if a request failed or the play cannot be trusted."""
    if args.selftest:
        from pytest_moeperf.cli.selftest import run_selftest  # noqa: PLC0415 - not for other commands

        load_options.refuse_beside_selftest(args)
        return run_selftest(args)
    options = load_options.read(args)
    played = _play(options)
    print(json.dumps(document(played), indent=1) if args.json else table(played), flush=True)
    for form, path in options.exports.items():
        _export(played, form, path, seed=options.seed)
    return 1 if played.errors or played.findings else 0


def _play(options: LoadOptions) -> Played:
    # The load client is loaded by those who send load, not by every `moeperf` command.
    from pytest_moeperf.client import Target, served_models  # noqa: PLC0415 - not for other commands
    from pytest_moeperf.driver import play  # noqa: PLC0415 - not for other commands

    # Before the server is asked: what is wrong with it is wrong for every server.
    try:
        data = load_data(options.workload)
    except StorageError as error:
        # A file that was typed; 1 would say that the load failed.
        raise UsageError(str(error)) from error
    api_key = os.environ.get(API_KEY_VARIABLE)
    model = _choose(served_models(options.url, api_key=api_key), options.model, options.url)
    target = Target(
        options.url,
        model.name,
        api_key=api_key,
        continuous_usage=options.continuous_usage,
        include_connect=options.include_connect,
    )
    repeat = play(
        target,
        _plan(options, data, model),
        stall_timeout_s=options.stall_timeout_s,
        on_progress=_show_progress if sys.stderr.isatty() else None,
        workers=options.workers,
    )
    # Imports numpy, which would hold up the first request.
    from pytest_moeperf.figures import compute  # noqa: PLC0415 - not for other commands

    return Played(
        url=options.url,
        model=model.name,
        workload=options.workload,
        repeat=repeat,
        values=compute(repeat.requests, slo=options.slo),
        findings=validity.find(repeat),
    )


def _choose(served: tuple[ServedModel, ...], wanted: str | None, url: str) -> ServedModel:
    names = ", ".join(model.name for model in served) or "no model"
    matching = [model for model in served if wanted in {None, model.name}]
    if len(matching) == 1:
        return matching[0]
    if wanted is None:
        raise UsageError(f"{url} serves {names}: choose one with --model")
    raise UsageError(f"--model {wanted}: {url} serves {names}")


def _plan(options: LoadOptions, data: Data, model: ServedModel) -> Plan:
    return plan(
        options.workload,
        seed=options.seed,
        vocab_size=options.vocab_size,
        first_id=load_options.FIRST_TOKEN_ID,
        context_tokens=model.max_model_len,
        conversations=data.conversations,
        trace=data.trace,
    )


def _export(played: Played, form: str, path: Path, *, seed: int) -> None:
    from pytest_moeperf.exchange import EXPORTS  # noqa: PLC0415 - not for other commands

    exported = EXPORTS[form](
        played.repeat,
        played.values,
        model=played.model,
        url=played.url,
        workload=played.workload,
        seed=seed,
    )
    write_text_atomic(path, json.dumps(exported) + "\n")


def _show_progress(done: int, total: int, tokens: int) -> None:
    end = "\n" if done == total else ""
    sys.stderr.write(f"\r{done} of {total} requests, {tokens} tokens{end}")
    sys.stderr.flush()
