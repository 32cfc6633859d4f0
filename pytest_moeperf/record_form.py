"""Records as documents and back: starts and samples as run reports and baselines hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from pytest_moeperf.document import Line, printable, rounded
from pytest_moeperf.records import (
    Finding,
    Fingerprint,
    GpuReading,
    RoutingRecord,
    Sample,
    StartRecord,
)
from pytest_moeperf.redaction import is_secret_name

__all__ = [
    "finding_document",
    "fingerprint_document",
    "public_environment",
    "read_fingerprint",
    "read_routing",
    "read_samples",
    "read_start",
    "read_start_line",
    "routing_document",
    "samples_document",
    "start_document",
    "start_line",
    "stored_form",
]

_REDACTED = "(redacted)"
_LONGEST_TEXT = 500
"""As the schemas allow."""


def fingerprint_document(fingerprint: Fingerprint) -> dict[str, Any]:
    """All fields; `read_fingerprint` is its inverse."""
    return asdict(fingerprint)


def read_fingerprint(document: Mapping[str, Any]) -> Fingerprint:
    """Inverse of `fingerprint_document`, for a document that the schema allows."""
    cores = document["cpu_cores"]
    return Fingerprint(
        **{
            **document,
            "gpus": tuple(document["gpus"]),
            "cpu_cores": None if cores is None else int(cores),
        }
    )


def finding_document(finding: Finding) -> dict[str, str]:
    """All fields."""
    return asdict(finding)


def routing_document(routing: RoutingRecord) -> dict[str, Any]:
    """All fields; `read_routing` is its inverse."""
    return asdict(routing)


def read_routing(document: Mapping[str, Any]) -> RoutingRecord:
    """Inverse of `routing_document`, for a document that the schema allows."""
    decode = document["decode"]
    return RoutingRecord(
        **{
            **document,
            "layers": tuple(document["layers"]),
            "prefill": tuple(tuple(row) for row in document["prefill"]),
            "decode": None if decode is None else tuple(tuple(row) for row in decode),
        }
    )


def samples_document(samples: Sequence[Sample]) -> dict[str, Any]:
    """Repeats by column: a metric's values in all repeats are one list, null where not measured.

    `findings`, one list a repeat, and `gpus` are there only if any repeat has some.
    """
    metrics = sorted({metric for sample in samples for metric in sample.values})
    document: dict[str, Any] = {
        "seeds": [sample.seed for sample in samples],
        "values": {
            metric: [rounded(sample.values.get(metric)) for sample in samples] for metric in metrics
        },
    }
    if not all(sample.valid for sample in samples):
        document["findings"] = [
            [finding_document(finding) for finding in sample.findings] for sample in samples
        ]
    if any(sample.gpus for sample in samples):
        document["gpus"] = _gpus_document(samples)
    return document


def read_samples(document: Mapping[str, Any]) -> tuple[Sample, ...]:
    """Inverse of `samples_document`, for a document that the schema allows."""
    findings = document.get("findings") or [[] for _ in document["seeds"]]
    gpus = _read_gpus(document["gpus"], len(document["seeds"])) if "gpus" in document else None
    return tuple(
        Sample(
            seed=int(seed),
            values={metric: column[index] for metric, column in document["values"].items()},
            findings=tuple(Finding(**finding) for finding in findings[index]),
            gpus=() if gpus is None else gpus[index],
        )
        for index, seed in enumerate(document["seeds"])
    )


def _gpus_document(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """Readings by column, a row for each GPU in each repeat.

    `uuids` are the GPUs; `gpu` and `repeat` say which of them a row is of, and in which repeat.
    A column is left out where it holds nothing but what a reading has by default.
    """
    rows = [(index, reading) for index, sample in enumerate(samples) for reading in sample.gpus]
    uuids = sorted({reading.uuid for _, reading in rows})
    columns = {
        item.name: [_cell(getattr(reading, item.name)) for _, reading in rows]
        for item in fields(GpuReading)
        if item.name != "uuid"
    }
    return {
        "uuids": [_public(uuid) for uuid in uuids],
        "repeat": [index for index, _ in rows],
        "gpu": [uuids.index(reading.uuid) for _, reading in rows],
        **{
            name: column
            for name, column in columns.items()
            if name == "samples" or any(value != _usual(name) for value in column)
        },
    }


def _cell(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_public(name): rounded(share) for name, share in sorted(value.items())}
    if isinstance(value, tuple):
        return [_public(text) for text in value]
    return rounded(value) if isinstance(value, float) else value


def _usual(name: str) -> Any:
    """What a column has where there is nothing to tell."""
    return _cell(getattr(GpuReading(uuid="", samples=0), name))


def _read_gpus(document: Mapping[str, Any], repeats: int) -> list[tuple[GpuReading, ...]]:
    columns = {name: document[name] for name in document if name not in {"uuids", "repeat", "gpu"}}
    found: list[tuple[GpuReading, ...]] = [()] * repeats
    for row, (repeat, gpu) in enumerate(zip(document["repeat"], document["gpu"], strict=True)):
        values = {name: column[row] for name, column in columns.items()}
        foreign = tuple(values.pop("foreign", ()))
        reading = GpuReading(uuid=document["uuids"][gpu], foreign=foreign, **values)
        found[repeat] = (*found[repeat], reading)
    return found


def _public(text: str) -> str:
    """One line, not too long."""
    return printable(text)[:_LONGEST_TEXT]


def public_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables as files may hold them: no secrets, one line each, not too long."""
    return {
        name: _REDACTED if is_secret_name(name) else _public(value)
        for name, value in environment.items()
    }


