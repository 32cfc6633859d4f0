"""SGLang's ways from start to end, and the logs of both engines on GPUs, with the fake engine."""

import http.client
import json
import subprocess

import pytest

from pytest_moeperf.client import Target
from pytest_moeperf.driver import play
from pytest_moeperf.engines import ENGINES, Launch
from pytest_moeperf.errors import ServerStartError, UsageError
from pytest_moeperf.features import features
from pytest_moeperf.installs.interpreter import probe_interpreter
from pytest_moeperf.launch import start_server
from pytest_moeperf.records import EngineInstall, RequestSpec, ServerSpec
from pytest_moeperf.server import attach_server
from pytest_moeperf.testing import FakeEngine, Script, make_fake_interpreter, write_script
from pytest_moeperf.workload import Plan

MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
TWO_REQUESTS = Plan(
    requests=tuple(
        RequestSpec(index=index, prompt=(1, 2, 3), output_tokens=6) for index in range(2)
    ),
    concurrency=1,
)


@pytest.fixture(scope="module")
def sglang(tmp_path_factory):
    """An install of a fake SGLang."""
    folder = tmp_path_factory.mktemp("sglang") / "env"
    return probe_interpreter(make_fake_interpreter(folder, distribution="sglang"), "sglang")


@pytest.fixture
def start(sglang, model, machine, tmp_path):
    servers = []

    def start_scripted(*flags, **script):
        write_script(sglang.python, **script)
        spec = ServerSpec("mini-moe", max_model_len=2048, flags=flags).on(sglang)
        servers.append(start_server(spec, model, machine, log_dir=tmp_path / "logs"))
        return servers[-1]

    yield start_scripted
    for server in servers:
        server.stop()


def test_a_fake_interpreter_passes_for_one_with_sglang(sglang):
    assert sglang.label == "sglang==0.5.16"
    flags = features(sglang.python, "sglang").flags
    assert "--moe-runner-backend" in flags
    assert "--moe-backend" not in flags


def test_a_server_generates_nothing_before_it_is_asked_to_and_ends_cleanly(start):
    server = start()
    assert server.counters()["prompt_tokens"] == 0
    assert server.facts.kv_cache_tokens == 131_072
    assert server.install.version == "0.5.16"
    assert "sglang.launch_server" in server.command
    server.stop()
    assert server.shutdown.clean


def test_every_chunk_of_a_stream_is_counted_although_it_has_no_token_ids(start):
    server = start(tokens_per_chunk=2)
    target = Target(server.url, server.model, continuous_usage=ENGINES["sglang"].continuous_usage)
    with server.observe() as observed:
        repeat = play(target, TWO_REQUESTS)
    assert [list(each.chunk_tokens) for each in repeat.requests] == [[2, 2, 2]] * 2
    assert [each.output_tokens for each in repeat.requests] == [6, 6]
    assert observed.counters == {
        "generation_tokens": 12,
        "preemptions": 0,
        "prefix_cache_hits": 0,
        "prefix_cache_queries": 6,
        "prompt_tokens": 6,
        "requests_finished": 2,
    }


def test_a_start_that_finds_no_weights_says_so(start, model):
    (model.path / "config.json").write_text("{}")
    (model.path / "model.safetensors").unlink(missing_ok=True)
    with pytest.raises(ServerStartError, match="RuntimeError: Cannot find any model weights"):
        start()


def test_a_flag_of_the_other_engine_is_refused(start):
    with pytest.raises(UsageError, match=r"--moe-backend: sglang==0\.5\.16 has no such flag"):
        start("--moe-backend", "triton")


def test_an_attached_server_tells_its_version_and_empties_its_cache_when_idle():
    with FakeEngine(Script(max_model_len=512, ttft_ms=60_000), engine="sglang") as engine:
        install = EngineInstall(engine="sglang", url=engine.url)
        server = attach_server(ServerSpec("mini-moe").on(install), install, model="mini-moe")
        assert server.install.version == "0.5.16"
        assert server.context_tokens == 512
        assert server.reset_prefix_cache()
        connection = http.client.HTTPConnection(engine.url.removeprefix("http://"), timeout=10)
        body = json.dumps({"model": "mini-moe", "prompt": [1], "max_tokens": 1})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        engine.wait_for_running(1)
        assert not server.reset_prefix_cache()
        connection.close()


@pytest.fixture(scope="module")
def pythons(sglang, tmp_path_factory):
    """Interpreters by engine whose start ends after its log."""
    vllm = make_fake_interpreter(tmp_path_factory.mktemp("vllm") / "env", start_exit_code=0)
    write_script(sglang.python, start_exit_code=0)
    return {"vllm": vllm, "sglang": sglang.python}


@pytest.fixture
def start_log(pythons, tmp_path):
    """What a fake engine logs when the driver starts it on GPUs, as the driver reads it."""

    def facts(name, config, gpus, *, script=None, **settings):
        write_script(pythons[name], start_exit_code=0, **(script or {}))
        (tmp_path / "config.json").write_text(json.dumps(config))
        engine = ENGINES[name]
        spec = ServerSpec("m", tensor_parallel_size=gpus, load_format="dummy", **settings)
        launch = Launch(
            model_path=tmp_path,
            served_name="m",
            port=1,
            context_tokens=4096,
            scratch=tmp_path,
            gpu_ids=tuple(str(index) for index in range(gpus)),
        )
        done = subprocess.run(
            [pythons[name], *engine.argv(spec, launch)],
            env=engine.env(spec, launch, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
            capture_output=True,
            text=True,
            check=True,
        )
        return engine.parse_facts(done.stdout.splitlines())

    return facts


# Mixtral: 46,702,792,704 weights of 2 bytes, of which 1,314,816 are in routers and norms.
# Llama: 8,030,261,248, of which 266,240 are in norms.
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("config", "gpus", "takes"),
    [
        (MIXTRAL, 1, (86.99, 131_072)),
        (MIXTRAL, 2, (43.50, 65_536)),
        (LLAMA, 1, (14.96, 131_072)),
    ],
    ids=["mixtral", "mixtral on two", "llama"],
)
def test_on_gpus_the_log_has_what_the_model_takes(start_log, engine, config, gpus, takes):
    weights_gib, kv_bytes_per_token = takes
    facts = start_log(engine, config, gpus)
    assert facts.weights_gib == weights_gib
    cache = facts.kv_cache_tokens * kv_bytes_per_token / 2**30
    assert cache == pytest.approx(facts.kv_cache_gib, rel=1e-3)
    assert facts.graphs_gib == 0.5
    assert (facts.moe_config is None) == (config is LLAMA)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_kernel_configuration_in_the_log_follows_the_split_or_the_script(start_log, engine):
    whole = start_log(engine, MIXTRAL, 2, expert_parallel=True).moe_config
    assert whole.endswith("E=4,N=14336,device_name=NVIDIA_H200.json")
    sliced = start_log(engine, MIXTRAL, 2).moe_config
    assert sliced.endswith("E=8,N=7168,device_name=NVIDIA_H200.json")
    assert start_log(engine, MIXTRAL, 1, script={"moe_config": "default"}).moe_config == "default"
