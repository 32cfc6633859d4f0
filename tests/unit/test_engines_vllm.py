"""vLLM against real logs, metrics and sources."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.engines import ENGINES, EngineFacts, Launch, engine_named, growth
from pytest_moeperf.engines.flags import flag_names
from pytest_moeperf.errors import UsageError
from pytest_moeperf.records import ServerSpec

VLLM = ENGINES["vllm"]
LOGS = Path(__file__).parents[1] / "data" / "logs"
SPEC = ServerSpec(model="mini-moe", max_model_len=2048)

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 320.0
# TYPE vllm:prefix_cache_queries_created gauge
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.7e+09
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 1.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 4.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="128",kv_cache_size_tokens="131072",num_gpu_blocks="1024"} 1.0
"""


def launch(**changes):
    fields = {
        "model_path": Path("/models/mini-moe"),
        "served_name": "mini-moe",
        "port": 8001,
        "context_tokens": 4096,
        "scratch": Path("/scratch"),
        "core_ids": (0, 1),
    }
    return Launch(**{**fields, **changes})


def log(name):
    return (LOGS / name).read_text(encoding="utf-8").splitlines()


def test_an_unknown_engine_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="engine 'tgi': unknown; valid are vllm, sglang"):
        engine_named("tgi")


def test_the_command_line_on_a_cpu_is_eager_seeded_and_without_prefix_cache():
    assert VLLM.argv(SPEC, launch()) == [
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--model", "/models/mini-moe", "--served-model-name", "mini-moe"),
        *("--host", "127.0.0.1", "--port", "8001", "--dtype", "bfloat16"),
        *("--tensor-parallel-size", "1", "--max-model-len", "2048"),
        *("--no-enable-prefix-caching", "--seed", "0", "--disable-uvicorn-access-log"),
        "--enforce-eager",
    ]


def test_flags_of_the_spec_replace_the_defaults_of_the_same_name():
    spec = ServerSpec(
        model="m", flags=("--enable_prefix_caching", "--seed=7", "--no-enforce-eager")
    )
    words = VLLM.argv(spec, launch())
    assert words[-3:] == ["--enable_prefix_caching", "--seed=7", "--no-enforce-eager"]
    assert "--no-enable-prefix-caching" not in words
    assert "--enforce-eager" not in words
    assert "--seed" not in words


def test_other_sizes_are_told_in_json():
    words = VLLM.argv(ServerSpec("m", overrides=(("num_experts_per_tok", 1), ("x", 2))), launch())
    assert words[words.index("--hf-overrides") + 1] == '{"num_experts_per_tok": 1, "x": 2}'


def test_experts_in_parallel_and_dummy_weights_are_settings_of_the_spec():
    spec = ServerSpec("m", tensor_parallel_size=2, expert_parallel=True, load_format="dummy")
    words = VLLM.argv(spec, launch())
    assert words[words.index("--tensor-parallel-size") :][:5] == [
        *("--tensor-parallel-size", "2", "--enable-expert-parallel", "--load-format", "dummy"),
    ]
    for flag in ("--enable-expert-parallel", "--load-format=dummy"):
        with pytest.raises(UsageError, match=f"{flag.partition('=')[0]}: set by the plugin"):
            VLLM.check_flags(ServerSpec("m", flags=(flag,)), None, label="vllm")


def test_prefixes_are_kept_only_where_the_spec_asks_for_it():
    assert not VLLM.caches_prefixes(SPEC)
    assert not VLLM.caches_prefixes(ServerSpec("m", flags=("--no-enable-prefix-caching",)))
    assert VLLM.caches_prefixes(ServerSpec("m", flags=("--enable_prefix_caching",)))


def test_graphs_and_compilation_stay_on_where_there_is_a_gpu():
    assert "--enforce-eager" not in VLLM.argv(SPEC, launch(gpu_ids=("GPU-1",)))


