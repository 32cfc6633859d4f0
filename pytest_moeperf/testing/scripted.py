"""The HTTP routes of an engine that the plugin uses, behaving by a script."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_moeperf.testing.dialects import DIALECTS, Counts, Dialect
from pytest_moeperf.testing.generation import Generation
from pytest_moeperf.testing.routed import Heard, completion_fields, native_routes, routes
from pytest_moeperf.testing.script import CPU_KV_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_moeperf.testing.exchange import Exchange
    from pytest_moeperf.testing.script import Script

__all__ = ["ScriptedEngine"]

MS_PER_S = 1e3
HTTP_OK, HTTP_BAD_REQUEST, HTTP_UNAUTHORIZED, HTTP_NOT_FOUND = 200, 400, 401, 404


@dataclass(slots=True)
class ScriptedEngine:
    """State behind the HTTP routes; lives in one event loop."""

    script: Script
    model: str
    log: Callable[[str], None]
    die: Callable[[int], None]
    dialect: Dialect = DIALECTS["vllm"]
    health_generates: bool = False
    """Whether each look at `/health` is a request, as SGLang's is unless it is told otherwise."""
    received: int = 0
    counts: Counts = field(default_factory=Counts)
    hung: bool = False
    slots: asyncio.Semaphore = field(init=False)
    heard: Heard = field(init=False)

    def __post_init__(self) -> None:
        self.heard = Heard(self.script)
        self.slots = asyncio.Semaphore(self.script.max_running or sys.maxsize)

    async def respond(self, exchange: Exchange) -> None:
        """Answer a request to one of the routes that the plugin uses."""
        match exchange.asked:
            case "GET", "/health":
                self.counts.prompt_tokens += self.health_generates
                exchange.answer(HTTP_OK)
            case "GET", self.dialect.version_path:
                version = self.script.version or self.dialect.version
                exchange.answer_json(HTTP_OK, {"version": version})
            case "GET", "/v1/models":
                exchange.answer_json(HTTP_OK, {"object": "list", "data": [self._card()]})
            case "GET", "/metrics":
                exchange.answer(HTTP_OK, self._metrics())
            case "POST", self.dialect.reset_path:
                refused = self.dialect.name == "sglang" and self.counts.running > 0
                exchange.answer(HTTP_BAD_REQUEST if refused else HTTP_OK)
            case "POST", "/v1/completions":
                await self._complete(exchange, json.loads(exchange.body))
            case "POST", self.dialect.native_path:
                await self._generate_natively(exchange)
            case "POST", "/collective_rpc" if self.script.routing == "probe":
                exchange.answer_json(HTTP_OK, self.heard.take())
            case _:
                exchange.answer(HTTP_NOT_FOUND, "404: Not Found")

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.model,
            "object": "model",
            "owned_by": self.dialect.name,
            "max_model_len": self.script.max_model_len,
        }

    def _metrics(self) -> str:
        kv_tokens = self.script.kv_tokens or CPU_KV_TOKENS
        return self.dialect.metrics(self.counts, self.model, kv_tokens, self.script.kv_block_tokens)

    async def _complete(
        self, exchange: Exchange, body: Mapping[str, Any], *, natively: bool = False
    ) -> None:
        script = self.script
        if script.api_key is not None and (
            exchange.headers.get("authorization") != f"Bearer {script.api_key}"
        ):
            _refuse(exchange, HTTP_UNAUTHORIZED, "Unauthorized")
            return
        if body.get("model") != self.model:
            missing = f"The model `{body.get('model')}` does not exist."
            _refuse(exchange, HTTP_NOT_FOUND, missing)
            return
        self._receive()
        generation = self._admit(body)
        wanted = len(generation.prompt) + generation.output_tokens
        if script.max_model_len is not None and wanted > script.max_model_len:
            _refuse(
                exchange,
                HTTP_BAD_REQUEST,
                f"This model's maximum context length is {script.max_model_len} tokens. "
                f"However, you requested {wanted} tokens.",
            )
        elif script.error_status is not None and generation.number % script.error_every == 0:
            _refuse(exchange, script.error_status, "scripted failure")
        elif body.get("stream"):
            await self._stream(exchange, generation)
        else:
            await self._generate(generation, lambda _first, _count: None)
            exchange.answer_json(HTTP_OK, self._whole(generation, body, natively=natively))

    async def _generate_natively(self, exchange: Exchange) -> None:
        """SGLang's own form of a request that does not stream."""
        asked = json.loads(exchange.body)
        sampling = asked["sampling_params"]
        body = {
            "model": self.model,
            "prompt": asked.get("input_ids") or asked["text"],
            "max_tokens": sampling["max_new_tokens"],
            "ignore_eos": sampling.get("ignore_eos"),
            "return_routed_experts": asked.get("return_routed_experts"),
        }
        await self._complete(exchange, body, natively=True)

    def _whole(
        self, generation: Generation, body: Mapping[str, Any], *, natively: bool
    ) -> dict[str, Any]:
        if self.script.routing is None:
            return generation.native({}) if natively else generation.whole({}, {})
        prompt_tokens = len(generation.prompt)
        found = routes(
            self.script, prompt_tokens=prompt_tokens, output_tokens=generation.output_tokens
        )
        self.heard.hear(found)
        if natively:
            asked = body["return_routed_experts"]
            return generation.native(native_routes(self.script, found) if asked else {})
        return generation.whole(*completion_fields(self.script, found, prompt_tokens=prompt_tokens))

    def _receive(self) -> None:
        """Count a request, and fail where the script says so."""
        script = self.script
        self.received += 1
        first, last = script.load_log_requests
        if first <= self.received <= last:
            for line in script.load_log:
                self.log(line)
        if script.die_after_requests is not None and self.received > script.die_after_requests:
            for line in script.die_log:
                self.log(line)
            self.die(script.die_exit_code)
        if script.hang_after_requests is not None and self.received > script.hang_after_requests:
            self.hung = True

    def _admit(self, body: Mapping[str, Any]) -> Generation:
        script = self.script
        prompt = body["prompt"]
        output_tokens = int(body.get("max_tokens", 16))
        if script.eos_after_tokens is not None and not body.get("ignore_eos"):
            output_tokens = min(output_tokens, script.eos_after_tokens)
        options = (body.get("stream_options") or {}) if script.usage else {}
        include_usage = bool(options.get("include_usage"))
        return Generation(
            number=self.received,
            model=self.model,
            dialect=self.dialect,
            # Of a text only the number of its words matters here.
            prompt=tuple(range(len(prompt.split()))) if isinstance(prompt, str) else tuple(prompt),
            output_tokens=max(1, output_tokens - script.short_by_tokens),
            token_ids=script.token_ids
            and self.dialect.token_ids
            and bool(body.get("return_token_ids")),
            usage=include_usage,
            continuous_usage=include_usage and bool(options.get("continuous_usage_stats")),
        )

    async def _stream(self, exchange: Exchange, generation: Generation) -> None:
        def emit(first: int, count: int) -> None:
            limit = self.script.disconnect_after_tokens
            if limit is not None and first >= limit:
                exchange.abort()
            exchange.send_chunk(generation.chunk(first, count))

        exchange.begin_stream()
        await self._generate(generation, emit)
        exchange.send_chunk(generation.end())
        exchange.send_chunk(b"")

    async def _generate(self, generation: Generation, emit: Callable[[int, int], None]) -> None:
        """Produce the tokens on time: due times add up, so a late wake-up does not accumulate.

        What is late by more than a token is not caught up, as no engine could: else a busy machine
        would make two tokens come at once.
        """
        script, counts = self.script, self.counts
        due = asyncio.get_running_loop().time()
        counts.waiting += 1
        try:
            await self.slots.acquire()
        finally:
            counts.waiting -= 1
        counts.running += 1
        try:
            counts.prompt_tokens += len(generation.prompt)
            counts.cached_tokens = int(counts.prompt_tokens * script.prefix_hit_rate)
            counts.preemptions += script.preemptions_per_request
            due = max(due, asyncio.get_running_loop().time())
            cold = generation.number <= script.warmup_requests
            pace = (script.warmup_slowdown if cold else 1.0) / MS_PER_S
            due += pace * (script.ttft_ms + script.prefill_ms_per_token * len(generation.prompt))
            sent = 0
            while sent < generation.output_tokens:
                count = min(script.tokens_per_chunk, generation.output_tokens - sent)
                await self._wait_until(due)
                emit(sent, count)
                if script.stall_after_tokens in range(sent + 1, sent + count + 1):
                    due += script.stall_ms / MS_PER_S
                sent += count
                counts.generation_tokens += count
                itl_ms = script.itl_ms + script.itl_ms_per_stream * (counts.running - 1)
                step = pace * itl_ms * count
                due = max(due, asyncio.get_running_loop().time() - step) + step
        finally:
            counts.running -= 1
            counts.finished += 1
            self.slots.release()

    async def _wait_until(self, due: float) -> None:
        await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        if self.hung:
            await asyncio.Event().wait()


def _refuse(exchange: Exchange, status: int, message: str) -> None:
    exchange.answer_json(status, {"error": {"message": message, "code": status}})
