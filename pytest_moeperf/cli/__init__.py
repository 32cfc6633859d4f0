"""The `moeperf` command: one module a subcommand, loaded when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_moeperf.cli.streams import UnreadError, checked_output, forgiving_messages
from pytest_moeperf.errors import MoeperfError, UnwritableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = (
    "doctor",
    "engine",
    "load",
    "results",
    "report",
    "compare",
    "baseline",
    "calibrate",
    "fit",
)
"""Subcommands in the order of the help; each is `pytest_moeperf.cli.<name>` with `HELP`,
`configure(parser)` and `run(args) -> int`."""

EXIT_FAILED = 1
EXIT_MISUSE = 2
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141
"""What a shell says of a program that SIGPIPE ended: nobody reads its output any more."""


class _Parser(argparse.ArgumentParser):
    """Answers misuse with one line instead of the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(
            EXIT_MISUSE,
            f"{self.prog}: error: {message} (`{self.prog} --help` lists what is valid)\n",
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # That of the subcommand, whose help lists what it takes; argparse asks the outermost one.
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="moeperf",
        description="Performance-regression tests for serving mixture-of-experts models.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = importlib.import_module(f"pytest_moeperf.cli.{name}")
        subparser = subparsers.add_parser(name, help=command.HELP, description=command.HELP)
        command.configure(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand, and tell how it went as docs/ci.md says.

    0 fine, 1 a check or a command failed, 2 misuse or an output that is closed or cannot be
    written, 130 interrupted, 141 unread.
    """
    with forgiving_messages():
        try:
            with checked_output():
                args = _parser().parse_args(argv)
                code: int = args.run(args)
        except UnreadError:
            # The reader, such as `head`, has enough.
            return EXIT_UNREAD
        except (UsageError, UnwritableError) as error:
            sys.stderr.write(f"moeperf: error: {error}\n")
            return EXIT_MISUSE
        except MoeperfError as error:
            sys.stderr.write(f"moeperf: error: {error}\n")
            return EXIT_FAILED
        except KeyboardInterrupt:
            sys.stderr.write("moeperf: interrupted\n")
            return EXIT_INTERRUPTED
        return code
