"""`moeperf report`: the page of a stored run, written again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.document import printable
from pytest_moeperf.errors import BaselineError, NewerFormatError, UsageError
from pytest_moeperf.files import write_text_atomic
from pytest_moeperf.store import schema

if TYPE_CHECKING:
    import argparse

    from pytest_moeperf.report.model import SessionReport

__all__ = ["HELP", "configure", "run"]

HELP = "Write the run.json of a session as an HTML page"


def configure(parser: argparse.ArgumentParser) -> None:
    """A stored run, and where its page goes."""
    parser.add_argument("run_json", metavar="RUN.json", help="what a session wrote")
    parser.add_argument(
        "--html",
        metavar="FILE",
        type=Path,
        help="where the page goes (default: report.html beside RUN.json)",
    )


def run(args: argparse.Namespace) -> int:
    """Read, write, and name what was written."""
    from pytest_moeperf.report.html import to_html  # noqa: PLC0415 - not for other commands

    source = Path(args.run_json)
    page = args.html or source.with_name("report.html")
    write_text_atomic(page, to_html(_read(source)))
    if page.is_file():  # a pipe got the page, and may be this very output
        print(f"report: {page}")
    return 0


def _read(path: Path) -> SessionReport:
    from pytest_moeperf.report.json import from_json  # noqa: PLC0415 - not for other commands

    name = printable(str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: is not text; give the run.json of a session") from error
    try:
        return from_json(text, source=name, schema=schema("run-2"))
    except NewerFormatError as error:
        raise UsageError(str(error)) from error
    except BaselineError as error:
        raise UsageError(f"{error}; give the run.json of a session") from error
