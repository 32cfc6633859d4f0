"""Lets a test that is in doubt wait until the other tests of its server were judged.

The further start that it takes then serves all that wait. Such a test runs twice: first without a
report, then after the last test of its server, with what was measured before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol  # what plugins that run a test again have

from pytest_moeperf.contribution import CELLS
from pytest_moeperf.markers import may_gate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_moeperf.records import CellResult

__all__ = ["GROUP", "Postponed"]

GROUP = pytest.StashKey[object]()
"""What tests have in common of which one server serves all."""


class Postponed:
    """The tests that wait, with the cells of their first run. Each waits once at most."""

    def __init__(self) -> None:
        self._left: dict[pytest.Item, tuple[CellResult, ...]] = {}
        self._running: pytest.Item | None = None
        """In its first run."""
        self._claimed = False

    @property
    def left(self) -> Mapping[pytest.Item, tuple[CellResult, ...]]:
        """Those that were not run again yet."""
        return self._left

    def claim(self, item: pytest.Item) -> bool:
        """Have `item` run again; False where it must be judged to the end now."""
        if item is not self._running:
            return False
        self._claimed = True
        return True

    def waits(self, item: pytest.Item) -> bool:
        """Whether this run of `item` is to have no result."""
        return self._claimed and item is self._running

    def run(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run a test that may have to wait, as pytest does but for its reports; None: not one."""
        if self._left.pop(item, None) is not None or not may_gate(item):
            return None
        told, hook = len(item.user_properties), item.ihook
        self._running, self._claimed = item, False
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        try:
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
        finally:
            self._running = None
        if self._claimed:
            del item.user_properties[told:]
            self._put_back(item)
        else:
            for report in reports:
                hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _put_back(self, item: pytest.Item) -> None:
        """Put it behind the last test of its server, which pytest has not come to yet.

        Where it is the last one itself it comes next, and what pytest has kept set up for the test
        that was next suits it as well: its own modules and packages, or some of them.
        """
        items = item.session.items
        group = item.stash[GROUP]
        last = max(n for n, each in enumerate(items) if each.stash.get(GROUP, None) == group)
        items.insert(last + 1, item)
        self._left[item] = item.stash[CELLS]
        del item.stash[CELLS]
