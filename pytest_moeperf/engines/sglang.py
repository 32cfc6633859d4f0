"""SGLang, from 0.5.11: flags, environment, log lines and metrics."""

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
from pytest_moeperf.engines.sglang_routing import SglangRouting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pytest_moeperf.records import ServerSpec

__all__ = ["Sglang"]

_PARALLEL = "ServerSpec(tensor_parallel_size=…)"
_EXPERTS = "ServerSpec(expert_parallel=True)"
_NO_KEY = "nothing, a server that only this machine reaches needs no key"
RESERVED_FLAGS = {
    "--admin-api-key": _NO_KEY,
    "--api-key": _NO_KEY,
    "--context-length": "ServerSpec(max_model_len=…)",
    "--dtype": "ServerSpec(dtype=…)",
    "--enable-metrics": "nothing, it is always on",
    "--ep": _EXPERTS,
    "--ep-size": _EXPERTS,
    "--expert-parallel-size": _EXPERTS,
    "--host": "nothing, servers listen on 127.0.0.1 only",
    "--load-format": "ServerSpec(load_format=…)",
    "--model": "ServerSpec(model=…)",
    "--model-path": "ServerSpec(model=…)",
    "--port": "pytest's --server-port",
    "--served-model-name": "ServerSpec(model=…)",
    "--tensor-parallel-size": _PARALLEL,
    "--tp": _PARALLEL,
    "--tp-size": _PARALLEL,
}
OVERRIDES = {"--json-model-override-args": "ServerSpec(overrides=…)"}
HELP = "python -m sglang.launch_server --help"

PREFIX_CACHE_FLAGS = frozenset(
    {"--enable-hierarchical-cache", "--radix-cache-backend", "--radix-eviction-policy"}
)
"""There is no flag that switches the prefix cache on; who says how it works wants it."""

PROCESS_OVERHEAD_GIB = 4.0
"""Resident memory of server, scheduler and detokenizer without weights and KV cache."""

PHASES = (
    ("server_args=", "starting the engine's processes"),
    ("Load weight begin", "loading weights"),
    ("Load weight end", "preparing the engine"),
    ("Memory pool end", "preparing the engine"),
    # Not its end: that of one rank may come after the line that ends this phase.
    ("graph begin.", "capturing CUDA graphs"),
    # The HTTP server opens at once, and says so only to those who set its log level.
    ("max_total_num_tokens=", "warming up"),
)

_CONFIG = r"(?:\S*?/)?((?:triton_\w+/)?[^/\s]+\.json)"
_DEFAULT = "Using (default) MoE kernel config"
FACTS: Facts = tuple(
    (name, re.compile(pattern), convert)
    for name, pattern, convert in (
        # What is called GB is 2^30 bytes.
        ("weights_gib", r"Load weight end\. .*mem usage=([\d.]+) GB", float),
        ("kv_cache_tokens", r"KV Cache is allocated\..*#tokens: (\d+)", whole_number),
        (
            "kv_cache_gib",
            r"KV Cache is allocated\..* (?:K size: ([\d.]+) GB, V|KV) size: ([\d.]+) GB",
            lambda keys, values: round(float(keys or 0) + float(values), 2),
        ),
        # The default, `auto`, names none, but only the Triton kernels look for configurations.
        ("moe_backend", r"[( ]moe_runner_backend='(?!auto')(\w+)'", str),
        ("moe_backend", r"MoE (?:kernel config|config file not found)", lambda: "triton"),
        # Of the two projections of an expert the second may have a configuration of its own.
        (
            "moe_config",
            rf"^(?!.*_down\.json).*(?:[Uu]s(?:e|ing) MoE kernel config from {_CONFIG}|{_DEFAULT})",
            lambda tuned, default: tuned or default,
        ),
    )
)
GRAPHS = re.compile(
    r"Capture (?P<what>[\w -]+?) end\. (?:elapsed=|Time elapsed: )[\d.]+ s[,.] "
    r"mem usage=(?P<gib>-?[\d.]+) GB"
)

FIRST_STEP = re.compile(r"Capturing .*\| 1/\d+ \[(?:(\d+):)?(\d+):(\d+)<")
"""Progress of a capture: how long the first of its sizes took, in hours, minutes, seconds."""
COLD_STEP_S = 10
"""The first size has all kernels compiled that it needs: 65 to 77 s on an H200, of Mixtral-8x7B;
1.2 s where an earlier start had left them in a cache."""

COUNTERS = {
    "sglang:generation_tokens_total": "generation_tokens",
    "sglang:num_requests_total": "requests_finished",
    "sglang:num_retracted_requests_total": "preemptions",
    "sglang:cached_tokens_total": "prefix_cache_hits",
    "sglang:prompt_tokens_total": "prompt_tokens",
}
"""Requests are counted as their last chunk is sent. `num_running_reqs` and `num_queue_reqs` are
left out: 0.5.11 shows those of the last batch for up to 30 s after it."""
KV_CACHE_TOKENS = "sglang:max_total_num_tokens"
PAGE_TOKENS = "sglang:page_size"

