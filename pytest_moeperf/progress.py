"""Tells what a run is waiting for while servers start and load runs."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    import pytest

__all__ = ["Progress"]

REDRAW_S = 0.2


class Progress:
    """One line that changes in place on a terminal, one line a phase elsewhere, none with -q.

    Called with the phase and, as it goes on, with details that replace each other. A phase that
    comes back, as those of cells that take turns do, has one line.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._phase = ""
        self._phase_began_s = 0.0
        self._drawn_s = 0.0
        self._drawn = False
        self._told: set[str] = set()
        """Phases of this test that have a line where there is no terminal."""
        self._nodeid: str | None = None

    @contextmanager
    def during(self, nodeid: str | None) -> Iterator[None]:
        """Clean up at the end, so that pytest's line of the test `nodeid` is whole again."""
        if nodeid != self._nodeid:
            self._nodeid = nodeid
            self._told.clear()
        try:
            yield
        finally:
            self._clear(nodeid)

    def __call__(self, phase: str, detail: str = "") -> None:
        """Show `phase`, for how long it has lasted, and `detail`."""
        reporter = self._reporter
        if reporter is None:
            return
        now_s = time.monotonic()
        new_phase = phase != self._phase
        if new_phase:
            self._phase, self._phase_began_s = phase, now_s
        if not reporter.isatty:
            if phase not in self._told:
                self._told.add(phase)
                self._write(("" if self._drawn else "\n") + f"  … {phase}\n")
        elif new_phase or now_s - self._drawn_s >= REDRAW_S:
            self._drawn_s = now_s
            self._redraw(detail, now_s - self._phase_began_s)

    @property
    def _reporter(self) -> pytest.TerminalReporter | None:
        # An xdist worker has none, nor has pytest without its terminal plugin, which brings -q.
        reporter: pytest.TerminalReporter | None
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        return None if reporter is None or self._config.option.verbose < 0 else reporter

    def _redraw(self, detail: str, elapsed_s: float) -> None:
        shown = (f"  … {self._phase}", detail, f"{elapsed_s:.0f} s")
        text = " · ".join(part for part in shown if part)
        width = self._config.get_terminal_writer().fullwidth - 1
        self._write(("\r\x1b[K" if self._drawn else "\n") + text[:width])

    def _write(self, text: str) -> None:
        """Past pytest's terminal writer, which must not take our text for a part of its line.

        No test fails because nobody can be told how far it is.
        """
        with self._uncaptured(), suppress(OSError, ValueError):
            encoding = sys.stdout.encoding or "utf-8"
            sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
            sys.stdout.flush()
        self._drawn = True

    def _uncaptured(self) -> AbstractContextManager[None]:
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        return nullcontext() if capture is None else capture.global_and_fixture_disabled()

    def _clear(self, nodeid: str | None) -> None:
        reporter = self._reporter
        self._phase = ""
        if not self._drawn or reporter is None:
            return
        if reporter.isatty:
            column = self._config.get_terminal_writer().width_of_current_line
            self._write("\r\x1b[K\x1b[A" + (f"\x1b[{column}C" if column else ""))
        elif nodeid is not None:
            # pytest believes that its line with the file's name still stands: begin it again.
            reporter.currentfspath = None
            if self._config.option.verbose == 0:
                with self._uncaptured():
                    reporter.write_fspath_result(nodeid, "")
        self._drawn = False