def start_document(start: StartRecord) -> dict[str, Any]:
    """All fields: figures rounded, the environment's secrets replaced, its values on one line.

    `warmup` is there only if the start has some.
    """
    document = {
        "engine_version": start.engine_version,
        "environment": public_environment(start.environment),
        "recorded_at": start.recorded_at,
        "repeats": samples_document(start.repeats),
        "session_id": start.session_id,
        "start_id": start.start_id,
        "startup_s": rounded(start.startup_s),
    }
    if start.warmup:
        document["warmup"] = samples_document(start.warmup)
    return document


def read_start(document: Mapping[str, Any]) -> StartRecord:
    """Inverse of `start_document`, for a document that the schema allows."""
    return StartRecord(
        **{
            **document,
            "repeats": read_samples(document["repeats"]),
            "warmup": _read_warmup(document),
        }
    )


def _read_warmup(document: Mapping[str, Any]) -> tuple[Sample, ...]:
    return read_samples(document["warmup"]) if "warmup" in document else ()


def start_line(start: StartRecord) -> Line:
    """A start as one line of a baseline, what a reviewer looks for first.

    The engine's version stands once in the file, and what no repeat measured is left out.
    """
    document = start_document(start)
    repeats = document["repeats"]
    optional = {
        "gpus": repeats.get("gpus"),
        "warmup": _measured(document["warmup"]) if start.warmup else None,
    }
    return Line(
        recorded_at=start.recorded_at,
        session_id=start.session_id,
        start_id=start.start_id,
        startup_s=document["startup_s"],
        **_measured(repeats),
        **{name: value for name, value in optional.items() if value is not None},
        environment=dict(sorted(document["environment"].items())),
    )


def _measured(samples: Mapping[str, Any]) -> dict[str, Any]:
    """Seeds and values, without the metrics that no repeat measured."""
    values = samples["values"]
    return {
        "seeds": samples["seeds"],
        "values": {
            metric: values[metric]
            for metric in sorted(values)
            if any(value is not None for value in values[metric])
        },
    }


def read_start_line(document: Mapping[str, Any], *, engine_version: str | None) -> StartRecord:
    """Inverse of `start_line`, for a document that the schema allows."""
    return StartRecord(
        start_id=document["start_id"],
        session_id=document["session_id"],
        recorded_at=document["recorded_at"],
        startup_s=document["startup_s"],
        engine_version=engine_version,
        environment=document["environment"],
        repeats=read_samples(document),
        warmup=_read_warmup(document),
    )


def stored_form(start: StartRecord) -> StartRecord:
    """The start as it reads back: rounded, every repeat with every metric, without secrets."""
    return read_start_line(start_line(start), engine_version=start.engine_version)