NOT_INHERITED = frozenset({"PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP"})
"""They belong to this interpreter."""
RECORDED_PREFIXES = (
    *("SGLANG_", "SGL_", "CUDA_", "FLASHINFER_", "NCCL_", "NVSHMEM_", "TORCH_", "TRITON_"),
    *("OMP_", "KMP_", "GOMP_", "MKL_", "LD_PRELOAD"),
)
SAME_EVERYWHERE = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
    "PYTHONUNBUFFERED": "1",
    # Else every look at /health generates a token, and takes a second.
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0",
    # A client that went away must not keep the server: it would wait for its requests for ever.
    # SGLang warns of every SGL_ name and points to SGLANG_FORCE_SHUTDOWN, which it declares and
    # reads nowhere: in 0.5.11, 0.5.16 and 0.5.23 only this name ends it at once.
    "SGL_FORCE_SHUTDOWN": "1",
}


class Sglang:
    """Drives `sglang`; see `base.Engine`."""

    name = "sglang"
    package = "sglang"
    ready_path = "/health"
    version_path = "/server_info"
    models_path = "/v1/models"
    metrics_path = "/metrics"
    # Refused while a request is in flight, unless there is time to wait for it.
    reset_prefix_cache_path = "/flush_cache?timeout=10"
    flag_sources: tuple[str, ...] = ("srt/server_args.py",)
    compile_patterns: tuple[str, ...] = (
        r"DeepGEMM JIT Compiling",
        r"Compiling num tokens",
        r"Compiling a graph for dynamic shape",
        r"Autotuning for ",
        r"compilation during inference",
    )
    continuous_usage = True
    # It looks for the signal every 5 s, and gives its schedulers 15 s.
    patience_s = 30.0
    kills_itself = True
    usual_remains: tuple[str, ...] = (r"sglang_loads_\w+\.shm",)

    _routing = SglangRouting()
    counting_route = _routing.counting_route
    counted_request = _routing.counted_request
    read_generated = _routing.read_generated
    read_routes = _routing.read_routes

    def argv(self, spec: ServerSpec, launch: Launch) -> list[str]:
        """Start by module: every version has it, and no script of another environment is met."""
        given = set(flag_names(spec.flags))
        words = ["-m", "sglang.launch_server"]
        words += ["--model-path", str(launch.model_path), "--served-model-name", launch.served_name]
        words += ["--host", launch.host, "--port", str(launch.port)]
        words += ["--dtype", spec.dtype]
        words += ["--tp-size", str(spec.tensor_parallel_size)]
        if spec.expert_parallel:
            words += ["--ep-size", str(spec.tensor_parallel_size)]
        if spec.load_format != "auto":
            words += ["--load-format", spec.load_format]
        # Left to the model, 0.5.16 captures prefills of 8,192 tokens for models of shorter context
        # as well, and reads beyond their table of positions.
        words += ["--context-length", str(launch.context_tokens)]
        if spec.overrides:
            words += ["--json-model-override-args", json.dumps(dict(spec.overrides))]
        if not self.caches_prefixes(spec) and "--disable-radix-cache" not in given:
            words += ["--disable-radix-cache"]
        if "--random-seed" not in given:
            words += ["--random-seed", "0"]
        if "--log-level-http" not in given:
            # A line a request hides what an engine says before it fails.
            words += ["--log-level-http", "warning"]
        if not launch.gpu_ids and "--device" not in given:
            words += ["--device", "cpu"]
        counting = launch.counting.flags if launch.counting is not None else ()
        return [*words, "--enable-metrics", *spec.flags, *counting]

    def env(self, spec: ServerSpec, launch: Launch, inherited: Mapping[str, str]) -> dict[str, str]:
        """Pass the user's environment on, under what a start on this hardware needs."""
        passed = {name: inherited[name] for name in inherited.keys() - NOT_INHERITED}
        visible = ",".join(launch.gpu_ids)
        return {
            **_caches(inherited),
            **passed,
            **SAME_EVERYWHERE,
            # Its sockets and metrics files lie there; it does not remove them all.
            "TMPDIR": str(launch.scratch),
            **({"CUDA_VISIBLE_DEVICES": visible} if visible else {}),
            **dict(spec.env),
            **counting_env(launch),
        }

    def recorded_env(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The engine's and its libraries' variables, less secrets, constants and GPU numbers."""
        placement = ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES")
        hidden = (*SAME_EVERYWHERE, *_caches(environment), *placement)
        return recorded(environment, prefixes=RECORDED_PREFIXES, hidden=hidden)

    def check_flags(self, spec: ServerSpec, known: frozenset[str] | None, *, label: str) -> None:
        """See `base.Engine`."""
        # Only one of two sets of overrides would hold.
        reserved = RESERVED_FLAGS | (OVERRIDES if spec.overrides else {})
        check_flags(spec.flags, known=known, reserved=reserved, label=label, see=HELP)

    def known_flags(self, sources: Mapping[str, str]) -> frozenset[str] | None:
        """Read `add_argument` calls and the annotated fields that replaced most of them in 0.5.14.

        That takes 0.1 s; asking SGLang itself imports torch.
        """
        source = sources.get(self.flag_sources[0])
        if source is None:
            return None
        tree = ast.parse(source)
        return frozenset({"--help", "-h", *added_arguments(tree), *_annotated_fields(tree)})

    def caches_prefixes(self, spec: ServerSpec) -> bool:
        """Only where the spec says how."""
        return bool(PREFIX_CACHE_FLAGS & set(flag_names(spec.flags)))

    def gpus_needed(self, spec: ServerSpec) -> int:
        """Multiply tensor, pipeline and data parallel size, unless only attention is replicated."""
        flags = flag_names(spec.flags)
        shared = "--enable-dp-attention" in flags
        data = 1 if shared else int_flag(spec.flags, "--dp-size", "--data-parallel-size")
        pipeline = int_flag(spec.flags, "--pp-size", "--pipeline-parallel-size")
        return spec.tensor_parallel_size * pipeline * data

    def memory_gib(self, environment: Mapping[str, str], *, weights_gib: float) -> float:  # noqa: ARG002 - no variable of SGLang sets the size of its KV cache
        """Weights and processes; how much more the KV cache takes is a flag's matter."""
        return weights_gib + PROCESS_OVERHEAD_GIB

    def phase(self, line: str) -> str | None:
        """See `base.Engine`."""
        return phase_of(line, PHASES)

    def cause(self, lines: Sequence[str]) -> str | None:
        """The last error: when one rank fails, the others are killed."""
        return last_error(lines)

    def parse_facts(self, lines: Iterable[str]) -> EngineFacts:
        """See `first_facts`; graphs are captured in several runs, told by every rank."""
        log = tuple(lines)
        graphs: dict[str, float] = {}
        for match in filter(None, map(GRAPHS.search, log)):
            graphs.setdefault(match["what"], float(match["gib"]))
        taken = round(sum(graphs.values()), 2) if graphs else None
        return EngineFacts(
            **first_facts(log, FACTS), graphs_gib=taken, caches_cold=_caches_cold(log)
        )

    def counters(self, metrics_text: str) -> dict[str, float]:
        """Sums over labels; all prompt tokens are looked up in the prefix cache."""
        values: dict[str, float] = {}
        for sample in samples(metrics_text):
            if name := COUNTERS.get(sample.name):
                values[name] = values.get(name, 0.0) + sample.value
            elif sample.name == KV_CACHE_TOKENS:
                values["kv_cache_tokens"] = max(values.get("kv_cache_tokens", 0.0), sample.value)
            elif sample.name == PAGE_TOKENS:
                values["kv_block_tokens"] = sample.value
        if "prompt_tokens" in values:
            values["prefix_cache_queries"] = values["prompt_tokens"]
            values.setdefault("prefix_cache_hits", 0.0)
        return values


def _caches(inherited: Mapping[str, str]) -> dict[str, str]:
    """Else torch would keep compiled code in the temporary folder, which goes with the server."""
    home = inherited.get("HOME")
    return {"TORCHINDUCTOR_CACHE_DIR": f"{home}/.cache/torchinductor"} if home else {}


def _annotated_fields(tree: ast.Module) -> Iterator[str]:
    """Flags of `ServerArgs`' fields `name: A[type, "help"]` and `name: A[type, Arg(…)]`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == "ServerArgs":
            for field in node.body:
                match field:
                    case ast.AnnAssign(
                        target=ast.Name(id=name),
                        annotation=ast.Subscript(slice=ast.Tuple(elts=[_, meta, *_])),
                    ):
                        yield from _flags_of(name, meta)


def _caches_cold(log: Sequence[str]) -> bool | None:
    """No line tells of a cache, so the time does."""
    steps = [match.groups() for match in map(FIRST_STEP.search, log) if match]
    if not steps:
        return None
    longest_s = max(3600 * int(h or 0) + 60 * int(m) + int(s) for h, m, s in steps)
    return longest_s >= COLD_STEP_S


def _flags_of(field: str, meta: ast.expr) -> Iterator[str]:
    """A field's own flag and its aliases; none where it says `no_cli`."""
    said = {word.arg: word.value for word in meta.keywords} if isinstance(meta, ast.Call) else {}
    if _constants(said.get("no_cli")) == [True]:
        return
    renamed = _constants(said.get("cli_name"))
    names = [*(renamed or [f"--{field.replace('_', '-')}"]), *_constants(said.get("aliases"))]
    yield from (name for name in names if isinstance(name, str))


def _constants(node: ast.expr | None) -> list[object]:
    parts = node.elts if isinstance(node, ast.List) else [node]
    return [part.value for part in parts if isinstance(part, ast.Constant)]
