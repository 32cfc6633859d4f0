"""What differs between the engines that the fake can play: paths, metrics, words of a stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["DIALECTS", "Counts", "Dialect"]


@dataclass(slots=True)
class Counts:
    """What a fake engine has done so far."""

    running: int = 0
    waiting: int = 0
    finished: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One engine as a client sees it."""

    name: str
    package: str
    """Import name."""
    version: str
    """What it is where the script says nothing."""
    version_path: str
    reset_path: str
    token_ids: bool
    """Whether it knows `return_token_ids`."""
    native_path: str | None = None
    """Where requests in the engine's own form go."""
    metrics: Callable[[Counts, str, int, int], str]
    """Exposition of counts, model, KV tokens and tokens of a KV block."""
    choice: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of a choice."""
    usage: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of a usage."""


def _exposition(
    labels: str, values: Mapping[str, tuple[str, float]], more: tuple[str, ...] = ()
) -> str:
    lines = []
    for name, (kind, value) in values.items():
        lines += [f"# HELP {name} Scripted.", f"# TYPE {name} {kind}"]
        lines.append(f"{name}{{{labels}}} {float(value)}")
    return "\n".join([*lines, *more]) + "\n"


def _vllm_metrics(counts: Counts, model: str, kv_tokens: int, block: int) -> str:
    cache = (
        f'block_size="{block}",engine="0",kv_cache_size_tokens="{kv_tokens}",'
        f'num_gpu_blocks="{kv_tokens // block}"'
    )
    return _exposition(
        f'engine="0",model_name="{model}"',
        {
            "vllm:num_requests_running": ("gauge", counts.running),
            "vllm:num_requests_waiting": ("gauge", counts.waiting),
            "vllm:num_preemptions_total": ("counter", counts.preemptions),
            "vllm:prefix_cache_queries_total": ("counter", counts.prompt_tokens),
            "vllm:prefix_cache_hits_total": ("counter", counts.cached_tokens),
            "vllm:prompt_tokens_total": ("counter", counts.prompt_tokens),
            "vllm:generation_tokens_total": ("counter", counts.generation_tokens),
        },
        (
            "# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig",
            "# TYPE vllm:cache_config_info gauge",
            f"vllm:cache_config_info{{{cache}}} 1.0",
        ),
    )


def _sglang_metrics(counts: Counts, model: str, kv_tokens: int, block: int) -> str:
    labels = f'engine_type="unified",model_name="{model}",tp_rank="0"'
    return _exposition(
        labels,
        {
            # As 0.5.11 does: those of a batch that may have ended long ago.
            "sglang:num_running_reqs": ("gauge", max(counts.running, min(counts.finished, 1))),
            "sglang:num_queue_reqs": ("gauge", counts.waiting),
            "sglang:num_retracted_requests_total": ("counter", counts.preemptions),
            "sglang:num_requests_total": ("counter", counts.finished),
            "sglang:prompt_tokens_total": ("counter", counts.prompt_tokens),
            "sglang:generation_tokens_total": ("counter", counts.generation_tokens),
            "sglang:max_total_num_tokens": ("gauge", kv_tokens),
            "sglang:page_size": ("gauge", block),
        },
        (
            "# TYPE sglang:cached_tokens_total counter",
            f'sglang:cached_tokens_total{{cache_source="device",{labels}}} {counts.cached_tokens}',
        ),
    )


DIALECTS = {
    "vllm": Dialect(
        name="vllm",
        package="vllm",
        version="0.32.0",
        version_path="/version",
        reset_path="/reset_prefix_cache",
        token_ids=True,
        metrics=_vllm_metrics,
        choice={"stop_reason": None},
    ),
    "sglang": Dialect(
        name="sglang",
        package="sglang",
        version="0.5.16",
        version_path="/server_info",
        reset_path="/flush_cache",
        token_ids=False,
        native_path="/generate",
        metrics=_sglang_metrics,
        choice={"matched_stop": None},
        usage={"prompt_tokens_details": None, "reasoning_tokens": 0},
    ),
}