def test_a_gpu_server_sees_its_gpus_only_and_gets_no_cpu_settings():
    env = VLLM.env(SPEC, launch(gpu_ids=("GPU-1", "GPU-2")), {"PATH": "/bin"})
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    assert not [name for name in env if name.startswith("VLLM_CPU")]


@pytest.mark.parametrize(
    ("cores", "workers", "binding"),
    [
        ((0, 1), 1, "0,1"),
        ((4,), 1, "4"),
        ((0, 1, 2, 3), 2, "0,1|2,3"),
        ((0, 1, 2), 2, "0|1"),
        ((0,), 2, "nobind"),
        (tuple(range(16)), 2, "0,1,2,3,4,5,6,7|8,9,10,11,12,13,14,15"),
        (tuple(range(16)), 1, None),
    ],
)
def test_few_cores_are_all_used_and_many_are_left_to_the_engine(cores, workers, binding):
    spec = ServerSpec(model="m", tensor_parallel_size=workers)
    env = VLLM.env(spec, launch(core_ids=cores), {})
    assert env.get("VLLM_CPU_OMP_THREADS_BIND") == binding


def test_the_users_variables_go_before_defaults_and_the_specs_before_both():
    spec = ServerSpec(model="m", env=(("OMP_NUM_THREADS", "3"), ("VLLM_NO_USAGE_STATS", "0")))
    inherited = {"VLLM_CPU_OMP_THREADS_BIND": "0", "OMP_NUM_THREADS": "2", "HOME": "/home/me"}
    env = VLLM.env(spec, launch(), inherited)
    assert env["VLLM_CPU_OMP_THREADS_BIND"] == "0"
    assert env["OMP_NUM_THREADS"] == "3"
    assert env["VLLM_NO_USAGE_STATS"] == "0"
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert env["HOME"] == "/home/me"


def test_a_key_of_the_user_does_not_lock_the_server_and_this_python_does_not_leak():
    inherited = {"VLLM_API_KEY": "secret-key", "PYTHONPATH": "/here", "PYTHONHOME": "/there"}
    assert not inherited.keys() & VLLM.env(SPEC, launch(), inherited).keys()


def test_sockets_and_rendezvous_files_go_to_the_scratch_folder():
    env = VLLM.env(SPEC, launch(), {"TMPDIR": "/elsewhere"})
    assert env["TMPDIR"] == env["VLLM_RPC_BASE_PATH"] == "/scratch"


def test_the_recorded_environment_has_no_secrets_no_constants_and_no_paths_of_one_start():
    env = VLLM.env(
        SPEC, launch(), {"VLLM_SOME_TOKEN": "abcdefgh", "OMP_NUM_THREADS": "2", "HOME": "/h"}
    )
    assert VLLM.recorded_env(env) == {
        "OMP_NUM_THREADS": "2",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0,1",
    }


def test_facts_of_a_cpu_log():
    assert VLLM.parse_facts(log("vllm-0.32.0-cpu-mini-moe.log")) == EngineFacts(
        version="0.32.0",
        kv_cache_tokens=131_072,
        kv_cache_gib=1.0,
        moe_backend="CPU Unquantized",
        worker_cores=(0, 1),
    )


def test_facts_of_a_gpu_log():
    assert VLLM.parse_facts(log("vllm-0.24.0-mixtral-8x7b-tp2.log")) == EngineFacts(
        version="0.24.0",
        kv_cache_tokens=1_358_112,
        kv_cache_gib=82.89,
        weights_gib=43.51,
        graphs_gib=0.53,
        moe_backend="TRITON Unquantized",
        moe_config="E=8,N=7168,device_name=NVIDIA_H200.json",
        caches_cold=True,
    )


def test_facts_of_a_dense_model_have_none_of_experts():
    assert VLLM.parse_facts(log("vllm-0.24.0-llama-8b-tp1.log")) == EngineFacts(
        version="0.24.0",
        kv_cache_tokens=920_144,
        kv_cache_gib=112.32,
        weights_gib=14.97,
        graphs_gib=0.98,
        caches_cold=True,
    )


