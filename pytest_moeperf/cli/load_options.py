"""The options of `moeperf load`, and what they mean together."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from pytest_moeperf.cli.values import above_zero, count, whole
from pytest_moeperf.errors import UsageError
from pytest_moeperf.files import ensure_file_writable
from pytest_moeperf.loadgen import parse_workers
from pytest_moeperf.metrics import SLO
from pytest_moeperf.workload import (
    Arrivals,
    Burst,
    ClosedLoop,
    OpenLoop,
    Prompts,
    RandomTokens,
    SharedPrefix,
    ShareGPT,
    Think,
    TraceReplay,
    Workload,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "FIRST_TOKEN_ID",
    "LoadOptions",
    "configure",
    "read",
    "refuse_beside_selftest",
]

FIRST_TOKEN_ID: Final = 10
"""Below it most tokenizers keep their special tokens."""
DEFAULTS: Final[Mapping[str, object]] = {
    "arrivals": "poisson",
    "burstiness": 1.0,
    "client_workers": "auto",
    "closed": 1,
    "isl": 128,
    "osl": 64,
    "requests": 32,
    "seed": 0,
    "speed": 1.0,
    "stall_timeout": 60.0,
    "think_kind": "constant",
    "vocab_size": 1000,
}
"""What is taken where nothing is said; of a trace, all requests."""
SLO_NAMES = ("ttft_ms", "tpot_ms", "e2el_ms")

_ONLY_WITH: Final[Mapping[str, tuple[str, str]]] = {
    "arrivals": ("rate", "shapes an open loop: add --rate R"),
    "burstiness": ("rate", "shapes an open loop: add --rate R"),
    "ramp_to": ("rate", "changes the rate of an open loop: add --rate R"),
    "think_kind": ("think", "says how rests vary: add --think S"),
    "speed": ("trace", "speeds up a trace: add --trace FILE"),
}
"""Options that mean nothing without another one."""

_NOT_WITH: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "trace": (
        ("isl", "osl", "sharegpt", "shared_prefix"),
        "brings lengths of its own and takes random prompts",
    ),
    "sharegpt": (("shared_prefix", "vocab_size"), "brings prompts of its own"),
    "think": (("burst", "rate", "trace"), "rests between the requests of a closed loop"),
}
"""Options that contradict others, and why."""

_BESIDE_SELFTEST = frozenset({"command", "json", "run", "selftest"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What was asked for, checked as far as it can be without the server."""

    url: str
    model: str | None
    """None: the only one that is served."""
    workload: Workload
    seed: int
    vocab_size: int
    slo: SLO | None
    workers: int | None
    """None: as many as the load needs."""
    continuous_usage: bool
    include_connect: bool
    stall_timeout_s: float
    exports: Mapping[str, Path]
    """Files by the name of their form."""


def configure(parser: argparse.ArgumentParser) -> None:
    """A server, the load that it gets, and where the result goes."""
    add = parser.add_argument
    add("--url", help="base URL of the server, e.g. http://127.0.0.1:8000")
    add("--model", help="name that the server serves (default: the only one it serves)")
    add("--selftest", action="store_true", help="measure this host's own limit instead, 10 to 20 s")
    _configure_arrivals(parser)
    _configure_prompts(parser)
    add("--slo", action="append", default=[], metavar="NAME=MS", help="goodput objective")
    add("--client-workers", metavar="N", help="processes that send (default auto)")
    add("--continuous-usage", action="store_true", help="ask for a token count in every chunk")
    add("--include-connect", action="store_true", help="count connection set-up into TTFT")
    add("--stall-timeout", type=above_zero, metavar="S", help="give up after S silent seconds (60)")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    add(
        "--export",
        action="append",
        default=[],
        metavar="FORMAT=FILE",
        help="also write the result as vllm or sglang would",
    )


