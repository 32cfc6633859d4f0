"""`moeperf baseline`: look at stored baselines, guard them, and change them on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_moeperf.cli import (
    baseline_change,
    baseline_refresh,
    baseline_review,
    baseline_show,
)

if TYPE_CHECKING:
    import argparse

__all__ = ["HELP", "configure", "run"]

HELP = "Show, check, compare, refresh and prune stored baselines"

_PARTS = (baseline_show, baseline_review, baseline_refresh, baseline_change)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add every action; each sets the function that does it."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for part in _PARTS:
        part.configure(actions)


def run(args: argparse.Namespace) -> int:
    """Do the action: 0 fine, 1 when something is bad or was not written."""
    code: int = args.act(args)
    return code