@pytest.mark.parametrize(
    ("line", "fact", "value"),
    [
        ("Model loading took 14.97 GiB and 2.042328 seconds", "weights_gib", 14.97),
        ("reserved 4.0 GiB memory for KV Cache", "kv_cache_gib", 4.0),
        ("Auto set (3.5/7.2) GiB for KV cache on node 0.", "kv_cache_gib", 3.5),
        ("Available KV cache memory: -1.25 GiB", "kv_cache_gib", -1.25),
        ("Using default MoE config. Performance might be sub-optimal!", "moe_config", "default"),
        ("Using FlashInfer CUTLASS Unquantized MoE backend out of …", "moe_backend",
         "FlashInfer CUTLASS Unquantized"),
    ],
)  # fmt: skip
def test_other_wordings_of_a_fact(line, fact, value):
    assert getattr(VLLM.parse_facts([line]), fact) == value


def test_cores_of_all_workers_count():
    lines = ["\tlocal_rank=0, core ids=[0, 1]", "\tlocal_rank=1, core ids=[2, 3]"]
    assert VLLM.parse_facts(lines).worker_cores == (0, 1, 2, 3)


def test_a_log_that_tells_nothing_gives_no_facts():
    assert VLLM.parse_facts(["", "hello"]) == EngineFacts()


@given(st.lists(st.text()))
def test_no_log_breaks_the_parsers(lines):
    VLLM.parse_facts(lines)
    VLLM.cause(lines)
    for line in lines:
        VLLM.phase(line)


def test_the_phases_of_a_start_come_in_order():
    phases = [
        phase for line in log("vllm-0.24.0-mixtral-8x7b-tp2.log") if (phase := VLLM.phase(line))
    ]
    assert list(dict.fromkeys(phases)) == [
        "starting the engine's processes",
        "loading weights",
        "preparing the engine",
        "compiling",
        "profiling memory",
        "warming up",
        "opening the HTTP server",
    ]


def test_compilations_under_load_are_told_from_the_monitors_announcement():
    lines = log("vllm-0.24.0-jit-under-load.log")
    ready = next(i for i, line in enumerate(lines) if "startup complete" in line)

    def compiles(line):
        return any(re.search(pattern, line) for pattern in VLLM.compile_patterns)

    assert [compiles(line) for line in lines[ready:]] == [False, True, True]


def test_the_cause_is_the_error_behind_the_api_servers_report():
    lines = [
        "(EngineCore pid=7) ERROR 11-22 [core.py:9] Traceback (most recent call last):",
        "(EngineCore pid=7) ERROR 11-22 [core.py:9] ValueError: not enough memory: 0.5 GiB",
        "(EngineCore pid=7) Process EngineCore:",
        "RuntimeError: Engine core initialization failed. See root cause above.",
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
    ]
    assert VLLM.cause(lines) == "ValueError: not enough memory: 0.5 GiB"
    assert VLLM.cause(["api_server.py: error: unrecognized arguments: --x"]) == (
        "api_server.py: error: unrecognized arguments: --x"
    )
    validation = [
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
        "  Value error, max_model_len (9999) is too long. [type=value_error, input_value=…]",
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error",
    ]
    assert VLLM.cause(validation) == "Value error, max_model_len (9999) is too long."
    assert VLLM.cause(["all is well"]) is None


def test_counters_are_summed_over_engines_and_labels():
    assert VLLM.counters(METRICS) == {
        "requests_running": 3.0,
        "prefix_cache_queries": 320.0,
        "requests_finished": 5.0,
        "kv_cache_tokens": 131_072.0,
        "kv_block_tokens": 128.0,
    }


def test_versions_that_tell_blocks_only_still_give_tokens():
    line = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0\n'
    assert VLLM.counters(line) == {"kv_cache_tokens": 1600.0, "kv_block_tokens": 16.0}
    assert VLLM.counters('vllm:cache_config_info{block_size="None"} 1.0\n') == {}


