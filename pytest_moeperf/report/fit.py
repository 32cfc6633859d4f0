"""What `moeperf fit` says: a table of what fills a GPU, a picture of it, and what would fit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pytest_moeperf.memory import kv_bytes_per_token, parameters
from pytest_moeperf.report.heatmap import Span
from pytest_moeperf.units import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_moeperf.memory import Fit, Parallelism, Request
    from pytest_moeperf.report.heatmap import Line

__all__ = ["Answer", "document", "lines"]

NAMES = {
    "embeddings": "embeddings",
    "ffn": "dense blocks",
    "experts": "experts",
    "shared_experts": "shared experts",
    "router": "router",
    "norms": "norms",
}
"""Of tensor groups; that of the attention has its kind."""
FILLS: Mapping[str, tuple[str, str]] = {
    "experts": ("█", "magenta"),
    "other weights": ("▓", "blue"),
    "activations, graphs, runtime": ("▒", "yellow"),
    "KV cache": ("░", "green"),
    "left unused": ("·", "dim"),
}
"""Character and colour of each part of the picture."""
NARROWEST, WIDEST = 20, 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A request with everything that was worked out for it."""

    model: str
    gpu: str
    """Class of the GPUs."""
    request: Request
    fit: Fit
    remedies: Sequence[str]
    """Single changes that would make it fit; empty where it does."""
    least: Mapping[str, Parallelism | None]
    """Smallest spread by class of GPU; None where no number of them is enough."""


def document(answer: Answer) -> dict[str, object]:
    """Everything, ready for JSON; sizes are bytes of one GPU of the fullest stage."""
    request, found = answer.request, answer.fit
    return {
        "model": answer.model,
        "gpu": answer.gpu,
        "gpus": request.parallel.gpus,
        "parallelism": asdict(request.parallel),
        "dtype": request.precision.name,
        "kv_dtype": request.kv_dtype,
        "context_tokens": request.context_tokens,
        "concurrency": request.concurrency,
        "utilization": request.utilization,
        "parameters": dict(parameters(request.arch)),
        "per_gpu": {
            "memory": int(request.gpu_gib * GIB),
            "weights": dict(found.weights),
            "activations": found.activations,
            "graphs": found.graphs,
            "runtime": found.runtime,
            "kv_cache": found.kv_cache,
            "unused": found.unused,
        },
        "kv_tokens": found.kv_tokens,
        "sequences": found.sequences,
        "fits": found.fits,
        "remedies": list(answer.remedies),
        "least_gpus": {
            name: None if spread is None else {"gpus": spread.gpus, **asdict(spread)}
            for name, spread in answer.least.items()
        },
    }


def lines(answer: Answer, *, width: int) -> Iterator[Line]:
    """For a terminal of that width."""
    request, parallel = answer.request, answer.request.parallel
    gpus = f" on {parallel.gpus} x {answer.gpu}, {parallel.label}, "
    stored = f"{request.precision.name}, KV cache {request.kv_dtype}"
    yield (Span(answer.model, "bold"), Span(gpus + stored))
    yield ()
    yield from _table(request, answer.fit)
    yield ()
    yield from _picture(request, answer.fit, width=max(NARROWEST, min(WIDEST, width)))
    yield ()
    yield _room(request, answer.fit)
    yield from _verdict(answer)
    yield from _least(answer)


def _table(request: Request, found: Fit) -> Iterator[Line]:
    """A row for each thing that one GPU holds."""
    counts = parameters(request.arch)
    names = NAMES | {"attention": f"attention ({request.arch.attention_kind})"}
    yield (Span(_row("one GPU", "parameters of the model", "GiB", "share"), "dim"),)
    for group, size in found.weights.items():
        if counts[group]:
            yield (Span(_sized(names[group], f"{counts[group]:,}", size, request)),)
    total = sum(counts.values())
    yield (Span(_sized("weights", f"{total:,}", found.weight_bytes, request), "bold"),)
    for name, size in (
        ("activations (estimate)", found.activations),
        ("CUDA graphs (estimate)", found.graphs),
        ("runtime (estimate)", found.runtime),
        ("KV cache" if found.kv_cache >= 0 else "lacking", found.kv_cache),
        ("left unused", found.unused),
    ):
        yield (Span(_sized(name, "", size, request)),)
    yield (Span(_sized("memory", "", int(request.gpu_gib * GIB), request), "bold"),)