def _configure_arrivals(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--closed", type=count, metavar="N", help="keep N requests in flight")
    kinds.add_argument("--burst", action="store_true", help="send all requests at once")
    kinds.add_argument("--rate", type=above_zero, metavar="R", help="send R requests per second")
    kinds.add_argument("--trace", metavar="FILE", help="replay a trace of times and lengths")
    add = parser.add_argument
    add(
        "--think",
        type=above_zero,
        metavar="S",
        help="closed loop: rest S seconds between requests",
    )
    add(
        "--think-kind",
        choices=get_args(Think),
        metavar="KIND",
        help="constant (default) or exponential rests",
    )
    add(
        "--arrivals",
        choices=get_args(Arrivals),
        metavar="KIND",
        help="poisson (default), constant or gamma",
    )
    add("--burstiness", type=above_zero, metavar="X", help="shape of gamma arrivals")
    add("--ramp-to", type=above_zero, metavar="R", help="change the rate linearly up or down to R")
    add("--speed", type=above_zero, metavar="X", help="replay the trace X times as fast")


def _configure_prompts(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--isl", type=count, metavar="N", help="prompt tokens (default 128)")
    add("--osl", type=count, metavar="N", help="output tokens (default 64)")
    add(
        "--requests",
        type=count,
        metavar="N",
        help="how many requests (default 32; of a trace: all)",
    )
    add("--seed", type=whole, metavar="N", help="seed of prompts, arrivals and rests")
    add("--sharegpt", metavar="FILE", help="take prompts from a ShareGPT JSON file")
    add("--shared-prefix", metavar="GxN", help="G groups of prompts that begin with N same tokens")
    add("--vocab-size", type=count, metavar="N", help="draw token ids below N (default 1000)")


def read(args: argparse.Namespace) -> LoadOptions:
    """Check the options and put them together; UsageError says in one line what is wrong."""
    if args.url is None:
        raise UsageError("--url is missing: give the server's, e.g. --url http://127.0.0.1:8000")
    _check_url(args.url)
    _check_company(args)
    args = _with_defaults(args)
    if args.vocab_size <= FIRST_TOKEN_ID:
        raise UsageError(
            f"--vocab-size {args.vocab_size}: prompts take ids from {FIRST_TOKEN_ID} up, "
            "so give more"
        )
    return LoadOptions(
        url=args.url.rstrip("/").removesuffix("/v1"),
        model=args.model,
        workload=_workload(args),
        seed=args.seed,
        vocab_size=args.vocab_size,
        slo=_slo(args.slo),
        workers=parse_workers(args.client_workers),
        continuous_usage=args.continuous_usage,
        include_connect=args.include_connect,
        stall_timeout_s=args.stall_timeout,
        exports=_exports(args.export),
    )


def _check_url(typed: str) -> None:
    """Before its end is cut off, so that an error quotes what was typed."""
    from pytest_moeperf.client import check_url  # noqa: PLC0415 - not for other commands

    try:
        check_url(typed)
    except UsageError as error:
        raise UsageError(f"--url {error}") from None


def refuse_beside_selftest(args: argparse.Namespace) -> None:
    """Raise UsageError where a load is asked for as well."""
    for name in vars(args):
        if name not in _BESIDE_SELFTEST and _given(args, name):
            raise UsageError(
                "--selftest plays a load of its own against a server of its own: drop "
                f"{_option(name)}"
            )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _given(args: argparse.Namespace, name: str) -> bool:
    value = getattr(args, name)
    # A seed of 0 counts as given.
    return not (value is None or value is False or value == [])


def _check_company(args: argparse.Namespace) -> None:
    for name, (needed, reason) in _ONLY_WITH.items():
        if _given(args, name) and not _given(args, needed):
            raise UsageError(f"{_option(name)} {reason}")
    for name, (others, reason) in _NOT_WITH.items():
        for other in others:
            if _given(args, name) and _given(args, other):
                raise UsageError(f"{_option(name)} {reason}: drop {_option(other)}")
    if _given(args, "burstiness") and args.arrivals != "gamma":
        raise UsageError(
            f"--burstiness {args.burstiness:g} shapes gamma arrivals: add --arrivals gamma"
        )


def _with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    defaults = dict(DEFAULTS)
    if args.trace is not None:
        del defaults["requests"]
    given = {name: value for name, value in vars(args).items() if value is not None}
    return argparse.Namespace(**{**vars(args), **defaults, **given})


def _workload(args: argparse.Namespace) -> Workload:
    """The workload of options with their defaults."""
    if args.trace is not None:
        return TraceReplay(path=args.trace, speed=args.speed, requests=args.requests)
    common: dict[str, Any] = {
        "isl": args.isl,
        "osl": args.osl,
        "requests": args.requests,
        "prompts": _prompts(args),
    }
    if args.rate is not None:
        return OpenLoop(
            request_rate=args.rate,
            end_rate=args.ramp_to,
            arrivals=args.arrivals,
            burstiness=args.burstiness,
            arrivals_seed=args.seed,
            **common,
        )
    if args.burst:
        return Burst(**common)
    return ClosedLoop(
        concurrency=args.closed,
        think_s=args.think or 0.0,
        think=args.think_kind,
        think_seed=0 if args.think_kind == "constant" else args.seed,
        **common,
    )


def _prompts(args: argparse.Namespace) -> Prompts:
    if args.sharegpt is not None:
        return ShareGPT(args.sharegpt)
    if args.shared_prefix is None:
        return RandomTokens()
    found = re.fullmatch(r"0*([1-9]\d{0,8})x0*([1-9]\d{0,8})", args.shared_prefix, re.ASCII)
    if found is None:
        raise UsageError(
            f"--shared-prefix {args.shared_prefix}: give groups and tokens, both above 0, "
            "e.g. 4x512"
        )
    return SharedPrefix(groups=int(found[1]), prefix=int(found[2]))


def _slo(texts: list[str]) -> SLO | None:
    objectives: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name in objectives:
            raise UsageError(f"--slo {text}: {name} is given twice")
        try:
            objectives[name] = float(value)
        except ValueError:
            name = ""
        if name not in SLO_NAMES:
            raise UsageError(
                f"--slo {text}: give NAME=MS with one of {', '.join(SLO_NAMES)}, "
                "e.g. --slo ttft_ms=500"
            )
        if not 0 < objectives[name] < math.inf:
            raise UsageError(f"--slo {text}: give a number of milliseconds above 0")
    return SLO(**objectives) if objectives else None


def _exports(texts: list[str]) -> dict[str, Path]:
    if not texts:
        return {}
    from pytest_moeperf.exchange import EXPORTS  # noqa: PLC0415 - not for other commands

    exports: dict[str, Path] = {}
    for text in texts:
        form, _, file = text.partition("=")
        if form not in EXPORTS or not file:
            raise UsageError(
                f"--export {text}: give FORMAT=FILE with one of {', '.join(EXPORTS)}, "
                "e.g. --export vllm=result.json"
            )
        if form in exports or Path(file) in exports.values():
            raise UsageError(f"--export {text}: each format and each file can be given once")
        if Path(file).is_dir():
            raise UsageError(f"--export {text}: {file} is a folder; give a file")
        # A file that cannot be written is told before the load, not after it.
        ensure_file_writable(Path(file))
        exports[form] = Path(file)
    return exports
