"""Baselines as text and back: format 2, which `git diff` shows a start and a gate a line.

The history of the format is in the description of `schemas/baseline-2.json`.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import date
from typing import TYPE_CHECKING, Any

from pytest_moeperf.baseline import (
    Anchor,
    Baseline,
    EngineProvenance,
    Gate,
    KnownRegression,
    expiry,
    level,
)
from pytest_moeperf.document import Line, parse, render, rounded, validate
from pytest_moeperf.errors import BaselineError, NewerFormatError
from pytest_moeperf.record_form import (
    fingerprint_document,
    public_environment,
    read_fingerprint,
    read_routing,
    read_start,
    read_start_line,
    routing_document,
    start_line,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_moeperf.records import StartRecord

__all__ = ["SCHEMA_VERSION", "decode", "encode"]

SCHEMA_VERSION = 2

_ROUNDING = 1e-4
"""Relative: what a stored figure may differ from the calculated one."""


def encode(baseline: Baseline) -> str:
    """The text of a baseline file; equal baselines give equal bytes."""
    document: dict[str, Any] = {
        "cell": baseline.cell,
        "created": baseline.created,
        "engine": _engine_document(baseline.engine),
        "expires": baseline.expires,
        "fingerprint": fingerprint_document(baseline.fingerprint),
        "gates": {
            metric: Line(
                direction=gate.direction,
                expected=rounded(level(baseline.starts, metric)),
                tolerance=gate.tolerance,
                unit=gate.unit,
            )
            for metric, gate in baseline.gates.items()
        },
        "known": [Line(asdict(known)) for known in sorted(baseline.known, key=_by_metric)],
        "reason": baseline.reason,
        "schema": SCHEMA_VERSION,
        "starts": [start_line(start) for start in baseline.starts],
        "tool": baseline.tool,
    }
    if baseline.routing is not None:
        document["routing"] = routing_document(baseline.routing)
    if baseline.anchor is not None:
        document["anchor"] = {
            "engine": _engine_document(baseline.anchor.engine),
            "reason": baseline.anchor.reason,
            "starts": [start_line(start) for start in baseline.anchor.starts],
        }
    return render(document)


def _by_metric(known: KnownRegression) -> str:
    return known.metric


def _engine_document(engine: EngineProvenance) -> dict[str, Any]:
    return {**asdict(engine), "env": public_environment(engine.env)}


def decode(text: str, *, source: str, schemas: Mapping[int, Mapping[str, Any]]) -> Baseline:
    """Inverse of `encode` for text that nobody vouches for; BaselineError begins with `source`.

    `schemas` are the formats that can be read, by version; an older one is upgraded.
    """
    document = parse(text, source=source)
    version = _version(document, newest=max(schemas), source=source)
    validate(document, schemas[version], source=source)
    if version == 1:
        for index, start in enumerate(document["starts"]):
            _check_columns(start["repeats"], source=f"{source}: $.starts[{index}].repeats")
        _check_date(document["starts"][-1]["recorded_at"], source=f"{source}: $.starts")
        return _from_version_1(document)
    _check_starts(document["starts"], source=f"{source}: $.starts")
    if "anchor" in document:
        _check_starts(document["anchor"]["starts"], source=f"{source}: $.anchor.starts")
    if "routing" in document:
        _check_routing(document["routing"], source=f"{source}: $.routing")
    _check_date(document["expires"], source=f"{source}: $.expires")
    for index, known in enumerate(document["known"]):
        _check_date(known["expires"], source=f"{source}: $.known[{index}].expires")
    baseline = _read(document)
    _check_expected(baseline, document["gates"], source=source)
    return baseline


def _version(document: Any, *, newest: int, source: str) -> int:
    """Of a document of an unknown format; whatever has none is held against the newest."""
    version = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(version, int):
        return newest
    if version > newest:
        raise NewerFormatError(source, version=version, newest=newest)
    return version if version >= 1 else newest


def _read(document: Mapping[str, Any]) -> Baseline:
    engine = _read_engine(document["engine"])
    anchor, routing = document.get("anchor"), document.get("routing")
    return Baseline(
        cell=document["cell"],
        fingerprint=read_fingerprint(document["fingerprint"]),
        engine=engine,
        starts=_read_starts(document["starts"], engine),
        gates={
            metric: Gate(
                direction=gate["direction"], tolerance=gate["tolerance"], unit=gate["unit"]
            )
            for metric, gate in document["gates"].items()
        },
        known=tuple(KnownRegression(**known) for known in document["known"]),
        routing=None if routing is None else read_routing(routing),
        anchor=None if anchor is None else _read_anchor(anchor),
        created=document["created"],
        expires=document["expires"],
        reason=document["reason"],
        tool=document["tool"],
    )


def _read_anchor(document: Mapping[str, Any]) -> Anchor:
    engine = _read_engine(document["engine"])
    return Anchor(
        engine=engine,
        reason=document["reason"],
        starts=_read_starts(document["starts"], engine),
    )


def _read_starts(
    documents: list[Mapping[str, Any]], engine: EngineProvenance
) -> tuple[StartRecord, ...]:
    return tuple(read_start_line(each, engine_version=engine.version) for each in documents)


def _read_engine(document: Mapping[str, Any]) -> EngineProvenance:
    return EngineProvenance(**{**document, "flags": tuple(document["flags"])})


def _from_version_1(document: Mapping[str, Any]) -> Baseline:
    """Upgrade: the engine is what the starts tell of it, and the last start sets the expiry."""
    fingerprint = read_fingerprint(document["fingerprint"])
    # Through the line's form, which leaves out what no repeat measured.
    starts = tuple(
        read_start_line(start_line(start), engine_version=start.engine_version)
        for start in map(read_start, document["starts"])
    )
    return Baseline(
        cell=document["cell"],
        fingerprint=fingerprint,
        engine=EngineProvenance(distribution=fingerprint.engine, version=starts[-1].engine_version),
        starts=starts,
        gates={metric: Gate(**gate) for metric, gate in document["gates"].items()},
        created=document["created"],
        expires=expiry(starts[-1].recorded_at),
        reason=document["reason"],
        tool=document["tool"],
    )


# What JSON Schema cannot say.


def _check_starts(starts: list[Mapping[str, Any]], *, source: str) -> None:
    for index, start in enumerate(starts):
        _check_columns(start, source=f"{source}[{index}]")
        if "warmup" in start:
            _check_columns(start["warmup"], source=f"{source}[{index}].warmup")
        if "gpus" in start:
            _check_gpus(start["gpus"], len(start["seeds"]), source=f"{source}[{index}].gpus")
        _check_date(start["recorded_at"], source=f"{source}[{index}].recorded_at")
    identities = [start["start_id"] for start in starts]
    if len(set(identities)) < len(identities):
        repeated = next(each for each in identities if identities.count(each) > 1)
        raise BaselineError(f"{source}: the start {repeated} is there twice")


def _check_columns(repeats: Mapping[str, Any], *, source: str) -> None:
    expected = len(repeats["seeds"])
    for metric, column in repeats["values"].items():
        if len(column) != expected:
            raise BaselineError(
                f"{source}.values.{metric}: {len(column)} values for {expected} seeds"
            )


def _check_gpus(gpus: Mapping[str, Any], repeats: int, *, source: str) -> None:
    expected = len(gpus["repeat"])
    for name, column in gpus.items():
        if name != "uuids" and len(column) != expected:
            raise BaselineError(f"{source}.{name}: {len(column)} values for {expected} readings")
    for name, count in (("repeat", repeats), ("gpu", len(gpus["uuids"]))):
        if (highest := max(gpus[name])) >= count:
            raise BaselineError(f"{source}.{name}: there is no number {highest} among {count}")


def _check_routing(routing: Mapping[str, Any], *, source: str) -> None:
    """Each token takes `top_k` different experts of every layer."""
    for phase in ("prefill", "decode"):
        rows, tokens = routing[phase], routing[f"{phase}_tokens"]
        if rows is None:
            continue
        if len(rows) != len(routing["layers"]):
            layers = len(routing["layers"])
            raise BaselineError(f"{source}.{phase}: {len(rows)} rows for {layers} layers")
        for index, row in enumerate(rows):
            if len(row) != routing["experts"]:
                raise BaselineError(
                    f"{source}.{phase}[{index}]: {len(row)} counts for {routing['experts']} experts"
                )
            if sum(row) != tokens * routing["top_k"] or max(row) > tokens:
                raise BaselineError(
                    f"{source}.{phase}[{index}]: no counts of {tokens} tokens that take "
                    f"{routing['top_k']} experts each"
                )


def _check_date(text: str, *, source: str) -> None:
    try:
        date.fromisoformat(text[:10])
    except ValueError as error:
        raise BaselineError(f"{source}: {text} is no date: {error}") from error


def _check_expected(
    baseline: Baseline, gates: Mapping[str, Mapping[str, Any]], *, source: str
) -> None:
    """The figure that a reviewer reads must be the one that the judge uses."""
    for metric, gate in gates.items():
        stated, actual = gate["expected"], rounded(level(baseline.starts, metric))
        if stated is None or actual is None:
            agree = stated is actual
        else:
            agree = math.isclose(stated, actual, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
        if not agree:
            raise BaselineError(
                f"{source}: $.gates.{metric}.expected: is {stated}, but the starts give {actual}; "
                "it follows from them and is not to be edited"
            )