def _sized(name: str, count: str, size: int, request: Request) -> str:
    share = size / GIB / request.gpu_gib
    return _row(name, count, f"{size / GIB:.2f}", f"{100 * share:.1f} %")


def _row(name: str, count: str, size: str, share: str) -> str:
    return f"  {name:<24}{count:>24}{size:>10}{share:>10}"


def _picture(request: Request, found: Fit, *, width: int) -> Iterator[Line]:
    """One bar for a GPU's memory, or for what is asked of it where that is more."""
    experts = found.weights["experts"]
    sizes = (
        experts,
        found.weight_bytes - experts,
        found.activations + found.graphs + found.runtime,
        max(0, found.kv_cache),
        found.unused,
    )
    shown = [each for each in zip(FILLS.items(), sizes, strict=True) if each[1]]
    cells = _cells([size for _, size in shown], width)
    yield tuple(
        Span(character * count, style)
        for ((_, (character, style)), _), count in zip(shown, cells, strict=True)
    )
    for (name, (character, style)), size in shown:
        yield (Span(f"{character} ", style), Span(f"{name} {size / GIB:.1f} GiB"))
    if found.kv_cache < 0:
        more = f"{-found.kv_cache / GIB:.1f} GiB more than the {request.gpu_gib:g} GiB of a GPU"
        yield (Span(f"the bar is {more}", "red"),)


def _cells(sizes: Sequence[int], width: int) -> list[int]:
    """Share `width` out in proportion, by largest remainders."""
    exact = [size * width / sum(sizes) for size in sizes]
    cells = [int(each) for each in exact]
    by_rest = sorted(range(len(sizes)), key=lambda index: cells[index] - exact[index])
    for index in by_rest[: width - sum(cells)]:
        cells[index] += 1
    return cells


def _room(request: Request, found: Fit) -> Line:
    parallel, arch = request.parallel, request.arch
    token = kv_bytes_per_token(arch, request.kv_bytes, tensor_parallel_size=parallel.tensor)
    held = token / 1024 / parallel.pipeline
    return (
        Span(f"KV cache: {found.kv_tokens:,} tokens, about {held:.1f} KiB each on a GPU; "),
        Span(f"{found.sequences:,} requests of {request.context_tokens:,} tokens at once", "bold"),
    )


def _verdict(answer: Answer) -> Iterator[Line]:
    request = answer.request
    asked = f"{request.concurrency:,} x {request.context_tokens:,} tokens"
    if answer.fit.fits:
        yield (Span(f"FITS: {asked}", "green"),)
        return
    yield (Span(f"DOES NOT FIT: {asked}", "bold red"),)
    for each in answer.remedies:
        yield (Span(f"  would fit: {each}"),)
    least = answer.least.get(answer.gpu)
    if least is not None:
        yield (Span(f"  would fit: {least.gpus} x {answer.gpu}, {least.label}"),)


def _least(answer: Answer) -> Iterator[Line]:
    """Fewest GPUs of each class, the fewest first; classes that need the same are in one line."""
    yield (Span(f"fewest GPUs at {answer.request.precision.name}:", "dim"),)
    spreads: dict[str, list[str]] = {}
    by_number = sorted(answer.least.items(), key=lambda each: each[1].gpus if each[1] else math.inf)
    for name, spread in by_number:
        label = "none of up to 64" if spread is None else f"{spread.gpus}, {spread.label}"
        spreads.setdefault(label, []).append(name)
    for label, names in spreads.items():
        yield (Span(f"  {label:<20} {', '.join(names)}"),)