def test_growth_has_cumulative_counters_that_both_sides_have():
    before = {"prompt_tokens": 10.0, "requests_running": 2.0, "preemptions": 1.0}
    after = {"prompt_tokens": 25.0, "requests_running": 5.0, "generation_tokens": 3.0}
    assert growth(before, after) == {"prompt_tokens": 15.0}


def test_gpus_are_counted_over_all_kinds_of_parallelism():
    assert VLLM.gpus_needed(SPEC) == 1
    spec = ServerSpec(
        model="m", tensor_parallel_size=2, flags=("-pp", "2", "--data-parallel-size=3")
    )
    assert VLLM.gpus_needed(spec) == 12


def test_memory_is_weights_cache_and_processes():
    assert VLLM.memory_gib({}, weights_gib=0.5) == 4.0
    assert VLLM.memory_gib({"VLLM_CPU_KVCACHE_SPACE": "4"}, weights_gib=0.5) == 7.0


SOURCES = {
    "engine/arg_utils.py": """
class EngineArgs:
    def add_cli_args(parser):
        group.add_argument("--moe-backend", **kernel_kwargs["moe_backend"])
        group.add_argument("--tensor-parallel-size", "-tp", **parallel_kwargs["x"])
        group.add_argument("--enable-expert-parallel")
        group.add_argument(name, "--compilation-config", "-cc")
        other("--not-a-flag")
""",
    "entrypoints/launchers/cli_args.py": """
class BaseFrontendArgs:
    disable_log_stats: bool = False
class Unrelated:
    no_flag: int = 0
def make_arg_parser(parser):
    parser.add_argument("--headless", action="store_true")
""",
}


def test_flags_are_read_from_sources_without_running_them():
    assert VLLM.known_flags(SOURCES) == {
        *("--moe-backend", "--tensor-parallel-size", "-tp", "--enable-expert-parallel"),
        *("--compilation-config", "-cc", "--disable-log-stats", "--headless"),
        *("--help", "-h", "-O"),
    }
    assert VLLM.known_flags({}) is None


@pytest.mark.parametrize(
    "flags",
    [
        ("--moe-backend", "triton"),
        ("--moe_backend=triton",),
        ("--no-disable-log-stats",),
        ("-cc.mode=NONE", "-O2"),
        ("--compilation-config", '{"mode": "NONE"}'),
        ("--moe-backend", "-1"),
    ],
)
def test_flags_of_this_version_are_accepted(flags):
    spec = ServerSpec(model="m", flags=flags)
    VLLM.check_flags(spec, VLLM.known_flags(SOURCES), label="vllm==0.32.0")


def test_a_flag_that_this_version_lacks_is_refused_with_near_ones():
    spec = ServerSpec(model="m", flags=("--moe-backnd", "triton"))
    with pytest.raises(UsageError) as caught:
        VLLM.check_flags(spec, VLLM.known_flags(SOURCES), label="vllm==0.32.0")
    assert str(caught.value) == (
        "engine flag --moe-backnd: vllm==0.32.0 has no such flag; did you mean --moe-backend?"
    )


def test_a_flag_that_nothing_resembles_points_to_the_help():
    spec = ServerSpec(model="m", flags=("--xyzzy",))
    with pytest.raises(UsageError, match="no such flag; see the engine's --help=all"):
        VLLM.check_flags(spec, VLLM.known_flags(SOURCES), label="vllm")


def test_without_sources_only_the_plugins_own_flags_are_refused():
    VLLM.check_flags(ServerSpec(model="m", flags=("--xyzzy",)), None, label="vllm")
    spec = ServerSpec(model="m", flags=("--port=1",))
    with pytest.raises(UsageError, match="--port: set by the plugin; use pytest's --server-port"):
        VLLM.check_flags(spec, None, label="vllm")


def test_flag_names_leave_values_and_negative_numbers_out():
    words = ["--seed", "-1", "-tp", "2", "--a_b=c.d", "-cc.level=3", "value"]
    assert flag_names(words) == ["--seed", "-tp", "--a-b", "-cc"]
