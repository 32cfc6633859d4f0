"""Reads what workloads are made of from files: ShareGPT conversations and recorded traces."""

from __future__ import annotations

import csv
import datetime as dt
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from pytest_moeperf.document import printable
from pytest_moeperf.errors import StorageError, UsageError
from pytest_moeperf.units import NS_PER_S
from pytest_moeperf.workload import ShareGPT, TraceEntry, TraceReplay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_moeperf.workload import Conversation, Conversations, Trace, Workload

__all__ = ["Data", "load_data", "load_sharegpt", "load_trace"]

_FEWEST_TOKENS: Final = 4
"""Conversations with a shorter prompt or answer are left out, as in vLLM's benchmark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What a workload takes from files, as `plan` wants it; empty for most workloads."""

    conversations: Conversations = ()
    trace: Trace = ()

    @property
    def drawn_from(self) -> Conversations | Trace:
        """Whichever of them there is."""
        return self.conversations or self.trace


def load_data(workload: Workload, *, tokenizer: Path | None = None) -> Data:
    """Read the file that `workload` names, if any; `tokenizer` as for `load_sharegpt`."""
    if isinstance(workload, TraceReplay):
        return Data(trace=load_trace(workload.path))
    if isinstance(workload.prompts, ShareGPT):
        conversations = load_sharegpt(
            workload.prompts.path, tokenizer=tokenizer, max_prompt_tokens=workload.isl
        )
        return Data(conversations=conversations)
    return Data()


def load_sharegpt(
    path: str | Path, *, tokenizer: Path | None = None, max_prompt_tokens: int | None = None
) -> Conversations:
    """Read the first prompt and answer of each conversation of a ShareGPT JSON file.

    With the model's `tokenizer.json`, answers are counted, and conversations left out whose
    prompt is above `max_prompt_tokens` or with fewer than four tokens in prompt or answer.
    """
    document = _read_document(Path(path))
    if not isinstance(document, list):
        raise UsageError(f"{path}: not a ShareGPT file, which is a list of conversations")
    turns = [first_two for item in document if (first_two := _first_turns(item))]
    conversations: list[Conversation] = [(prompt, None) for prompt, _ in turns]
    if tokenizer is not None:
        prompts = _count_tokens(tokenizer, [prompt for prompt, _ in turns])
        answers = _count_tokens(tokenizer, [answer for _, answer in turns])
        longest = max_prompt_tokens or max(prompts, default=0)
        conversations = [
            (text, answer)
            for (text, _), prompt, answer in zip(turns, prompts, answers, strict=True)
            if _FEWEST_TOKENS <= prompt <= longest and answer >= _FEWEST_TOKENS
        ]
    if not conversations:
        raise UsageError(f"{path}: no conversation with a prompt, an answer and a fitting length")
    return tuple(conversations)


def load_trace(path: str | Path) -> Trace:
    """Read a trace from CSV with a header or from JSON lines, in the order of the file.

    The first row tells which of the spellings of `_DIALECTS` it is in. UsageError names the file
    and the line that is wrong, StorageError a file that cannot be read.
    """
    shown = printable(str(path))
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            trace = tuple(_entries(file, shown))
    except OSError as error:
        raise StorageError(f"{shown}: cannot be read, {error.strerror}") from error
    except UnicodeDecodeError:
        raise UsageError(f"{shown}: not a trace, which is a text in UTF-8") from None
    except csv.Error as error:
        raise UsageError(f"{shown}: not CSV, {error}") from None
    if not trace:
        raise UsageError(f"{shown}: holds no request")
    return trace


