"""`run.json`: everything that was measured, for programs, and back again.

The form is `schemas/run-2.json`; starts and fingerprints look as they do in a baseline.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_moeperf.document import parse, render, rounded, validate
from pytest_moeperf.errors import BaselineError
from pytest_moeperf.record_form import (
    fingerprint_document,
    read_fingerprint,
    read_routing,
    read_samples,
    read_start,
    routing_document,
    samples_document,
    start_document,
)
from pytest_moeperf.records import CellResult, EngineInstall, NextStep, Outcome, Verdict
from pytest_moeperf.report.model import SessionReport
from pytest_moeperf.timeline import TimeSpent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["SCHEMA_VERSION", "from_json", "public_url", "to_json", "verdict_document"]

SCHEMA_VERSION = 2
"""Version of the file format.

1: Session, machine, engines, and every cell with raw samples and verdicts. Never released, and not
   read any more.
2: Commands apart from what they are for, tests without a verdict apart from the other notes, and
   whether a release was judged; all fields are there but `time`.
"""


def to_json(report: SessionReport) -> str:
    """The session as JSON that the schema `run-2` allows, without secrets."""
    return render(
        {
            "cells": [_cell(cell) for cell in report.cells],
            "duration_s": rounded(report.duration_s),
            "engines": [_engine(engine) for engine in report.engines],
            "finished": report.finished,
            "hardware": report.hardware,
            "machine": dict(report.machine),
            "notes": list(report.notes),
            "options": None if report.options is None else list(report.options),
            "outcomes": {outcome.value: count for outcome, count in report.outcomes.items()},
            "release": report.release,
            "schema": SCHEMA_VERSION,
            "started_at": report.started_at,
            **({} if report.spent is None else {"time": _time(report, report.spent)}),
            "tool": report.tool_version,
            "unmeasured": list(report.unmeasured),
        }
    )


def _time(report: SessionReport, spent: TimeSpent) -> dict[str, Any]:
    """Seconds by phase, and how many servers were started for how many specs."""
    return {
        **{f"{name.replace('-', '')}_s": rounded(value) for name, value in report.phases.items()},
        "processes": report.processes,
        "specs": spent.specs,
        "starts": spent.starts,
    }


def _engine(engine: EngineInstall) -> dict[str, str | None]:
    return {
        "distribution": engine.distribution,
        "engine": engine.engine,
        "python": None if engine.python is None else str(engine.python),
        "url": None if engine.url is None else public_url(engine.url),
        "version": engine.version,
    }


def public_url(url: str) -> str:
    """Only scheme, host, port and path: a user's name, password or key stays out."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _cell(cell: CellResult) -> dict[str, Any]:
    return {
        "against": cell.against,
        "further": [start_document(start) for start in cell.further],
        "cell": cell.cell,
        "discarded": samples_document(cell.discarded),
        "engine": cell.engine,
        "fingerprint": (
            None if cell.fingerprint is None else fingerprint_document(cell.fingerprint)
        ),
        "invalid": cell.invalid,
        "new": [start_document(start) for start in cell.new],
        "next_steps": [asdict(step) for step in cell.next_steps],
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
        "certain": None if verdict.certain is None else [rounded(x) for x in verdict.certain],
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
        "stored": [[rounded(value) for value in start] for start in verdict.stored],
        "tolerance": rounded(verdict.tolerance),
        "unit": verdict.unit,
        "upper": rounded(verdict.upper),
        "values": [rounded(value) for value in verdict.values],
        "visible": rounded(verdict.visible),
    }


def from_json(text: str, *, source: str, schema: Mapping[str, Any]) -> SessionReport:
    """Read a `run.json`, whoever wrote it; BaselineError begins with `source`."""
    document = parse(text, source=source)
    validate(document, schema, source=source)
    try:
        return _read_report(document)
    except (IndexError, TypeError, ValueError) as error:
        # No schema can say that columns are equally long.
        raise BaselineError(f"{source}: lists that belong together differ: {error}") from error


def _read_report(document: Mapping[str, Any]) -> SessionReport:
    spent, options = document.get("time"), document["options"]
    return SessionReport(
        tool_version=document["tool"],
        started_at=document["started_at"],
        duration_s=document["duration_s"],
        hardware=document["hardware"],
        engines=tuple(map(_read_engine, document["engines"])),
        machine=document["machine"],
        cells=tuple(map(_read_cell, document["cells"])),
        unmeasured=tuple(document["unmeasured"]),
        notes=tuple(document["notes"]),
        options=None if options is None else tuple(options),
        release=document["release"],
        spent=None if spent is None else _read_time(spent),
        processes=1 if spent is None else spent["processes"],
        finished=document["finished"],
    )


def _read_time(document: Mapping[str, Any]) -> TimeSpent:
    told = {name: document[name] for name in document if name not in {"other_s", "processes"}}
    return TimeSpent(**told)


def _read_engine(document: Mapping[str, Any]) -> EngineInstall:
    python = document["python"]
    return EngineInstall(**{**document, "python": None if python is None else Path(python)})


def _read_cell(document: Mapping[str, Any]) -> CellResult:
    fingerprint, start, routing = (document[name] for name in ("fingerprint", "start", "routing"))
    return CellResult(
        cell=document["cell"],
        test=document["test"],
        server=document["server"],
        engine=document["engine"],
        workload=document["workload"],
        fingerprint=None if fingerprint is None else read_fingerprint(fingerprint),
        start=None if start is None else read_start(start),
        further=tuple(map(read_start, document["further"])),
        against=document["against"],
        old=tuple(map(read_start, document["old"])),
        new=tuple(map(read_start, document["new"])),
        discarded=read_samples(document["discarded"]),
        warmup_plays=document["warmup_plays"],
        warmup_reason=document["warmup_reason"],
        invalid=document["invalid"],
        verdicts=tuple(map(_read_verdict, document["verdicts"])),
        routing=None if routing is None else read_routing(routing),
        next_steps=tuple(NextStep(**step) for step in document["next_steps"]),
    )


def _read_verdict(document: Mapping[str, Any]) -> Verdict:
    return Verdict(
        **{
            **document,
            "outcome": Outcome(document["outcome"]),
            "certain": _pair(document["certain"]),
            "interval": _pair(document["interval"]),
            "notes": tuple(document["notes"]),
            "values": _known(document["values"]),
            "stored": tuple(map(_known, document["stored"])),
        }
    )


def _pair(ends: Sequence[float | None] | None) -> tuple[float, float] | None:
    low, high = ends or (None, None)
    return None if low is None or high is None else (low, high)


def _known(values: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(value for value in values if value is not None)
