"""The HTTP routes of an engine that the plugin uses, behaving by a script."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from pytest_moeperf.testing.dialects import DIALECTS, Counts, Dialect
from pytest_moeperf.testing.generation import Generation
from pytest_moeperf.testing.script import CPU_KV_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_moeperf.testing.script import Script

__all__ = ["ScriptedEngine", "open_port"]

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

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.script.max_running or sys.maxsize)

    def application(self) -> web.Application:
        """The routes that the plugin uses."""
        app = web.Application(client_max_size=64 * 2**20)
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get(self.dialect.version_path, self._version),
                web.get("/v1/models", self._models),
                web.get("/metrics", self._metrics),
                web.post(self.dialect.reset_path, self._reset),
                web.post("/v1/completions", self._completions),
            ]
        )
        return app

    async def _health(self, _: web.Request) -> web.Response:
        if self.health_generates:
            self.counts.prompt_tokens += 1
        return web.Response()

    async def _reset(self, _: web.Request) -> web.Response:
        refused = self.dialect.name == "sglang" and self.counts.running > 0
        return web.Response(status=HTTP_BAD_REQUEST if refused else HTTP_OK)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": self.script.version or self.dialect.version})

    async def _models(self, _: web.Request) -> web.Response:
        card = {
            "id": self.model,
            "object": "model",
            "owned_by": self.dialect.name,
            "max_model_len": self.script.max_model_len,
        }
        return web.json_response({"object": "list", "data": [card]})

    async def _metrics(self, _: web.Request) -> web.Response:
        kv_tokens = self.script.kv_tokens or CPU_KV_TOKENS
        block = self.script.kv_block_tokens
        return web.Response(text=self.dialect.metrics(self.counts, self.model, kv_tokens, block))

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        script = self.script
        if script.api_key is not None and (
            request.headers.get("Authorization") != f"Bearer {script.api_key}"
        ):
            return _refusal(HTTP_UNAUTHORIZED, "Unauthorized")
        body = await request.json()
        if body.get("model") != self.model:
            return _refusal(HTTP_NOT_FOUND, f"The model `{body.get('model')}` does not exist.")
        self._receive()
        generation = self._admit(body)
        wanted = len(generation.prompt) + generation.output_tokens
        if script.max_model_len is not None and wanted > script.max_model_len:
            return _refusal(
                HTTP_BAD_REQUEST,
                f"This model's maximum context length is {script.max_model_len} tokens. "
                f"However, you requested {wanted} tokens.",
            )
        if script.error_status is not None and generation.number % script.error_every == 0:
            return _refusal(script.error_status, "scripted failure")
        if body.get("stream"):
            return await self._stream(request, generation)
        return await self._answer(generation)

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

    async def _stream(self, request: web.Request, generation: Generation) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def emit(first: int, count: int) -> None:
            limit = self.script.disconnect_after_tokens
            if limit is not None and first >= limit and request.transport is not None:
                request.transport.abort()
            await response.write(generation.chunk(first, count))

        await self._generate(generation, emit)
        await response.write(generation.end())
        await response.write_eof()
        return response

    async def _answer(self, generation: Generation) -> web.Response:
        async def drop(_first: int, _count: int) -> None:
            return None

        await self._generate(generation, drop)
        return web.json_response(generation.whole())

    async def _generate(self, generation: Generation, emit: Callable[[int, int], Any]) -> None:
        """Produce the tokens on time: due times add up, so a late wake-up does not accumulate."""
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
                await emit(sent, count)
                if script.stall_after_tokens in range(sent + 1, sent + count + 1):
                    due += script.stall_ms / MS_PER_S
                sent += count
                counts.generation_tokens += count
                itl_ms = script.itl_ms + script.itl_ms_per_stream * (counts.running - 1)
                due += pace * itl_ms * count
        finally:
            counts.running -= 1
            counts.finished += 1
            self.slots.release()

    async def _wait_until(self, due: float) -> None:
        await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        if self.hung:
            await asyncio.Event().wait()


async def open_port(engine: ScriptedEngine, *, host: str, port: int) -> web.AppRunner:
    """Serve `engine` in the running loop; `cleanup()` of the result closes everything."""
    # A client that went away frees its stream; a stop does not wait for streams that hang.
    runner = web.AppRunner(
        engine.application(), handler_cancellation=True, shutdown_timeout=0.05, access_log=None
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status)
