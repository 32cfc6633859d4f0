"""Results of `vllm bench serve` and SGLang's `bench_serving`: written and read in their own form.

What goes out follows the definitions of the tool that reads it; what comes in is brought to ours,
and each difference that stays is told in a sentence. `docs/results.md` maps metric by metric.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from pytest_moeperf.errors import UsageError
from pytest_moeperf.exchange import own, sglang, vllm
from pytest_moeperf.exchange.fields import Fields, documents
from pytest_moeperf.exchange.imported import ImportedResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_moeperf.records import RepeatRecord
    from pytest_moeperf.workload import Workload

__all__ = ["EXPORTS", "Export", "ImportedResult", "documents", "read_result"]


class Export(Protocol):
    """Writes one play as another tool would have stored it."""

    def __call__(
        self,
        repeat: RepeatRecord,
        values: Mapping[str, float | None],
        *,
        model: str,
        url: str,
        workload: Workload,
        seed: int,
    ) -> dict[str, object]:
        """Give the document; `values` are those of `figures.compute` on the same play."""
        ...


EXPORTS: Mapping[str, Export] = MappingProxyType({"vllm": vllm.export, "sglang": sglang.export})
"""By the name that `moeperf load --export` knows."""


class _Reader(Protocol):
    """A module that knows one tool's documents."""

    SOURCE: str
    """How a message names the documents."""

    def recognises(self, fields: Fields) -> bool: ...

    def read(self, fields: Fields) -> ImportedResult: ...


_READERS: tuple[_Reader, ...] = (own, vllm, sglang)


def read_result(document: object, *, name: str) -> ImportedResult:
    """Recognise whose result it is and give its figures by our metric keys.

    Latencies are recomputed where the document lists its requests, else its summary is taken.
    `name` stands before each error: UsageError for a document of another kind, or for one whose
    figures cannot be.
    """
    if isinstance(document, dict):
        fields = Fields(name=name, document=document)
        for reader in _READERS:
            if reader.recognises(fields):
                return reader.read(fields)
    known = "; ".join(reader.SOURCE for reader in _READERS)
    raise UsageError(f"{name}: not a result of a known kind; known are: {known}")
