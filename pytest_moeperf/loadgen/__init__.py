"""The load generator: worker processes, and the crew of them that the driver sees.

A worker is a process of its own with one event loop on one core, so that neither the heap of a test
session nor its other threads delay a time stamp. It imports little, for it starts anew for every
play.
"""

from __future__ import annotations

from pytest_moeperf.errors import UsageError

__all__ = ["parse_workers"]

AUTO = "auto"


def parse_workers(typed: str) -> int | None:
    """How many workers `--client-workers` asks for; None for as many as the load may need."""
    if typed == AUTO:
        return None
    if not (typed.isascii() and typed.isdigit() and int(typed) > 0):
        raise UsageError(f"--client-workers {typed}: give a number from 1 up, or {AUTO}")
    return int(typed)
