"""SGLang against real logs, metrics, and sources in both styles that it had."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.engines import ENGINES, EngineFacts, Launch
from pytest_moeperf.errors import UsageError
from pytest_moeperf.records import ServerSpec

SGLANG = ENGINES["sglang"]
LOGS = Path(__file__).parents[1] / "data" / "logs"
MIXTRAL = "sglang-0.5.16-mixtral-8x7b-tp2.log"
SPEC = ServerSpec(model="mixtral-8x7b", max_model_len=4096)

METRICS = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="0"} 100.0
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{engine_type="unified",model_name="m"} 320.0
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{engine_type="unified",model_name="m"} 64.0
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{cache_source="device",model_name="m"} 96.0
sglang:cached_tokens_total{cache_source="host",model_name="m"} 32.0
# TYPE sglang:num_requests_total counter
sglang:num_requests_total{model_name="m"} 8.0
# TYPE sglang:num_retracted_requests_total counter
sglang:num_retracted_requests_total{model_name="m",tp_rank="0"} 2.0
# TYPE sglang:max_total_num_tokens gauge
sglang:max_total_num_tokens{model_name="m",tp_rank="0"} 1.331517e+06
sglang:max_total_num_tokens{model_name="m",tp_rank="1"} 1.331517e+06
# TYPE sglang:page_size gauge
sglang:page_size{model_name="m",tp_rank="0"} 1.0
"""


def launch(**changes):
    fields = {
        "model_path": Path("/models/mixtral-8x7b"),
        "served_name": "mixtral-8x7b",
        "port": 8001,
        "context_tokens": 4096,
        "scratch": Path("/scratch"),
        "core_ids": (0, 1),
        "gpu_ids": ("1",),
    }
    return Launch(**{**fields, **changes})


def log(name):
    return (LOGS / name).read_text(encoding="utf-8").splitlines()


def test_the_command_line_is_seeded_with_metrics_and_without_prefix_cache():
    assert SGLANG.argv(SPEC, launch()) == [
        *("-m", "sglang.launch_server"),
        *("--model-path", "/models/mixtral-8x7b", "--served-model-name", "mixtral-8x7b"),
        *("--host", "127.0.0.1", "--port", "8001", "--dtype", "bfloat16", "--tp-size", "1"),
        *("--context-length", "4096", "--disable-radix-cache", "--random-seed", "0"),
        *("--log-level-http", "warning", "--enable-metrics"),
    ]


def test_other_sizes_are_told_in_json():
    words = SGLANG.argv(ServerSpec("m", overrides=(("num_experts_per_tok", 1),)), launch())
    assert words[words.index("--json-model-override-args") + 1] == '{"num_experts_per_tok": 1}'


def test_expert_parallelism_spans_all_gpus_of_the_server():
    spec = ServerSpec("m", tensor_parallel_size=2, expert_parallel=True, load_format="dummy")
    words = SGLANG.argv(spec, launch())
    assert words[words.index("--tp-size") :][:6] == [
        *("--tp-size", "2", "--ep-size", "2", "--load-format", "dummy"),
    ]


def test_flags_of_the_spec_replace_the_defaults_of_the_same_name():
    spec = ServerSpec("m", flags=("--random_seed=7", "--radix-eviction-policy", "lru"))
    words = SGLANG.argv(spec, launch())
    assert "--random-seed" not in words
    assert "--disable-radix-cache" not in words
    assert words[-3:] == ["--random_seed=7", "--radix-eviction-policy", "lru"]


def test_prefixes_are_kept_only_where_the_spec_says_how():
    assert not SGLANG.caches_prefixes(SPEC)
    assert SGLANG.caches_prefixes(ServerSpec("m", flags=("--radix-eviction-policy", "lfu")))


def test_without_gpus_it_is_told_so():
    assert SGLANG.argv(SPEC, launch(gpu_ids=()))[-3:] == ["--device", "cpu", "--enable-metrics"]
    assert "CUDA_VISIBLE_DEVICES" not in SGLANG.env(SPEC, launch(gpu_ids=()), {})


