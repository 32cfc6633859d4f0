"""`moeperf engine`: managed engine environments, one per version."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_moeperf import installs
from pytest_moeperf.enginespec import parse_engine
from pytest_moeperf.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from pytest_moeperf.installs import Bundle, Environment

__all__ = ["HELP", "configure", "run"]

HELP = "Install, bundle, list and remove engine environments"

_ACTIONS = {
    "install": "build an environment, or find it built",
    "bundle": "collect an engine's packages for a machine without a network",
    "list": "show what is installed, and what can be",
    "remove": "delete an environment",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare `install SPEC`, `install --from DIR`, `bundle SPEC`, `list` and `remove SPEC`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    parsers = {
        name: actions.add_parser(name, help=text, description=text.capitalize())
        for name, text in _ACTIONS.items()
    }
    for name in ("install", "bundle", "remove"):
        parsers[name].add_argument(
            "spec",
            metavar="SPEC",
            nargs="?" if name == "install" else None,
            help="such as vllm==0.24.0",
        )
    _add_install_options(parsers["install"])
    _add_bundle_options(parsers["bundle"])
    for each in parsers.values():
        each.add_argument("--json", action="store_true", help="print JSON on stdout")


def _add_install_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="DIR", help="a bundle, instead of SPEC"
    )
    parser.add_argument(
        "--python",
        type=Path,
        metavar="PATH",
        help="with --from: the interpreter that has the rest (default: the one that runs moeperf)",
    )


def _add_bundle_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to make")
    parser.add_argument(
        "--python", metavar="3.12", help="Python of that machine (default: the one of the lock)"
    )
    parser.add_argument(
        "--host-has",
        type=Path,
        metavar="FILE",
        help="what that machine has: NAME or NAME==VERSION a line; not packed where it will do",
    )
    parser.add_argument(
        "--pack",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="pack it although that machine has it",
    )
    parser.add_argument(
        "--leave-out",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATTERN",
        help="do not pack packages of such names, although that machine may lack them",
    )


def run(args: argparse.Namespace) -> int:
    """Do one action; errors are raised."""
    actions = {"install": _install, "bundle": _bundle, "list": _list, "remove": _remove}
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


@contextmanager
def _progress(label: str) -> Iterator[_Progress]:
    progress = _Progress(label)
    try:
        yield progress
    finally:
        progress.close()


def _install(args: argparse.Namespace) -> int:
    if (args.spec is None) is (args.source is None):
        raise UsageError("engine install: give either SPEC, such as vllm==0.24.0, or --from DIR")
    if args.python and not args.source:
        raise UsageError("engine install: --python goes with --from; a lock says its Python itself")
    environment = _from_bundle(args) if args.source else _from_lock(args)
    if args.json:
        _print_json(_as_json(environment))
    else:
        print(f"{environment.install.label} is installed: {environment.install.python}")
    return 0


def _from_lock(args: argparse.Namespace) -> Environment:
    distribution, version = _managed(args.spec, "installed")
    with _progress(args.spec) as progress:
        return installs.install(distribution, version, on_progress=progress)


def _from_bundle(args: argparse.Namespace) -> Environment:
    python = args.python or Path(sys.executable)
    with _progress(str(args.source)) as progress:
        return installs.install_bundle(args.source, python=python, on_progress=progress)


def _bundle(args: argparse.Namespace) -> int:
    distribution, version = _managed(args.spec, "bundled")
    with _progress(args.spec) as progress:
        bundle = installs.bundle(
            distribution,
            version,
            out=args.out,
            python=args.python,
            host_has=args.host_has,
            pack=args.pack,
            leave_out=args.leave_out,
            on_progress=progress,
        )
    if args.json:
        _print_json({"path": str(args.out), "size_bytes": bundle.size_bytes, **asdict(bundle)})
    else:
        _print_bundle(bundle, args.out)
    return 0


def _print_bundle(bundle: Bundle, out: Path) -> None:
    count = len(bundle.wheels)
    print(
        f"{bundle.label} for Python {bundle.python}, {bundle.platform} with glibc {bundle.glibc}: "
        f"{count} wheel{'s' if count != 1 else ''}, {bundle.size_bytes / 1e6:.0f} MB in {out}"
    )
    if bundle.on_host:
        print(f"not packed, expected there: {len(bundle.on_host)}")
    if bundle.left_out:
        print(f"left out: {', '.join(each.name for each in bundle.left_out)}")


def _managed(spec: str, done: str) -> tuple[str, str | None]:
    """The distribution and version of a SPEC that names a version."""
    request = parse_engine(spec)
    if request.form in {"interpreter", "attached"}:
        raise UsageError(f"engine {spec!r}: only a version can be {done}; see engine list")
    return request.distribution, request.version


def _list(args: argparse.Namespace) -> int:
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
        "host": None if environment.host is None else str(environment.host),
    }


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
