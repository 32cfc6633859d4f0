"""`moeperf fit`: whether a model fits GPUs, what fills them, and what would."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_moeperf.cli.values import count, share
from pytest_moeperf.errors import ModelError, UsageError
from pytest_moeperf.gpu import hardware_classes
from pytest_moeperf.memory import (
    PRECISIONS,
    Parallelism,
    Request,
    fit,
    least_gpus,
    remedies,
    stored_precision,
    unservable,
)
from pytest_moeperf.models import describe

if TYPE_CHECKING:
    import argparse

    from pytest_moeperf.hardware import HardwareClass
    from pytest_moeperf.memory import Architecture, Precision
    from pytest_moeperf.report.fit import Answer

__all__ = ["HELP", "configure", "run"]

HELP = "Calculate whether a model fits GPUs, what fills them, and what would fit"

EXIT_DOES_NOT_FIT = 1
_MOST_GPUS = 9999
_GPUS = re.compile(r"(?:(?P<count>\d+)x)?(?P<name>[a-z0-9-]+)")


def configure(parser: argparse.ArgumentParser) -> None:
    """A model, the GPUs, how it is spread over them, and what it has to serve there."""
    parser.add_argument(
        "model", metavar="MODEL", help="a catalogue name, a model directory, or a config.json"
    )
    parser.add_argument("--gpu", required=True, metavar="NxCLASS", help="such as 2xh200")
    parser.add_argument(
        "--tp", type=count, metavar="N", help="tensor parallelism; all that PP and DP leave"
    )
    parser.add_argument(
        "--pp", type=count, default=1, metavar="N", help="pipeline stages (default 1)"
    )
    parser.add_argument(
        "--dp", type=count, default=1, metavar="N", help="ranks of data parallelism (default 1)"
    )
    parser.add_argument("--ep", action="store_true", help="deal experts out whole")
    parser.add_argument(
        "--dtype",
        choices=("bf16", "fp8", "int4", "mxfp4"),
        help="of the weights (default: as the config says)",
    )
    parser.add_argument(
        "--kv-dtype", choices=("bf16", "fp8"), default="bf16", help="of the cache (default bf16)"
    )
    parser.add_argument(
        "--context", type=count, metavar="N", help="tokens of a request (default: the model's)"
    )
    parser.add_argument(
        "--concurrency", type=count, default=1, metavar="N", help="requests at once (default 1)"
    )
    parser.add_argument(
        "--utilization",
        type=share,
        default=0.92,
        metavar="X",
        help="share of a GPU's memory that the engine may use (default 0.92, as vLLM 0.24)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, in bytes")


def run(args: argparse.Namespace) -> int:
    """Calculate, print; 1 where it does not fit."""
    from pytest_moeperf.report.fit import document, lines  # noqa: PLC0415 - not for other commands
    from pytest_moeperf.report.terminal import render_lines  # noqa: PLC0415 - not for other commands

    answer = _answer(args)
    if args.json:
        print(json.dumps(document(answer), indent=1))
    else:
        width = shutil.get_terminal_size().columns
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print(render_lines(lines(answer, width=width), width=width, color=color), end="")
    return 0 if answer.fit.fits else EXIT_DOES_NOT_FIT


def _answer(args: argparse.Namespace) -> Answer:
    from pytest_moeperf.report.fit import Answer  # noqa: PLC0415 - not for other commands

    classes = {each.name: each for each in hardware_classes() if each.memory_gib is not None}
    gpus, gpu = _gpus(args.gpu, classes)
    try:
        arch, longest = describe(args.model)
    except ModelError as error:
        # A file that was typed; 1 would say that the model does not fit.
        raise UsageError(str(error)) from error
    context = args.context or longest
    if context > longest:
        raise UsageError(
            f"--context {context}: {args.model} has {longest} tokens; give at most that"
        )
    request = Request(
        arch=arch,
        gpu_gib=gpu.memory_gib or 0.0,
        parallel=_parallel(args, arch, gpus),
        precision=_precision(args, arch),
        kv_dtype=args.kv_dtype,
        context_tokens=context,
        concurrency=args.concurrency,
        utilization=args.utilization,
    )
    found = fit(request)
    return Answer(
        model=args.model,
        gpu=gpu.name,
        request=request,
        fit=found,
        remedies=() if found.fits else tuple(remedies(request)),
        least={
            each.name: least_gpus(request, gpu_gib=each.memory_gib or 0.0)
            for each in classes.values()
        },
    )


def _gpus(asked: str, classes: dict[str, HardwareClass]) -> tuple[int, HardwareClass]:
    match = _GPUS.fullmatch(asked)
    gpu = classes.get(match["name"]) if match else None
    if match is None or gpu is None:
        known = ", ".join(classes)
        raise UsageError(f"--gpu {asked}: give a number and a class, as 2xh200; classes: {known}")
    # Compared by its length first: Python refuses to read thousands of digits.
    count = (match["count"] or "1").lstrip("0")
    if not count or len(count) > len(str(_MOST_GPUS)):
        raise UsageError(f"--gpu {asked}: give 1 to {_MOST_GPUS} GPUs, as 2xh200")
    return int(count), gpu


def _parallel(args: argparse.Namespace, arch: Architecture, gpus: int) -> Parallelism:
    parallel = Parallelism(
        tensor=args.tp or max(1, gpus // (args.pp * args.dp)),
        pipeline=args.pp,
        data=args.dp,
        experts_whole=args.ep,
    )
    if parallel.gpus != gpus:
        raise UsageError(
            f"{parallel.label} takes {parallel.gpus} GPUs and --gpu {args.gpu} gives {gpus}: "
            "TP × PP × DP must equal it"
        )
    if reason := unservable(arch, parallel):
        valid = [
            str(tensor)
            for tensor in range(1, arch.heads + 1)
            if not unservable(arch, replace(parallel, tensor=tensor))
        ]
        advice = f"; TP can be {', '.join(valid)}" if valid else ""
        raise UsageError(f"{args.model} with {parallel.label}: {reason}{advice}")
    return parallel


def _precision(args: argparse.Namespace, arch: Architecture) -> Precision:
    precision = PRECISIONS[args.dtype] if args.dtype else stored_precision(arch)
    if precision is None:
        raise UsageError(
            f"{args.model}: quant_method {arch.quantization!r} of its config is not known; "
            "say with --dtype what it amounts to"
        )
    return precision
