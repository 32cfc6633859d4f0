"""vLLM, from 0.20: flags, environment, log lines and metrics."""

from __future__ import annotations

import ast
import json
import re
from typing import TYPE_CHECKING

from pytest_moeperf.engines.base import EngineFacts, Launch
from pytest_moeperf.engines.flags import added_arguments, check_flags, flag_names, int_flag
from pytest_moeperf.engines.reading import (
    Facts,
    first_facts,
    last_error,
    phase_of,
    recorded,
    samples,
    whole_number,
)
from pytest_moeperf.engines.routing import counting_env
from pytest_moeperf.engines.vllm_routing import VllmRouting
from pytest_moeperf.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pytest_moeperf.records import ServerSpec

__all__ = ["Vllm"]

RESERVED_FLAGS = {
    "--api-key": "nothing, a server that only this machine reaches needs no key",
    "--dtype": "ServerSpec(dtype=…)",
    "--enable-expert-parallel": "ServerSpec(expert_parallel=…)",
    "--host": "nothing, servers listen on 127.0.0.1 only",
    "--load-format": "ServerSpec(load_format=…)",
    "--max-model-len": "ServerSpec(max_model_len=…)",
    "--model": "ServerSpec(model=…)",
    "--port": "pytest's --server-port",
    "--served-model-name": "ServerSpec(model=…)",
    "--tensor-parallel-size": "ServerSpec(tensor_parallel_size=…)",
    "-ep": "ServerSpec(expert_parallel=…)",
    "-tp": "ServerSpec(tensor_parallel_size=…)",
}
OVERRIDES = {"--hf-overrides": "ServerSpec(overrides=…)"}

HELP = "the engine's --help=all"

FEW_CORES = 8
"""Up to here a core is too precious for vLLM's default of keeping one free for its scheduler:
on two cores that halves the throughput. Beyond, the default also heeds NUMA nodes."""

KV_CACHE_SPACE = ("VLLM_CPU_KVCACHE_SPACE", "1")
"""In GiB. Set explicitly, vLLM takes exactly this and skips a warm-up run; unset, it asks for
92 % of the machine's memory."""

OMP_BINDING = "VLLM_CPU_OMP_THREADS_BIND"

PROCESS_OVERHEAD_GIB = 2.5
"""Resident memory of API server, engine core and worker without weights and KV cache."""

PHASES = (
    ("non-default args", "reading the model's configuration"),
    ("Resolved architecture", "starting the engine's processes"),
    ("Starting to load model", "loading weights"),
    ("Loading model from scratch", "loading weights"),
    ("Loading weights took", "preparing the engine"),
    ("Model loading took", "preparing the engine"),
    ("Dynamo bytecode transform", "compiling"),
    ("torch.compile took", "profiling memory"),
    ("Profiling CUDA graph memory", "profiling memory"),
    ("KV cache size:", "warming up"),
    ("Capturing CUDA graphs", "capturing CUDA graphs"),
    ("Graph capturing finished", "warming up"),
    ("init engine (profile", "opening the HTTP server"),
)

FACTS: Facts = tuple(
    (name, re.compile(pattern), convert)
    for name, pattern, convert in (
        ("version", r"LLM engine \(v([^\s)]+)\) with config", str),
        ("kv_cache_tokens", r"KV cache size: ([\d,]+) tokens", whole_number),
        (
            "kv_cache_gib",
            r"(?:Available KV cache memory: |(?:Explicitly|Auto) set \(|reserved )(-?[\d.]+)",
            float,
        ),
        ("weights_gib", r"Model loading took ([\d.]+) GiB", float),
        ("graphs_gib", r"Graph capturing finished in \d+ secs, took (-?[\d.]+) GiB", float),
        ("moe_backend", r"Using (.+?) MoE backend", str),
        (
            "moe_config",
            r"Using (?:configuration from \S*/)?([^/\s]+\.json(?= for MoE)|default(?= MoE config))",
            str,
        ),
    )
)
COMPILED = re.compile(r"Compiling a graph for |Compiling model again due to a load failure")
LOADED = re.compile(r"Directly load (?:the compiled graph|AOT compilation)")
COMPILE_ENDED = re.compile(r"torch\.compile took")
WORKER_CORES = re.compile(r"local_rank=\d+, core ids=\[([\d, ]+)\]")

REPORTS = ("Engine core initialization failed", "EngineDeadError")
"""What one process says when the true reason stands further up, in the words of another."""

COUNTERS = {
    "vllm:generation_tokens_total": "generation_tokens",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:num_requests_running": "requests_running",
    "vllm:num_requests_waiting": "requests_waiting",
    "vllm:prefix_cache_hits_total": "prefix_cache_hits",
    "vllm:prefix_cache_queries_total": "prefix_cache_queries",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:request_success_total": "requests_finished",
}
CACHE_CONFIG = "vllm:cache_config_info"

