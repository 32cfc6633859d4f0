"""Writes what a session found: for programs while it runs, and for readers at its end."""

from __future__ import annotations

import contextlib
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.errors import StorageError
from pytest_moeperf.files import append_text, write_text_atomic
from pytest_moeperf.report import terminal
from pytest_moeperf.report.html import to_html
from pytest_moeperf.report.json import to_json
from pytest_moeperf.report.summary import markdown

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from pytest_moeperf.report.model import SessionReport

__all__ = ["SoFar", "summarize", "write_all"]

RUN, PAGE = "run.json", "report.html"

SHARE = 0.02
"""Of a session's time that may go into writing what it has so far."""


class SoFar:
    """Keeps what was measured so far, should the session be killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._again_s = -math.inf

    def write(self, report: SessionReport) -> None:
        """Write `run.json`, unless that took too much of the time lately.

        A page of an earlier session goes, as it would stand beside figures that are not its own.
        What cannot be written is told at the end.
        """
        began_s = time.monotonic()
        if began_s < self._again_s:
            return
        with contextlib.suppress(StorageError, OSError):
            text = to_json(replace(report, finished=False, spent=None))
            write_text_atomic(self._folder / RUN, text)
            (self._folder / PAGE).unlink(missing_ok=True)
        self._again_s = began_s + (time.monotonic() - began_s) / SHARE


def write_all(report: SessionReport, folder: Path) -> Iterator[tuple[str, Path]]:
    """Write `run.json`, the page and, in a workflow of GitHub, the summary; tell what is where.

    Raises:
        StorageError: Something cannot be written; what was written before stays.
    """
    write_text_atomic(folder / RUN, to_json(report))
    yield "run", folder / RUN
    write_text_atomic(folder / PAGE, to_html(report))
    yield "report", folder / PAGE
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        append_text(Path(summary), markdown(report))


def summarize(reporter: pytest.TerminalReporter, report: SessionReport, *, verbosity: int) -> None:
    """Write the tables, in colour only where pytest itself does; with -q only the counts."""
    reporter.ensure_newline()
    if report.cells and verbosity < 0:
        counts = (f"{count} {name}" for name, count in report.outcomes.items())
        reporter.write_line(", ".join(counts))
    if report.cells and verbosity >= 0:
        reporter.section("moeperf", bold=True)
        text = terminal.render(
            report,
            width=reporter.config.get_terminal_writer().fullwidth,
            color=reporter.hasmarkup,
            maps=verbosity > 0,
        )
        reporter.write(text)
    for remark in report.remarks:
        reporter.write_line(remark)
