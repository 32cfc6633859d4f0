"""`moeperf results`: results of `moeperf load`, vLLM's and SGLang's benchmark in one table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.document import printable
from pytest_moeperf.errors import UsageError
from pytest_moeperf.metrics import KEYS, METRICS, describe, quantity
from pytest_moeperf.report.load import row

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from pytest_moeperf.exchange import ImportedResult

__all__ = ["HELP", "configure", "run"]

HELP = "Compare results of `moeperf load`, `vllm bench serve` and SGLang's bench_serving"

LABEL_WIDTH = 26
_NUMBERED = re.compile(r"(?P<path>.+):(?P<number>\d+)")


def configure(parser: argparse.ArgumentParser) -> None:
    """Files, each with the number of its result where it holds several."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE[:N]",
        help="a result as JSON or JSONL; of several results in one file the N-th, else the last",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Read, print; 0 unless a file cannot be read."""
    results = [_read(file) for file in args.files]
    if args.json:
        print(json.dumps({"results": [_document(each, results[0]) for each in results]}, indent=1))
    else:
        print("\n".join(_table(results)).rstrip())
    return 0


def _read(file: str) -> ImportedResult:
    # Loaded by those who read results, not by every `moeperf` command.
    from pytest_moeperf.exchange import documents, read_result  # noqa: PLC0415 - not for other commands

    path, number = Path(file), None
    numbered = _NUMBERED.fullmatch(file)
    if numbered is not None and not path.exists():
        path, number = Path(numbered["path"]), int(numbered["number"])
    name = printable(file)
    found = documents(_text(path, name=name), name=name)
    if number is None:
        number = len(found)
    if not 1 <= number <= len(found):
        raise UsageError(f"{name}: {path} holds {len(found)} results: give a number from 1 on")
    if len(found) > 1:
        name = f"{printable(str(path))}:{number}"
    return read_result(found[number - 1], name=name)


def _text(path: Path, *, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: is not text, and a result is a JSON object") from error


def _ratio(value: float | None, first: float | None) -> float | None:
    return None if value is None or not first else value / first


def _document(result: ImportedResult, first: ImportedResult) -> dict[str, object]:
    return {
        "name": result.name,
        "tool": result.tool,
        "model": result.model,
        "values": dict(result.values),
        "ratios": {key: _ratio(result.values[key], first.values[key]) for key in KEYS},
        "notes": list(result.notes),
    }


def _table(results: Sequence[ImportedResult]) -> Iterator[str]:
    """A legend, a row for each figure that any result has, and what to know of each result."""
    for number, result in enumerate(results, start=1):
        model = f", {printable(result.model)}" if result.model else ""
        yield f"{number}  {result.name} ({result.tool}{model})"
    yield ""
    ratios = [f"{number} ÷ 1" for number in range(2, len(results) + 1)]
    numbers = [*map(str, range(1, len(results) + 1)), *ratios]
    yield row("", "", numbers, label_width=LABEL_WIDTH)
    for key in KEYS:
        values = [result.values[key] for result in results]
        if any(value is not None for value in values):
            metric, statistic = describe(key)
            compared = [_ratio(value, values[0]) for value in values[1:]]
            yield row(
                f"{METRICS[metric.key].label} {statistic or ''}",
                metric.unit,
                [*map(quantity, values), *map(_times, compared)],
                label_width=LABEL_WIDTH,
            )
    yield ""
    yield from _notes(results)


def _notes(results: Sequence[ImportedResult]) -> Iterator[str]:
    """Each note once, after the numbers of the results that it concerns."""
    concerned: dict[str, list[str]] = {}
    for number, result in enumerate(results, start=1):
        for note in result.notes:
            concerned.setdefault(printable(note), []).append(str(number))
    for note, numbers in concerned.items():
        yield f"{', '.join(numbers)}: {note}"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.3f}"
