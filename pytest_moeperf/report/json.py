"""`run.json`: everything that was measured, for programs.

The form is `schemas/run-1.json`; starts and fingerprints look as they do in a baseline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_moeperf.document import render, rounded
from pytest_moeperf.record_form import (
    fingerprint_document,
    routing_document,
    samples_document,
    start_document,
)

if TYPE_CHECKING:
    from pytest_moeperf.records import CellResult, EngineInstall, Verdict
    from pytest_moeperf.report.model import SessionReport

__all__ = ["SCHEMA_VERSION", "to_json", "verdict_document"]

SCHEMA_VERSION = 1
"""Version of the file format.

1: first one. Session, machine, engines, and every cell with raw samples and verdicts.
"""


def to_json(report: SessionReport) -> str:
    """The session as JSON that the schema `run-1` allows, without secrets."""
    return render(
        {
            "cells": [_cell(cell) for cell in report.cells],
            "duration_s": rounded(report.duration_s),
            "engines": [_engine(engine) for engine in report.engines],
            "hardware": report.hardware,
            "machine": dict(report.machine),
            "notes": list(report.notes),
            "outcomes": {outcome.value: count for outcome, count in report.outcomes.items()},
            "schema": SCHEMA_VERSION,
            "started_at": report.started_at,
            "time": _time(report),
            "tool": report.tool_version,
        }
    )


def _time(report: SessionReport) -> dict[str, Any]:
    """Seconds by phase, and how many servers were started for how many specs."""
    return {
        **{f"{name.replace('-', '')}_s": rounded(value) for name, value in report.phases.items()},
        "processes": report.processes,
        "specs": report.spent.specs,
        "starts": report.spent.starts,
    }


def _engine(engine: EngineInstall) -> dict[str, str | None]:
    return {
        "distribution": engine.distribution,
        "engine": engine.engine,
        "python": None if engine.python is None else str(engine.python),
        "url": None if engine.url is None else _without_credentials(engine.url),
        "version": engine.version,
    }


def _without_credentials(url: str) -> str:
    """Only scheme, host, port and path: a user's name, password or key stays out."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _cell(cell: CellResult) -> dict[str, Any]:
    return {
        "against": cell.against,
        "bought": [start_document(start) for start in cell.bought],
        "cell": cell.cell,
        "discarded": samples_document(cell.discarded),
        "engine": cell.engine,
        "fingerprint": (
            None if cell.fingerprint is None else fingerprint_document(cell.fingerprint)
        ),
        "invalid": cell.invalid,
        "new": [start_document(start) for start in cell.new],
        "old": [start_document(start) for start in cell.old],
        "routing": None if cell.routing is None else routing_document(cell.routing),
        "server": cell.server,
        "start": None if cell.start is None else start_document(cell.start),
        "test": cell.test,
        "verdicts": [verdict_document(verdict) for verdict in cell.verdicts],
        "warmup_plays": cell.warmup_plays,
        "warmup_reason": cell.warmup_reason,
        "workload": cell.workload,
    }


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """All fields, as the schema has them."""
    return {
        "change": rounded(verdict.change),
        "direction": verdict.direction,
        "effect": rounded(verdict.effect),
        "expected": rounded(verdict.expected),
        "interval": None if verdict.interval is None else [rounded(x) for x in verdict.interval],
        "lower": rounded(verdict.lower),
        "measured": rounded(verdict.measured),
        "metric": verdict.metric,
        "notes": list(verdict.notes),
        "outcome": verdict.outcome.value,
        "p": rounded(verdict.p),
        "p_limit": rounded(verdict.p_limit),
        "paired": verdict.paired,
        "reason": verdict.reason,
        "spread": rounded(verdict.spread),
        "starts": verdict.starts,
        "tolerance": rounded(verdict.tolerance),
        "unit": verdict.unit,
        "upper": rounded(verdict.upper),
        "visible": rounded(verdict.visible),
    }
