"""The start-up logs that the fake engine plays: vLLM's and SGLang's, on a CPU and on GPUs."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_moeperf.testing.script import CPU_KV_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_moeperf.testing.script import Script
    from pytest_moeperf.testing.sizes import ModelSizes

__all__ = ["Start"]

GRAPH_RUNS = ("prefill", "decode")
OVERHEAD_GIB = 2.0
"""Activations and what a GPU needs of its own."""
SHARE_OF_MEMORY = 0.92


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of a fake engine, as its log describes it."""

    script: Script
    version: str
    model: str
    flags: str
    gpus: int
    """0: on the CPU."""
    expert_parallel: bool
    sizes: ModelSizes | None
    """None: the model directory tells none."""

    @property
    def kv_tokens(self) -> int:
        """What the script says, else what the memory leaves."""
        if self.script.kv_tokens is not None:
            return self.script.kv_tokens
        if not self.gpus or self.sizes is None:
            return CPU_KV_TOKENS
        return self.sizes.kv_tokens(self.kv_gib, self.gpus)

    @property
    def kv_gib(self) -> float:
        """Per GPU; on a CPU what the driver sets."""
        if not self.gpus:
            return 1.0
        taken = self.weights_gib + self.script.graphs_gib + OVERHEAD_GIB
        return max(1.0, round(SHARE_OF_MEMORY * self.script.gpu_memory_gib - taken, 2))

    @property
    def weights_gib(self) -> float:
        """Per GPU, or whole on the CPU; 0 where it is not known."""
        if self.script.weights_gib is not None:
            return self.script.weights_gib
        return self.sizes.weights_gib(max(1, self.gpus)) if self.sizes is not None else 0.0

    @property
    def moe(self) -> bool:
        """Whether there are experts to log about; a model that is not known has some."""
        return self.sizes is None or self.sizes.experts > 0

    @property
    def moe_config(self) -> str:
        """File name of a tuned configuration for this model and this split."""
        if self.script.moe_config is not None or self.sizes is None:
            return self.script.moe_config or "default"
        experts, width = self.sizes.experts, self.sizes.ffn
        if self.expert_parallel:
            experts //= self.gpus
        else:
            width //= self.gpus
        return f"E={experts},N={width},device_name=NVIDIA_H200.json"

    def vllm(self) -> Iterator[str]:
        """The lines of vLLM, up to the open port."""
        api, core, worker = "APIServer", "EngineCore", "Worker"
        yield _line(api, "api_utils.py:347", f"version {self.version}")
        yield _line(api, "api_utils.py:347", f"model   {self.model}")
        yield _line(api, "api_utils.py:286", f"non-default args: {self.flags}")
        yield _line(core, "core.py:133", f"Initializing a V1 LLM engine (v{self.version})")
        yield _line(worker, "model_runner.py:68", f"Starting to load model {self.model}...")
        yield from self.script.start_log
        yield from self._vllm_on_gpus() if self.gpus else self._vllm_on_cpu()
        took = "init engine (profile, create kv cache, warmup model) took 0.02 s"
        yield _line(core, "core.py:402", took)

    def _vllm_on_cpu(self) -> Iterator[str]:
        worker = "Worker"
        yield _line(worker, "default_loader.py:501", "Loading weights took 0.01 seconds")
        if self.moe:
            yield _line(worker, "unquantized.py:529", "Using CPUUnquantizedExperts MoE backend")
        space = "Explicitly set (1.0/7.21) GiB for KV cache on node 0."
        yield _line(worker, "cpu_worker.py:260", space)
        yield _line("EngineCore", "kv_cache_utils.py:2327", f"CPU {self._vllm_cache()}")

    def _vllm_on_gpus(self) -> Iterator[str]:
        worker = "Worker_TP0" if self.gpus > 1 else "EngineCore"
        if self.moe:
            backend = self.script.moe_backend or "TRITON Unquantized"
            said = f"Using {backend} MoE backend out of potential backends: ['TRITON']."
            yield _line(worker, "unquantized.py:247", said)
        loading = f"Model loading took {self.weights_gib:.2f} GiB memory and 0.010000 seconds"
        yield _line(worker, "gpu_model_runner.py:5255", loading)
        built = "Compiling a graph for compile range (1, 8192) takes 0.01 s"
        loaded = "Directly load the compiled graph(s) for compile range (1, 8192) from the cache"
        said = built if self.script.cold_caches else f"{loaded}, took 0.01 s"
        yield _line(worker, "backends.py:292", said)
        yield _line(worker, "monitor.py:53", "torch.compile took 0.01 s in total")
        if self.moe:
            missing = "Using default MoE config. Performance might be sub-optimal!"
            found = f"Using configuration from /env/configs/{self.moe_config} for MoE layer."
            said = missing if self.moe_config == "default" else found
            yield _line(worker, "fused_moe.py:1058", said)
        cache = f"Available KV cache memory: {self.kv_gib:.2f} GiB"
        yield _line(worker, "gpu_worker.py:508", cache)
        yield _line("EngineCore", "kv_cache_utils.py:2146", f"GPU {self._vllm_cache()}")
        graphs = f"Graph capturing finished in 1 secs, took {self.script.graphs_gib:.2f} GiB"
        yield _line(worker, "gpu_model_runner.py:6656", graphs)

    def _vllm_cache(self) -> str:
        context = self.script.max_model_len or self.kv_tokens
        return (
            f"KV cache size: {self.kv_tokens:,} tokens, Maximum concurrency for {context:,} "
            f"tokens per request: {self.kv_tokens / context:.2f}x"
        )

    def sglang(self) -> Iterator[str]:
        """The lines of SGLang, up to the open port."""
        rank = " TP0" if self.gpus > 1 else ""
        backend = self.script.moe_backend or "auto"
        arguments = f"model_path='{self.model}', moe_runner_backend='{backend}'"
        yield _stamped(f"server_args=ServerArgs({arguments}) {self.flags}")
        yield _stamped("Load weight begin. avail mem=138.18 GB", rank)
        yield from self.script.start_log
        weights = f"elapsed=0.01 s, type=Fake, avail mem=9.00 GB, mem usage={self.weights_gib:.2f}"
        yield _stamped(f"Load weight end. {weights} GB.", rank)
        half = self.kv_gib / 2
        yield _stamped(
            f"KV Cache is allocated. dtype: torch.bfloat16, #tokens: {self.kv_tokens}, "
            f"K size: {half:.2f} GB, V size: {half:.2f} GB",
            rank,
        )
        if self.moe and self.gpus:
            missing = "Using default MoE kernel config. Performance might be sub-optimal!"
            found = f"Using MoE kernel config from /env/configs/triton_3_6_0/{self.moe_config}."
            yield _stamped(missing if self.moe_config == "default" else found, rank)
        for run in GRAPH_RUNS if self.gpus else ():
            yield _stamped(f"Capture target {run} CUDA graph begin.", rank)
            took = f"elapsed=0.01 s, mem usage={self.script.graphs_gib / 2:.2f} GB"
            yield _stamped(f"Capture target {run} CUDA graph end. {took}, avail mem=9.00 GB.", rank)
        yield _stamped(f"max_total_num_tokens={self.kv_tokens}, context_len=4096", rank)


def _line(process: str, place: str, message: str) -> str:
    stamp = time.strftime("%m-%d %H:%M:%S")
    return f"({process} pid={os.getpid()}) INFO {stamp} [{place}] {message}"


def _stamped(message: str, rank: str = "") -> str:
    return f"[{time.strftime('%Y-%m-%d %H:%M:%S')}{rank}] {message}"