NOT_INHERITED = frozenset(
    # The first would make the server ask for a key; the others belong to this interpreter.
    {"VLLM_API_KEY", "PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP"}
)
RECORDED_PREFIXES = ("VLLM_", "OMP_", "KMP_", "GOMP_", "MKL_", "TORCH_", "NCCL_", "LD_PRELOAD")
SAME_EVERYWHERE = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
    "PYTHONUNBUFFERED": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # For /reset_prefix_cache.
    "VLLM_SERVER_DEV_MODE": "1",
}


class Vllm:
    """Drives `vllm` and builds of it under other names; see `base.Engine`."""

    name = "vllm"
    package = "vllm"
    ready_path = "/health"
    version_path = "/version"
    models_path = "/v1/models"
    metrics_path = "/metrics"
    reset_prefix_cache_path = "/reset_prefix_cache"
    flag_sources: tuple[str, ...] = (
        "engine/arg_utils.py",
        # Moved from the one to the other between 0.24 and 0.32.
        "entrypoints/openai/cli_args.py",
        "entrypoints/launchers/cli_args.py",
    )
    compile_patterns: tuple[str, ...] = (
        r"compilation during inference",
        r"Compiling a graph for compile range",
        r"torch\.compile took",
        r"Autotuning process starts",
    )
    continuous_usage = False
    patience_s = 20.0
    kills_itself = False
    usual_remains: tuple[str, ...] = ()

    _routing = VllmRouting()
    counting_route = _routing.counting_route
    counted_request = _routing.counted_request
    read_generated = _routing.read_generated
    read_routes = _routing.read_routes

    def argv(self, spec: ServerSpec, launch: Launch) -> list[str]:
        """Start by module: the `vllm` script of `vllm-cpu` looks for metadata that it lacks."""
        counting = launch.counting.flags if launch.counting is not None else ()
        given = set(flag_names([*spec.flags, *counting]))
        words = ["-m", "vllm.entrypoints.openai.api_server"]
        words += ["--model", str(launch.model_path), "--served-model-name", launch.served_name]
        words += ["--host", launch.host, "--port", str(launch.port)]
        words += ["--dtype", spec.dtype]
        words += ["--tensor-parallel-size", str(spec.tensor_parallel_size)]
        if spec.expert_parallel:
            words += ["--enable-expert-parallel"]
        if spec.load_format != "auto":
            words += ["--load-format", spec.load_format]
        if spec.max_model_len is not None:
            words += ["--max-model-len", str(spec.max_model_len)]
        if spec.overrides:
            words += ["--hf-overrides", json.dumps(dict(spec.overrides))]
        if not given & {"--enable-prefix-caching", "--no-enable-prefix-caching"}:
            words += ["--no-enable-prefix-caching"]
        if "--seed" not in given:
            words += ["--seed", "0"]
        if "--disable-uvicorn-access-log" not in given:
            # A line a request hides what an engine says before it fails.
            words += ["--disable-uvicorn-access-log"]
        if not launch.gpu_ids and not given & {"--enforce-eager", "--no-enforce-eager"}:
            # On a CPU compiling adds 20 s to every start and needs a C++ compiler.
            words += ["--enforce-eager"]
        # The last of two that contradict each other holds.
        return [*words, *spec.flags, *counting]

    def env(self, spec: ServerSpec, launch: Launch, inherited: Mapping[str, str]) -> dict[str, str]:
        """Pass the user's environment on, under what a start on this hardware needs."""
        passed = {name: inherited[name] for name in inherited.keys() - NOT_INHERITED}
        defaults = {} if launch.gpu_ids else _cpu_env(spec, launch)
        if launch.gpu_ids:
            placement = {"CUDA_VISIBLE_DEVICES": ",".join(launch.gpu_ids)}
        else:
            # CPU workers meet in a file there; on GPUs torch keeps compiled code there.
            placement = {"TMPDIR": str(launch.scratch)}
        return {
            **defaults,
            **passed,
            **SAME_EVERYWHERE,
            # Else the sockets of a killed server stay in the shared temporary folder.
            "VLLM_RPC_BASE_PATH": str(launch.scratch),
            **placement,
            **dict(spec.env),
            **counting_env(launch),
        }

    def recorded_env(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The engine's and its thread libraries' variables, less secrets and constants."""
        hidden = (*SAME_EVERYWHERE, "VLLM_RPC_BASE_PATH")
        return recorded(environment, prefixes=RECORDED_PREFIXES, hidden=hidden)

    def check_flags(self, spec: ServerSpec, known: frozenset[str] | None, *, label: str) -> None:
        """See `base.Engine`; `-O2` and the like are accepted as `-O`."""
        words = ["-O" if re.fullmatch(r"-O\d", word) else word for word in spec.flags]
        # Only one of two sets of overrides would hold.
        reserved = RESERVED_FLAGS | (OVERRIDES if spec.overrides else {})
        check_flags(words, known=known, reserved=reserved, label=label, see=HELP, negatable=True)

    def known_flags(self, sources: Mapping[str, str]) -> frozenset[str] | None:
        """Read `add_argument` calls and the fields of the front end's dataclass.

        That takes 0.03 s; asking vLLM itself imports torch and takes 10 s.
        """
        if self.flag_sources[0] not in sources:
            return None
        trees = [ast.parse(source) for source in sources.values()]
        found = {flag for tree in trees for flag in _declared_flags(tree)}
        return frozenset(found | {"--help", "-h", "-O"})

    def caches_prefixes(self, spec: ServerSpec) -> bool:
        """Only where the spec asks for it."""
        return "--enable-prefix-caching" in flag_names(spec.flags)

    def gpus_needed(self, spec: ServerSpec) -> int:
        """Multiply tensor, pipeline and data parallel size."""
        pipeline = int_flag(spec.flags, "--pipeline-parallel-size", "-pp")
        data = int_flag(spec.flags, "--data-parallel-size", "-dp")
        return spec.tensor_parallel_size * pipeline * data

    def memory_gib(self, environment: Mapping[str, str], *, weights_gib: float) -> float:
        """Weights, KV cache and what the processes themselves need."""
        name, default = KV_CACHE_SPACE
        value = environment.get(name, default)
        try:
            kv_cache_gib = float(value)
        except ValueError:
            raise UsageError(f"{name}={value!r}: give a whole number of GiB, such as 1") from None
        return weights_gib + kv_cache_gib + PROCESS_OVERHEAD_GIB

    def phase(self, line: str) -> str | None:
        """See `base.Engine`."""
        return phase_of(line, PHASES)

    def cause(self, lines: Sequence[str]) -> str | None:
        """The last error that is no report of another process's error."""
        return last_error(lines, reports=REPORTS)

    def parse_facts(self, lines: Iterable[str]) -> EngineFacts:
        """See `first_facts`; the cores and the caches are those of all workers."""
        log = tuple(lines)
        bound = (match[1] for line in log if (match := WORKER_CORES.search(line)))
        cores = {int(core) for found in bound for core in found.split(",")}
        return EngineFacts(
            **first_facts(log, FACTS),
            caches_cold=_caches_cold(log),
            worker_cores=tuple(sorted(cores)) or None,
        )

    def counters(self, metrics_text: str) -> dict[str, float]:
        """Sums over engines and labels; `kv_cache_tokens` comes from the cache's description."""
        values: dict[str, float] = {}
        for sample in samples(metrics_text):
            if name := COUNTERS.get(sample.name):
                values[name] = values.get(name, 0.0) + sample.value
            elif sample.name == CACHE_CONFIG:
                if tokens := _cache_tokens(sample.labels):
                    values["kv_cache_tokens"] = values.get("kv_cache_tokens", 0.0) + tokens
                if (size := sample.labels.get("block_size", "")).isdecimal():
                    values["kv_block_tokens"] = float(size)
        return values


def _caches_cold(log: Sequence[str]) -> bool | None:
    """A start waits for what one worker compiles, whatever the others find in the cache."""
    if any(map(COMPILED.search, log)):
        return True
    if any(map(LOADED.search, log)):
        return False
    return True if any(map(COMPILE_ENDED.search, log)) else None


def _cpu_env(spec: ServerSpec, launch: Launch) -> dict[str, str]:
    environment = dict([KV_CACHE_SPACE])
    workers = spec.tensor_parallel_size
    if len(launch.core_ids) <= FEW_CORES or workers > 1:
        environment[OMP_BINDING] = _binding(launch.core_ids, workers=workers)
    return environment


def _binding(core_ids: Sequence[int], *, workers: int) -> str:
    """Equal shares of the cores, `0,1|2,3`: vLLM's own choice wants a NUMA node per worker."""
    share = len(core_ids) // workers
    if share == 0:
        return "nobind"
    shares = (core_ids[rank * share : (rank + 1) * share] for rank in range(workers))
    return "|".join(",".join(str(core) for core in cores) for cores in shares)


def _cache_tokens(labels: Mapping[str, str]) -> float | None:
    """Versions before 0.24 tell only blocks."""
    size = labels.get("kv_cache_size_tokens", "")
    if size.isdecimal():
        return float(size)
    blocks, block_size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
    if blocks.isdecimal() and block_size.isdecimal():
        return float(int(blocks) * int(block_size))
    return None


def _declared_flags(tree: ast.Module) -> Iterator[str]:
    yield from added_arguments(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith("FrontendArgs"):
            fields = (field.target for field in node.body if isinstance(field, ast.AnnAssign))
            names = (field.id for field in fields if isinstance(field, ast.Name))
            yield from (f"--{name.replace('_', '-')}" for name in names)
