"""Experts are counted over HTTP, on fake servers of each kind, sound and faulty."""

import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace

import pytest

from pytest_moeperf.balance import RoutingCounts
from pytest_moeperf.engines import ENGINES, Launch
from pytest_moeperf.errors import (
    LoadError,
    RoutingError,
    ServerDiedError,
    ServerHungError,
    UsageError,
)
from pytest_moeperf.expertcount import count_experts
from pytest_moeperf.launch import ENGINE_PROBE_PATH, start_server
from pytest_moeperf.models import catalogue
from pytest_moeperf.records import EngineInstall, RequestSpec, ServerSpec
from pytest_moeperf.server import RunningServer, attach_server
from pytest_moeperf.testing import FakeEngine, Script, make_fake_interpreter
from pytest_moeperf.testing.scripted import ScriptedEngine

MOE = catalogue()["mini-moe"].architecture
SPEC = ServerSpec("mini-moe", counts_experts=True)
KINDS = {
    "vllm": ("vllm", "0.24.0", "answers"),
    "vllm 0.21": ("vllm", "0.21.0", "lists"),
    "vllm 0.20": ("vllm", "0.20.2", "probe"),
    "sglang": ("sglang", "0.5.16", "answers"),
}
REQUESTS = tuple(
    RequestSpec(index=index, prompt=tuple(range(3 + index)), output_tokens=2 + index)
    for index in range(3)
)


@pytest.fixture
def serve():
    """A server of a kind that counts experts, in a thread, by script."""
    engines = []

    def running(kind="vllm", **script):
        name, version, routing = KINDS[kind]
        faked = FakeEngine(Script(**{"routing": routing, **script}), engine=name).start()
        engines.append(faked)
        driver = ENGINES[name]
        route = driver.counting_route(SPEC, version=version, on_gpu=True, model_type="mixtral")
        return RunningServer(
            spec=SPEC,
            engine=driver,
            url=faked.url,
            model=faked.model,
            install=EngineInstall(engine=name, version=version),
            context_tokens=2048,
            counting=route,
        )

    yield running
    for faked in engines:
        faked.stop()


def expected(request):
    """Token p takes experts p + layer and p + layer + 1 of 8, as the script says by default."""
    tokens = len(request.prompt) + request.output_tokens - 1
    return [
        [[(token + layer) % 8, (token + layer + 1) % 8] for layer in range(8)]
        for token in range(tokens)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_request_has_the_experts_of_its_tokens(serve, kind):
    counted = count_experts(serve(kind), REQUESTS, MOE)
    for request, routed in zip(REQUESTS, counted, strict=True):
        assert routed.routes.tolist() == expected(request)
        assert routed.prompt_tokens == len(request.prompt)
        assert routed.output_tokens == request.output_tokens
        assert routed.prompt_ids == request.prompt
        assert routed.output_ids == tuple(range(request.output_tokens))
    counts = RoutingCounts(requests=counted, experts=8, layers=MOE.expert_layers)
    assert counts.prefill.tokens == 3 + 4 + 5
    assert counts.decode.tokens == 1 + 2 + 3
    # Layer 0: of the first request's tokens 0 to 3, the second's 0 to 5, the third's 0 to 7.
    assert counts.total.counts[0].tolist() == [4, 6, 6, 6, 5, 4, 3, 2]


@pytest.mark.parametrize("kind", ["vllm 0.20", "sglang"])
def test_a_text_has_as_many_tokens_as_the_server_says(serve, kind):
    text = RequestSpec(index=0, prompt="three plain words", output_tokens=2)
    (routed,) = count_experts(serve(kind), [text], MOE)
    assert routed.prompt_tokens == 3
    assert routed.put_in is None
    assert len(routed.routes) == 4


@pytest.mark.parametrize(("kind", "most"), [("vllm", 8), ("vllm 0.20", 1)])
def test_eight_requests_are_under_way_at_once_or_one_where_they_must_not_overlap(
    serve, kind, most, monkeypatch
):
    running = []
    generate = ScriptedEngine._generate

    async def noting(self, generation, emit):
        running.append(self.counts.running + 1)
        await generate(self, generation, emit)

    monkeypatch.setattr(ScriptedEngine, "_generate", noting)
    many = [replace(REQUESTS[0], index=index) for index in range(16)]
    count_experts(serve(kind, ttft_ms=30), many, MOE)
    assert len(running) == 16
    # A busy machine may be slow to send eight.
    assert most / 2 < max(running) <= most


def test_progress_is_told_after_every_request(serve):
    told = []
    count_experts(serve(), REQUESTS, MOE, on_progress=lambda *of: told.append(of))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "request 0: (vLLM's answer|SGLang's answer|the probe in vLLM's worker)"),
        ("short", "request 0: routes of 3 tokens: 3 of the prompt and 2 of the output have 4"),
        ("layers", "request 0: .*(7, 2|bytes: 8 layers|in layers)"),
    ],
)
def test_routes_that_are_not_whole_are_an_error_of_their_request(serve, kind, fault, message):
    server = serve(kind, routing_fault=fault)
    with pytest.raises(RoutingError, match=f"mini-moe counting, {message}"):
        count_experts(server, REQUESTS[:1], MOE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("zeros", "layer 0: experts \\[0, 0\\], but a token takes an expert once"),
        ("range", "expert 8, but there are only 0 to 7"),
    ],
)
def test_routes_that_cannot_be_true_are_an_error_when_they_are_counted(serve, kind, fault, message):
    counted = count_experts(serve(kind, routing_fault=fault), REQUESTS, MOE)
    counts = RoutingCounts(requests=counted, experts=8, layers=MOE.expert_layers)
    with pytest.raises(RoutingError, match=message):
        _ = counts.prefill