class _BadRowError(ValueError):
    """What is wrong with one line of a trace."""


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How one kind of trace names its columns."""

    time: str
    input_tokens: str
    output_tokens: str
    to_ns: Callable[[object, str], int]

    @property
    def names(self) -> tuple[str, str, str]:
        return self.time, self.input_tokens, self.output_tokens

    def entry(self, row: Mapping[str, object]) -> TraceEntry:
        for name in self.names:
            if row.get(name) is None or row[name] == "":
                raise _BadRowError(f"no {name}")
        return TraceEntry(
            self.to_ns(row[self.time], self.time),
            _tokens(row[self.input_tokens], self.input_tokens),
            _tokens(row[self.output_tokens], self.output_tokens),
        )


def _from_s(value: object, name: str) -> int:
    return round(_number(value, name) * NS_PER_S)


def _from_ms(value: object, name: str) -> int:
    return round(_number(value, name) * 1e6)


def _from_date(value: object, name: str) -> int:
    """A date with a time, in UTC where it names no zone; what is below a microsecond is dropped."""
    try:
        date = dt.datetime.fromisoformat(str(value))
    except ValueError:
        raise _BadRowError(
            f"{name} = {value!r}: give a date such as 2023-11-16 18:15:46.68"
        ) from None
    if date.tzinfo is None:
        date = date.replace(tzinfo=dt.UTC)
    since = date - dt.datetime.fromtimestamp(0, dt.UTC)
    return since // dt.timedelta(microseconds=1) * 1000


def _tokens(value: object, name: str) -> int:
    number = _number(value, name)
    if number < 1 or number != int(number):
        raise _BadRowError(f"{name} = {value!r}: give a whole number from 1 up")
    return int(number)


def _number(value: object, name: str) -> float:
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not 0 <= number < math.inf:
        raise _BadRowError(f"{name} = {value!r}: give a number from 0 up")
    return number


_DIALECTS: Final = (
    _Dialect("time_s", "input_tokens", "output_tokens", _from_s),
    _Dialect("time_ms", "input_tokens", "output_tokens", _from_ms),
    # Mooncake's traces: https://github.com/kvcache-ai/Mooncake
    _Dialect("timestamp", "input_length", "output_length", _from_ms),
    # Azure's: https://github.com/Azure/AzurePublicDataset
    _Dialect("TIMESTAMP", "ContextTokens", "GeneratedTokens", _from_date),
)


def _entries(file: TextIO, shown: str) -> Iterator[TraceEntry]:
    dialect: _Dialect | None = None
    rows = _json_rows(file, shown) if _starts_with_brace(file) else _csv_rows(file)
    for line, row in rows:
        try:
            dialect = dialect or _dialect(row)
            yield dialect.entry(row)
        except _BadRowError as error:
            raise UsageError(f"{shown}:{line}: {error}") from None


def _starts_with_brace(file: TextIO) -> bool:
    first = next((line for line in iter(file.readline, "") if line.strip()), "")
    file.seek(0)
    return first.lstrip().startswith("{")


def _dialect(row: Mapping[str, object]) -> _Dialect:
    found = next((each for each in _DIALECTS if row.keys() >= set(each.names)), None)
    if found is not None:
        return found
    known = "; ".join(",".join(each.names) for each in _DIALECTS)
    named = ",".join(filter(None, row))
    raise _BadRowError(f"{named!r} are not the names of a trace; valid are {known}")


def _csv_rows(file: TextIO) -> Iterator[tuple[int, Mapping[str, object]]]:
    reader = csv.DictReader(file, skipinitialspace=True)
    for row in reader:
        yield reader.line_num, row


def _json_rows(file: TextIO, shown: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        row = _json_object(text)
        if row is None:
            raise UsageError(f"{shown}:{line}: not a JSON object")
        yield line, row


def _json_object(text: str) -> dict[str, object] | None:
    try:
        row = json.loads(text)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _read_document(file: Path) -> object:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise StorageError(f"{file}: cannot be read, {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file}: not JSON, {error}") from None


def _first_turns(item: object) -> tuple[str, str] | None:
    """First two turns of a conversation, None if it has not got two with text."""
    turns = item.get("conversations") if isinstance(item, dict) else None
    if not isinstance(turns, list):
        return None
    texts = [turn.get("value") for turn in turns[:2] if isinstance(turn, dict)]
    prompt, answer = texts if len(texts) == 2 else (None, None)  # noqa: PLR2004  two turns
    return (prompt, answer) if isinstance(prompt, str) and isinstance(answer, str) else None


def _count_tokens(tokenizer: Path, texts: list[str]) -> list[int]:
    from tokenizers import Tokenizer  # noqa: PLC0415 - heavy, for data sets alone

    encodings = Tokenizer.from_file(str(tokenizer)).encode_batch(texts)
    return [len(encoding.ids) for encoding in encodings]
