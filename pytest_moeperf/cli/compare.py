"""`moeperf compare`: judge one run with another one in the place of the baselines."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.document import printable
from pytest_moeperf.errors import BaselineError, NewerFormatError, UsageError
from pytest_moeperf.outcomes import GOOD
from pytest_moeperf.records import Outcome
from pytest_moeperf.store import schema

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from pytest_moeperf.comparison import Comparison, StoredRun
    from pytest_moeperf.records import CellResult

__all__ = ["HELP", "configure", "run"]

HELP = "Judge a run by the server starts of another one"

EXIT_REGRESSED = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Two stored runs, of which the second one is judged."""
    parser.add_argument("first", metavar="A.json", help="the run.json to compare with")
    parser.add_argument("second", metavar="B.json", help="the run.json that is judged")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Compare, print; 1 where a metric regressed."""
    from pytest_moeperf.comparison import compare  # noqa: PLC0415 - not for other commands

    first, second = _read(args.first), _read(args.second)
    comparison = compare(first, second)
    if args.json:
        print(json.dumps(_document(first, second, comparison), indent=1))
    else:
        print("\n".join(_lines(first, second, comparison)))
    outcomes = {verdict.outcome for cell in comparison.cells for verdict in cell.verdicts}
    return EXIT_REGRESSED if Outcome.REGRESSED in outcomes else 0


def _read(file: str) -> StoredRun:
    from pytest_moeperf.comparison import read_run  # noqa: PLC0415 - not for other commands

    name = printable(file)
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: is not text; give the run.json of a session") from error
    try:
        return read_run(text, source=name, schema=schema("run-2"))
    except NewerFormatError as error:
        raise UsageError(str(error)) from error
    except BaselineError as error:
        raise UsageError(f"{error}; give the run.json of a session") from error


def _document(first: StoredRun, second: StoredRun, comparison: Comparison) -> dict[str, object]:
    from pytest_moeperf.report.json import verdict_document  # noqa: PLC0415 - not for other commands

    return {
        "first": _head(first),
        "second": _head(second),
        "cells": [
            {
                "cell": cell.cell,
                "verdicts": [verdict_document(verdict) for verdict in cell.verdicts],
            }
            for cell in comparison.cells
        ],
        "only_in_first": list(comparison.only_in_first),
        "only_in_second": list(comparison.only_in_second),
    }


def _head(stored: StoredRun) -> dict[str, object]:
    return {
        "file": stored.source,
        "hardware": stored.hardware,
        "engines": list(stored.engines),
        "started_at": stored.started_at,
    }


def _lines(first: StoredRun, second: StoredRun, comparison: Comparison) -> Iterator[str]:
    """Which runs, the table of a session, then why of all that is not good."""
    from pytest_moeperf.report import terminal  # noqa: PLC0415 - not for other commands
    from pytest_moeperf.report.model import SessionReport  # noqa: PLC0415 - not for other commands

    for letter, stored in (("A", first), ("B", second)):
        engines = printable(", ".join(stored.engines))
        yield f"{letter}  {stored.source}: {engines}, {printable(stored.started_at)}"
    yield ""
    report = SessionReport(
        tool_version=second.tool,
        started_at=second.started_at,
        duration_s=0.0,
        hardware=second.hardware,
        engines=(),
        cells=comparison.cells,
    )
    width = shutil.get_terminal_size().columns
    yield terminal.render(report, width=width, color=sys.stdout.isatty()).rstrip("\n")
    for cell in comparison.cells:
        yield from _reasons(cell)
    for letter, names in (("A", comparison.only_in_first), ("B", comparison.only_in_second)):
        yield from (f"only in {letter}: {printable(name)}" for name in names)


def _reasons(cell: CellResult) -> Iterator[str]:
    for verdict in cell.verdicts:
        if verdict.outcome not in GOOD:
            yield f"{verdict.outcome} {printable(cell.cell)}: {printable(verdict.reason)}"
            yield from (f"  differs: {printable(note)}" for note in verdict.notes)