def test_a_collapsed_layer_is_counted_as_such(serve):
    counted = count_experts(serve(collapsed_layers=(2,)), REQUESTS, MOE)
    counts = RoutingCounts(requests=counted, experts=8, layers=MOE.expert_layers).total
    assert counts.counts[2].tolist() == [18, 18, 0, 0, 0, 0, 0, 0]


def test_experts_are_chosen_as_often_as_the_script_says(serve):
    weights = (4.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    many = [RequestSpec(index=0, prompt=(1,) * 200, output_tokens=1)]
    counted = count_experts(serve(expert_weights=weights), many, MOE)
    counts = RoutingCounts(requests=counted, experts=8, layers=MOE.expert_layers).total.counts
    # Expert 0 is the first choice with 4 in 11, else the second with 4 in 10: 0.62 of tokens.
    assert counts[:, 0].sum() / (8 * 200) == pytest.approx(4 / 11 + 7 / 11 * 0.4, abs=0.05)


def test_a_server_that_refuses_is_quoted(serve):
    with pytest.raises(LoadError, match=r"/v1/completions answers HTTP 400: .*context length is 4"):
        count_experts(serve(max_model_len=4), REQUESTS, MOE)


def test_too_few_tokens_are_an_error(serve):
    with pytest.raises(
        LoadError, match="request 0: the server counted 3 tokens of prompt and 1 of"
    ):
        count_experts(serve(short_by_tokens=1), REQUESTS[:1], MOE)


@pytest.mark.parametrize("kind", ["vllm", "vllm 0.20"])
def test_a_server_that_stands_still_has_hung(serve, kind):
    server = serve(kind, hang_after_requests=1)
    began = time.monotonic()
    with pytest.raises(
        ServerHungError, match=r"mini-moe counting: .* finished nothing for"
    ) as hung:
        count_experts(server, REQUESTS, MOE, stall_timeout_s=0.4)
    assert hung.value.elapsed_s >= 0.4
    assert time.monotonic() - began < 10


def test_a_long_answer_is_no_standstill(serve):
    """Its tokens show in the counters, although nothing is finished within the patience."""
    slow = serve(itl_ms=40.0)
    (routed,) = count_experts(
        slow, [RequestSpec(index=0, prompt=(1,), output_tokens=40)], MOE, stall_timeout_s=0.8
    )
    assert len(routed.routes) == 40


def test_an_interruption_ends_what_is_under_way(serve):
    server = serve(ttft_ms=60_000)

    def interrupt():
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        count_experts(server, REQUESTS, MOE)
    thread.join()
    assert not [each for each in threading.enumerate() if each.name.startswith("count-experts")]


def test_a_server_that_does_not_count_is_refused(serve):
    server = serve()
    server.counting = None
    with pytest.raises(UsageError, match=r"ask for ServerSpec\(…, counts_experts=True\)"):
        count_experts(server, REQUESTS, MOE)


def test_an_attached_server_cannot_be_made_to_count():
    install = EngineInstall(engine="vllm", url="http://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"cannot be made to count experts; use an installed"):
        attach_server(SPEC.on(install), install, model="mini-moe")


@pytest.fixture
def start(make_spec, model, machine, tmp_path):
    """A process with a fake vLLM on a CPU, by script."""
    servers = []

    def start_scripted(*, of=model, **script):
        spec = replace(make_spec(**script), counts_experts=True)
        servers.append(start_server(spec, of, machine, log_dir=tmp_path / "logs"))
        return servers[-1]

    yield start_scripted
    for server in servers:
        server.stop()


def test_a_server_on_a_cpu_imports_the_probe_and_tells_its_routes(start):
    server = start()
    assert server.counting.name == "a probe in vLLM's worker"
    assert "moeperf_probe.vllm.RoutingProbe" in server.command
    assert server.spec.label == "mini-moe counting"
    counted = count_experts(server, REQUESTS, MOE)
    assert [each.routes.tolist() for each in counted] == [expected(each) for each in REQUESTS]


def test_a_server_that_dies_is_told_with_its_log(start):
    server = start(die_after_requests=1, die_log=["RuntimeError: no more experts"])
    with pytest.raises(ServerDiedError, match="died while in use: RuntimeError: no more experts"):
        count_experts(server, REQUESTS, MOE)


def test_a_dense_model_has_nothing_to_count(start, model):
    dense = replace(model, architecture=catalogue()["mini-dense"].architecture)
    with pytest.raises(UsageError, match="has no experts to count; choose a mixture of experts"):
        start(of=dense)


@pytest.fixture(scope="module")
def sglang(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sglang") / "env"
    return make_fake_interpreter(folder, distribution="sglang", start_exit_code=0)


@pytest.mark.parametrize("model_type", ["mixtral", "olmoe", "qwen3_moe"])
def test_sglang_finds_the_plugin_that_its_blocks_need(sglang, model_type, tmp_path):
    sizes = {"num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **sizes}))
    driver, spec = ENGINES["sglang"], replace(SPEC, load_format="dummy")
    route = driver.counting_route(spec, version="0.5.16", on_gpu=True, model_type=model_type)
    launch = Launch(
        model_path=tmp_path,
        served_name="m",
        port=1,
        context_tokens=4096,
        scratch=tmp_path,
        gpu_ids=("0",),
        counting=route,
        probe_path=ENGINE_PROBE_PATH,
    )

    def exit_code(env):
        command = [sglang, *driver.argv(spec, launch)]
        return subprocess.run(command, env=env, capture_output=True, check=False).returncode

    env = driver.env(spec, launch, {})
    assert exit_code(env) == 0
    env.pop("PYTHONPATH", None)
    assert exit_code(env) == (0 if model_type == "qwen3_moe" else 1)