def test_its_environment_makes_health_checks_free_and_its_end_sure():
    inherited = {"HOME": "/home/me", "TMPDIR": "/elsewhere", "PYTHONPATH": "/here", "PATH": "/bin"}
    env = SGLANG.env(SPEC, launch(gpu_ids=("1", "2")), inherited)
    assert env["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] == "0"
    assert env["SGL_FORCE_SHUTDOWN"] == "1"
    assert env["CUDA_VISIBLE_DEVICES"] == "1,2"
    assert env["TMPDIR"] == "/scratch"
    assert env["TORCHINDUCTOR_CACHE_DIR"] == "/home/me/.cache/torchinductor"
    assert env["PATH"] == "/bin"
    assert "PYTHONPATH" not in env


def test_the_users_cache_and_the_specs_variables_go_first():
    spec = ServerSpec("m", env=(("SGL_FORCE_SHUTDOWN", "0"),))
    env = SGLANG.env(spec, launch(), {"HOME": "/h", "TORCHINDUCTOR_CACHE_DIR": "/fast"})
    assert env["TORCHINDUCTOR_CACHE_DIR"] == "/fast"
    assert env["SGL_FORCE_SHUTDOWN"] == "0"


def test_the_recorded_environment_has_no_secrets_no_constants_and_no_gpu_numbers():
    inherited = {
        "HOME": "/h",
        "SGLANG_MOE_CONFIG_DIR": "/configs",
        "SGLANG_ADMIN_KEY": "abcdefgh",
        "NCCL_NVLS_ENABLE": "0",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    assert SGLANG.recorded_env(SGLANG.env(SPEC, launch(), inherited)) == {
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "NCCL_NVLS_ENABLE": "0",
        "SGLANG_MOE_CONFIG_DIR": "/configs",
    }


def test_facts_of_a_log_on_two_gpus():
    assert SGLANG.parse_facts(log(MIXTRAL)) == EngineFacts(
        kv_cache_tokens=1_331_517,
        kv_cache_gib=81.26,
        weights_gib=43.51,
        # 1.00 GB for prefill and 0.16 GB for decode; both ranks say so.
        graphs_gib=1.16,
        moe_backend="triton",
        moe_config="triton_3_1_0/E=8,N=7168,device_name=NVIDIA_H200.json",
    )


CONFIGS = "/env/configs/triton_3_6_0/E=8,N=14336,device_name=NVIDIA_H200"


@pytest.mark.parametrize(
    ("line", "fact", "value"),
    [
        ("KV Cache is allocated. #tokens: 4096, K size: 0.25 GB, V size: 0.25 GB",
         "kv_cache_gib", 0.5),
        ("KV Cache is allocated. #tokens: 4096, KV size: 1.75 GB", "kv_cache_gib", 1.75),
        ("KV Cache is allocated. #tokens: 4096, KV size: 1.75 GB", "kv_cache_tokens", 4096),
        ("Load weight end. elapsed=3.50 s, type=X, fp8, avail mem=1.00 GB, mem usage=86.99 GB.",
         "weights_gib", 86.99),
        (f"Using MoE kernel config from {CONFIGS}.json.", "moe_config",
         "triton_3_6_0/E=8,N=14336,device_name=NVIDIA_H200.json"),
        (f"Using MoE kernel config from {CONFIGS}_down.json.", "moe_config", None),
        (f"Using default MoE kernel config. Config file not found at {CONFIGS}.json, you can",
         "moe_config", "default"),
        (f"Using default MoE kernel config. Config file not found at {CONFIGS}_down.json, you can",
         "moe_config", None),
        ("Using MoE kernel config with down_moe=False.", "moe_backend", "triton"),
        ("server_args=ServerArgs(a=1, moe_runner_backend='flashinfer_cutlass', b=2)",
         "moe_backend", "flashinfer_cutlass"),
        ("ServerArgs(moe_runner_backend='auto', speculative_moe_runner_backend='cutlass')",
         "moe_backend", None),
    ],
)  # fmt: skip
def test_other_wordings_of_a_fact(line, fact, value):
    assert getattr(SGLANG.parse_facts([f"[2026-11-22 02:54:58 TP0] {line}"]), fact) == value


def test_graphs_of_all_runs_count_once_for_each_rank():
    old = "Capture {} end. Time elapsed: 3.10 s. mem usage={} GB. avail mem=9.00 GB."
    lines = [
        old.format("cuda graph", "0.75"),
        old.format("cuda graph", "0.80"),
        old.format("piecewise CUDA graph", "1.25"),
        old.format("draft cuda graph", "-0.10"),
    ]
    assert SGLANG.parse_facts(lines).graphs_gib == 1.9


def test_a_log_that_tells_nothing_gives_no_facts():
    assert SGLANG.parse_facts(["", "hello"]) == EngineFacts()


@given(st.lists(st.text()))
def test_no_log_breaks_the_parsers(lines):
    SGLANG.parse_facts(lines)
    SGLANG.cause(lines)
    for line in lines:
        SGLANG.phase(line)


def test_the_phases_of_a_start_come_in_order():
    phases = [phase for line in log(MIXTRAL) if (phase := SGLANG.phase(line))]
    assert list(dict.fromkeys(phases)) == [
        "starting the engine's processes",
        "loading weights",
        "preparing the engine",
        "capturing CUDA graphs",
        "warming up",
    ]


@pytest.mark.parametrize(
    ("line", "compiles"),
    [
        ("Try DeepGEMM JIT Compiling for <F8> N=4096, K=7168", True),
        ("Compiling a graph for dynamic shape takes 3.20 s", True),
        ("Decode batch, #running-req: 100, #token: 10500, cuda graph: True", False),
        ("Cache flushed successfully!", False),
    ],
)
def test_compilations_are_told_from_the_chatter_of_a_play(line, compiles):
    found = any(re.search(pattern, line) for pattern in SGLANG.compile_patterns)
    assert found == compiles


def test_a_real_burst_has_no_line_that_tells_of_a_compilation():
    lines = log(MIXTRAL)
    patterns = SGLANG.compile_patterns
    assert not [line for line in lines if any(re.search(each, line) for each in patterns)]


def test_the_cause_is_the_error_of_the_rank_that_failed():
    assert SGLANG.cause(log("sglang-0.5.16-routed-experts-crash.log")) == (
        "RuntimeError: The expanded size of the tensor (32) must match the existing size (4096) "
        "at non-singleton dimension 2.  Target sizes: [4096, 1, 32, 2].  Tensor sizes: [4096, 2]"
    )
    assert SGLANG.cause(["launch_server.py: error: unrecognized arguments: --x"]) == (
        "launch_server.py: error: unrecognized arguments: --x"
    )
    assert SGLANG.cause(log(MIXTRAL)) is None


def test_counters_are_summed_and_what_lags_is_left_out():
    # 96 tokens found on the device and 32 on the host, of all 320 that were looked up.
    assert SGLANG.counters(METRICS) == {
        "prompt_tokens": 320.0,
        "generation_tokens": 64.0,
        "prefix_cache_hits": 128.0,
        "prefix_cache_queries": 320.0,
        "requests_finished": 8.0,
        "preemptions": 2.0,
        "kv_cache_tokens": 1_331_517.0,
        "kv_block_tokens": 1.0,
    }


def test_nothing_is_found_in_a_cache_of_which_nothing_is_said():
    line = "# TYPE sglang:prompt_tokens_total counter\nsglang:prompt_tokens_total 5.0\n"
    assert SGLANG.counters(line) == {
        "prompt_tokens": 5.0,
        "prefix_cache_queries": 5.0,
        "prefix_cache_hits": 0.0,
    }
    assert SGLANG.counters("") == {}


@pytest.mark.parametrize(
    ("flags", "gpus"),
    [
        ((), 2),
        (("--pp-size", "2"), 4),
        (("--pipeline_parallel_size=3",), 6),
        (("--dp-size=2",), 4),
        (("--dp-size", "2", "--enable-dp-attention"), 2),
    ],
)
def test_gpus_are_counted_over_all_kinds_of_parallelism(flags, gpus):
    assert SGLANG.gpus_needed(ServerSpec("m", tensor_parallel_size=2, flags=flags)) == gpus


def test_memory_is_weights_and_processes():
    assert SGLANG.memory_gib({}, weights_gib=0.5) == 4.5


CALLS = """
class ServerArgs:
    tp_size: int = 1
    model_config: Optional[ModelConfig] = None

    def add_cli_args(parser):
        parser.add_argument("--model-path", "--model", type=str, required=True)
        parser.add_argument("--moe-runner-backend", choices=CHOICES)
        parser.add_argument("positional")
"""
ANNOTATIONS = """
@dataclasses.dataclass
class PortArgs:
    ipc_name: A[str, "no flag of the server"]

@dataclasses.dataclass
class ServerArgs:
    model_path: A[str, Arg(help="Path.", aliases=["--model"])]
    enable_metrics: A[bool, "Bare help."] = False
    ep_size: A[int, Arg(help="Experts.", aliases=["--expert-parallel-size", "--ep"])] = 1
    fp8_gemm_runner_backend: A[str, Arg(help="Kernel.", cli_name="--fp8-gemm-backend")] = "auto"
    disable_cuda_graph: A[bool, Arg(no_cli=True)] = False
    dtype: A[
        str,
        Arg(help="Precision.", no_cli=False),
    ] = "auto"
    resolved: dict = None

    def add_cli_args(parser):
        parser.add_argument("--disable-cuda-graph", action=DeprecatedAction)
"""


@pytest.mark.parametrize(
    ("source", "flags"),
    [
        (CALLS, {"--model-path", "--model", "--moe-runner-backend"}),
        (
            ANNOTATIONS,
            {
                *("--model-path", "--model", "--enable-metrics", "--fp8-gemm-backend", "--dtype"),
                *("--ep-size", "--expert-parallel-size", "--ep", "--disable-cuda-graph"),
            },
        ),
    ],
    ids=["calls, as in 0.5.11", "annotations, as in 0.5.16"],
)
def test_flags_are_read_from_sources_without_running_them(source, flags):
    assert SGLANG.known_flags({"srt/server_args.py": source}) == flags | {"--help", "-h"}


@given(st.sets(st.from_regex(r"[a-z]{2,8}_[a-z]{1,8}", fullmatch=True)))
def test_every_annotated_field_is_a_flag_with_dashes(fields):
    body = "".join(f"    {name}: A[str, 'What it does.'] = None\n" for name in fields) or "    ..."
    found = SGLANG.known_flags({"srt/server_args.py": f"class ServerArgs:\n{body}"})
    assert found - {"--help", "-h"} == {f"--{name.replace('_', '-')}" for name in fields}


def test_without_the_source_nothing_is_known():
    assert SGLANG.known_flags({}) is None
    SGLANG.check_flags(ServerSpec("m", flags=("--xyzzy",)), None, label="sglang")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--moe-runner-backnd", "sglang==0.5.11 has no such flag; did you mean --moe-runner-ba"),
        # Flags of SGLang have no counterpart that switches them off.
        ("--no-moe-runner-backend", "sglang==0.5.11 has no such flag"),
        ("--tp", r"set by the plugin; use ServerSpec\(tensor_parallel_size=…\)"),
        ("--expert_parallel_size=2", r"set by the plugin; use ServerSpec\(expert_parallel=True\)"),
        ("--enable-metrics", "set by the plugin; use nothing, it is always on"),
    ],
)
def test_a_flag_that_is_not_the_users_to_set_is_refused_with_what_to_do(flag, message):
    known = SGLANG.known_flags({"srt/server_args.py": CALLS})
    with pytest.raises(UsageError, match=message):
        SGLANG.check_flags(ServerSpec("m", flags=(flag,)), known, label="sglang==0.5.11")
