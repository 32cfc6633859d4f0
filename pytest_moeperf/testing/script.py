"""What a fake engine does: one frozen script, readable from JSON."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["CPU_KV_TOKENS", "SCRIPT_VARIABLE", "Script"]

CPU_KV_TOKENS = 131_072

SCRIPT_VARIABLE = "MOEPERF_FAKE_SCRIPT"
"""Environment variable with a JSON object; its fields go before those of the script file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Behaviour of a fake engine. The defaults are a healthy, fast server.

    Requests are numbered from 1 in order of arrival.
    """

    version: str | None = None
    """None: a usual one of the engine that is played."""
    api_key: str | None = None
    """Requests without it are answered 401."""

    ttft_ms: float = 5.0
    """From arrival to the first token, without queueing."""
    prefill_ms_per_token: float = 0.0
    """Added to `ttft_ms` for every token of the prompt."""
    itl_ms: float = 1.0
    """Time of one output token of a stream that runs alone."""
    itl_ms_per_stream: float = 0.0
    """Added to `itl_ms` for every other stream that runs at that moment."""
    tokens_per_chunk: int = 1
    max_running: int | None = None
    """Streams that run at once; further ones queue. None: no limit."""
    warmup_requests: int = 0
    """So many first requests are slower by `warmup_slowdown`."""
    warmup_slowdown: float = 2.0

    stall_after_tokens: int | None = None
    """Every stream pauses once for `stall_ms` after so many tokens."""
    stall_ms: float = 0.0
    disconnect_after_tokens: int | None = None
    """Every stream's connection is cut after so many tokens."""
    short_by_tokens: int = 0
    """Every stream ends so many tokens too early, even with `ignore_eos`."""
    eos_after_tokens: int | None = None
    """Streams end here unless the request says `ignore_eos`."""
    token_ids: bool = True
    """Whether `return_token_ids` is understood."""
    usage: bool = True
    """Whether `stream_options` is understood."""

    error_status: int | None = None
    """Status of the requests that fail."""
    error_every: int = 1
    """Every so manieth request fails where `error_status` is given."""
    die_after_requests: int | None = None
    """The process ends at once when one more request than this arrives."""
    die_exit_code: int = 1
    die_log: tuple[str, ...] = ("EngineCore encountered a fatal error.",)
    hang_after_requests: int | None = None
    """All streams stop for good when one more request than this arrives; `/health` stays 200."""

    start_delay_s: float = 0.0
    start_log: tuple[str, ...] = ()
    """Lines written before the port opens."""
    start_exit_code: int | None = None
    """The process ends with it after `start_log` instead of serving."""
    start_hang: bool = False
    """The process lives and never opens its port."""
    child_processes: int = 0
    """Children in the same process group that ignore SIGTERM and outlive a SIGKILL of the
    server, as an engine's workers do."""
    ignore_sigterm: bool = False

    load_log: tuple[str, ...] = ()
    """Lines written while requests arrive, e.g. of a compilation."""
    load_log_requests: tuple[int, int] = (1, 1)
    """First and last request that write `load_log`."""

    kv_tokens: int | None = None
    """None: on a CPU `CPU_KV_TOKENS`, on GPUs what their memory leaves."""
    kv_block_tokens: int = 128
    gpu_memory_gib: float = 139.8
    """Of each GPU, for the log of a server that is started on GPUs."""
    weights_gib: float | None = None
    """On each GPU, as the log says; None: what the model's config comes to."""
    graphs_gib: float = 0.5
    cold_caches: bool = False
    """On GPUs: the log tells of a compilation instead of one that was found in a cache."""
    moe_backend: str | None = None
    """As the log names it; None: the engine's usual one."""
    moe_config: str | None = None
    """Tuned configuration that the log names, or `default`; None: one that fits the model."""
    max_model_len: int | None = None
    """Context in tokens; None: `--max-model-len`, else the model's config, else no limit."""
    prefix_hit_rate: float = 0.0
    """Share of prompt tokens that the metrics count as cached."""
    preemptions_per_request: int = 0

    routing: str | None = None
    """How it tells which experts its tokens took: in its `answers`, there in `lists` as vLLM 0.21
    did, or to a `probe`. None: as its command line says."""
    routed_layers: int = 8
    routed_experts: int = 8
    routed_top_k: int = 2
    """These three: of a server without a model directory; else its config tells them."""
    expert_weights: tuple[float, ...] = ()
    """How often each expert is chosen, in relation; empty: all alike, in turns."""
    collapsed_layers: tuple[int, ...] = ()
    """Layers where every token takes the first experts."""
    routing_fault: str | None = None
    """`zeros`, `missing`, one token too `short`, `layers` (one too few), or an expert out of
    `range`."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Script:
        """The script of a JSON object; ValueError names an unknown field and lists the valid."""
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise ValueError(
                f"no such field of a fake engine's script: {', '.join(unknown)}; "
                f"valid are {', '.join(names)}"
            )
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**arguments)

    @classmethod
    def load(cls, path: Path | None) -> Script:
        """The script of a file, with the fields of the environment over it."""
        values = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
        values |= json.loads(os.environ.get(SCRIPT_VARIABLE, "{}"))
        return cls.from_mapping(values)
