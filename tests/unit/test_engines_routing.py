"""How servers are started to count experts, and how their answers are read.

The answers on GPUs are made by the formulas of the engines' own serving code: vLLM 0.23 and 0.24
`base64(np.save(routed_experts))` (entrypoints/openai/completion/serving.py), SGLang 0.5.11 and
0.5.16 `base64(routed_experts.numpy().tobytes())` (managers/detokenizer_manager.py).
"""

import base64
import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from pytest_moeperf.engines import ENGINES, Launch
from pytest_moeperf.errors import RoutingError, UsageError
from pytest_moeperf.launch import ENGINE_PROBE_PATH
from pytest_moeperf.models import catalogue
from pytest_moeperf.records import RequestSpec, ServerSpec

VLLM, SGLANG = ENGINES["vllm"], ENGINES["sglang"]
SPEC = ServerSpec("mixtral-8x7b", counts_experts=True)
MOE = catalogue()["mini-moe"].architecture
DEEPSEEK = catalogue()["deepseek-v2-lite"].architecture
REQUEST = RequestSpec(index=0, prompt=(5, 6, 7), output_tokens=2)


def route(engine, version, *, spec=SPEC, on_gpu=True, model_type="mixtral"):
    return engine.counting_route(spec, version=version, on_gpu=on_gpu, model_type=model_type)


def launch(counting, **changes):
    fields = {
        "model_path": Path("/models/m"),
        "served_name": "m",
        "port": 8001,
        "context_tokens": 4096,
        "scratch": Path("/scratch"),
        "core_ids": (0, 1),
        "counting": counting,
        "probe_path": ENGINE_PROBE_PATH,
    }
    return Launch(**{**fields, **changes})


def routes_of(architecture, tokens=4, dtype=np.uint8):
    generator = np.random.default_rng(3)
    shape = (tokens, architecture.layers, architecture.experts)
    order = np.argsort(generator.random(shape), axis=2)
    return order[:, :, : architecture.top_k].astype(dtype)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return base64.b64encode(file.getvalue()).decode("ascii")


def vllm_answer(**fields):
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choice = {"index": 0, "text": " a a", "token_ids": [9, 8], **fields}
    return {"object": "text_completion", "choices": [choice], "usage": usage}


def sglang_answer(told):
    meta = {"prompt_tokens": 3, "completion_tokens": 2, "routed_experts": told}
    return {"text": " a a", "output_ids": [9, 8], "meta_info": meta}


def probe_answer(architecture, routes):
    told = {"layers": list(architecture.expert_layers), "routes": npy(routes)}
    return {"results": [told, {}]}


@pytest.mark.parametrize("version", ["0.21.0", "0.23.0", "0.24.0", "0.30.0rc1", "0.24.1.dev3+g12"])
def test_vllm_on_a_gpu_tells_routes_in_its_answers(version):
    found = route(VLLM, version)
    assert found.flags == ("--enable-return-routed-experts",)
    assert (found.probe, found.one_at_a_time, found.collect) == (False, False, None)


def test_vllm_from_0_32_keeps_routes_with_its_prefix_cache():
    flags = route(VLLM, "0.32.0").flags
    assert flags == ("--enable-return-routed-experts", "--enable-prefix-caching")
    words = VLLM.argv(SPEC, launch(route(VLLM, "0.32.0"), gpu_ids=("0",)))
    assert "--no-enable-prefix-caching" not in words


@pytest.mark.parametrize(("version", "on_gpu"), [("0.20.2", True), ("0.32.0", False)])
def test_vllm_that_does_not_tell_is_listened_to_in_its_worker(version, on_gpu):
    found = route(VLLM, version, on_gpu=on_gpu)
    assert "--worker-extension-cls moeperf_probe.vllm.RoutingProbe" in " ".join(found.flags)
    assert found.probe
    assert found.one_at_a_time
    assert found.collect.path == "/collective_rpc"
    assert found.collect.body == {"method": "moeperf_take_routes"}
    # Ahead of what was asked for, on a GPU alone.
    assert ("--no-async-scheduling" in found.flags) == on_gpu


def test_what_the_probe_needs_overrides_what_the_spec_asks_for():
    asked = ("--no-enforce-eager", "--enable-prefix-caching", "--async-scheduling")
    spec = ServerSpec("m", counts_experts=True, flags=asked)
    words = VLLM.argv(spec, launch(route(VLLM, "0.32.0", spec=spec, on_gpu=False)))
    for refused, needed in zip(
        asked,
        ("--enforce-eager", "--no-enable-prefix-caching", "--no-async-scheduling"),
        strict=True,
    ):
        assert words.index(needed) > words.index(refused)


@pytest.mark.parametrize(
    ("version", "on_gpu", "message"),
    [
        ("0.27.0", False, "vLLM 0.27.0 on a CPU does not tell them; use 0.30 or newer"),
        ("0.19.1", True, "vLLM 0.19.1 on a GPU does not tell them; use 0.20 or newer"),
        (None, True, r"vLLM's version is not known \(None\); use an installed release"),
        ("main", True, r"vLLM's version is not known \('main'\); use an installed release"),
    ],
)
def test_vllm_without_a_route_says_what_to_use(version, on_gpu, message):
    with pytest.raises(UsageError, match=f"mixtral-8x7b counting: experts cannot .*: {message}"):
        route(VLLM, version, on_gpu=on_gpu)


@pytest.mark.parametrize(
    ("engine", "version", "flags", "why"),
    [
        (VLLM, "0.24.0", ("-pp", "2"), "--pipeline-parallel-size 2 tells those of one pipeline"),
        (VLLM, "0.24.0", ("--data-parallel-size=4",), "--data-parallel-size 4 tells those of one"),
        (VLLM, "0.24.0", ("-sc", "{}"), "under -sc drafts are routed too"),
        (SGLANG, "0.5.16", ("--pp-size", "2"), "--pp-size 2 tells those of one pipeline rank"),
        (SGLANG, "0.5.16", ("--dp-size", "2"), "--dp-size 2 tells those of one data rank"),
        (SGLANG, "0.5.16", ("--speculative-algorithm", "NGRAM"), "drafts are routed too"),
    ],
)
def test_servers_whose_routes_would_be_incomplete_are_refused(engine, version, flags, why):
    spec = ServerSpec("m", counts_experts=True, flags=flags)
    with pytest.raises(UsageError, match=f"{why}.*; leave it out here"):
        route(engine, version, spec=spec)


@pytest.mark.parametrize("version", ["0.5.11", "0.5.16"])
@pytest.mark.parametrize("model_type", ["qwen2_moe", "qwen3_moe", "deepseek_v2"])
def test_sglang_tells_routes_in_its_answers_without_the_overlap_scheduler(version, model_type):
    found = route(SGLANG, version, model_type=model_type)
    assert found.flags == ("--enable-return-routed-experts", "--disable-overlap-schedule")
    assert not found.probe
    assert not found.env


@pytest.mark.parametrize(
    ("model_type", "block"),
    [
        ("mixtral", "sglang.srt.models.mixtral.MixtralMoE"),
        ("olmoe", "sglang.srt.models.olmoe.OlmoeMoE"),
    ],
)
def test_sglang_needs_our_plugin_for_blocks_that_do_not_tell_their_layer(model_type, block):
    found = route(SGLANG, "0.5.16", model_type=model_type)
    assert found.probe
    env = SGLANG.env(SPEC, launch(found, gpu_ids=("0",)), {"PYTHONPATH": "/mine"})
    assert env["MOEPERF_SGLANG_BLOCK"] == block
    assert env["PYTHONPATH"] == str(ENGINE_PROBE_PATH)


def test_gpt_oss_runs_on_kernels_that_record():
    found = route(SGLANG, "0.5.16", model_type="gpt_oss")
    assert found.flags[-2:] == ("--moe-runner-backend", "triton")
    spec = ServerSpec("m", counts_experts=True, flags=("--moe-runner-backend=triton_kernel",))
    assert "triton" not in route(SGLANG, "0.5.16", spec=spec, model_type="gpt_oss").flags


@pytest.mark.parametrize(
    ("version", "on_gpu", "message"),
    [
        ("0.5.10", True, "SGLang 0.5.10 is too old; use 0.5.11 or newer"),
        ("0.5.16", False, "memory that only a GPU has; use vLLM on a CPU"),
        (None, True, "SGLang's version is not known"),
    ],
)
def test_sglang_without_a_route_says_what_to_use(version, on_gpu, message):
    with pytest.raises(UsageError, match=message):
        route(SGLANG, version, on_gpu=on_gpu)


def test_a_server_that_is_timed_finds_no_probe():
    for engine in (VLLM, SGLANG):
        env = engine.env(ServerSpec("m"), launch(None), {"PYTHONPATH": "/mine"})
        assert "PYTHONPATH" not in env
        assert "moeperf" not in str(engine.argv(ServerSpec("m"), launch(None)))
    answers = route(VLLM, "0.24.0")
    assert "PYTHONPATH" not in VLLM.env(SPEC, launch(answers, gpu_ids=("0",)), {})


def test_a_counted_request_asks_for_exactly_so_many_tokens_in_one_answer():
    asked = VLLM.counted_request(REQUEST, model="m")
    assert asked.path == "/v1/completions"
    assert asked.body == {
        "model": "m",
        "prompt": [5, 6, 7],
        "max_tokens": 2,
        "min_tokens": 2,
        "ignore_eos": True,
        "temperature": 0,
        "return_token_ids": True,
    }
    asked = SGLANG.counted_request(REQUEST, model="m")
    assert asked.path == "/generate"
    assert asked.body == {
        "input_ids": [5, 6, 7],
        "sampling_params": {"max_new_tokens": 2, "ignore_eos": True, "temperature": 0},
        "return_routed_experts": True,
    }


def test_a_text_is_sent_as_such():
    text = RequestSpec(index=0, prompt="a b", output_tokens=2)
    assert VLLM.counted_request(text, model="m").body["prompt"] == "a b"
    body = SGLANG.counted_request(text, model="m").body
    assert body["text"] == "a b"
    assert "input_ids" not in body


@pytest.mark.parametrize("told", [npy(routes_of(MOE)), None])
def test_tokens_are_read_from_either_engines_answer(told):
    for read in (
        VLLM.read_generated(vllm_answer(routed_experts=told)),
        SGLANG.read_generated(sglang_answer(told)),
    ):
        assert (read.prompt_tokens, read.output_tokens, read.output_ids) == (3, 2, (9, 8))


def test_tokens_that_are_not_told_are_none():
    read = VLLM.read_generated({"choices": [{"text": ""}]})
    assert (read.prompt_tokens, read.output_tokens, read.output_ids) == (None, None, None)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_routes_of_vllm_are_an_array_in_the_choice(dtype):
    routes = routes_of(MOE, dtype=dtype)
    read = VLLM.read_routes(vllm_answer(routed_experts=npy(routes)), MOE)
    assert read.tolist() == routes.tolist()


def test_routes_of_vllm_0_21_are_lists_and_those_of_the_prompt_apart():
    routes = routes_of(MOE).tolist()
    answer = vllm_answer(routed_experts=routes[3:]) | {"prompt_routed_experts": routes[:3]}
    assert VLLM.read_routes(answer, MOE).tolist() == routes


def test_routes_of_sglang_are_bytes_of_32_bit_integers():
    routes = routes_of(MOE, dtype=np.int32)
    told = base64.b64encode(routes.tobytes()).decode("utf-8")
    assert SGLANG.read_routes(sglang_answer(told), MOE).tolist() == routes.tolist()


def test_the_probe_hears_layers_with_a_router_alone():
    heard = routes_of(DEEPSEEK)[:, 1:]
    read = VLLM.read_routes(probe_answer(DEEPSEEK, heard), DEEPSEEK)
    assert DEEPSEEK.expert_layers[0] == 1
    assert read.shape == (4, DEEPSEEK.layers, DEEPSEEK.top_k)
    assert not read[:, 0].any()
    assert read[:, 1:].tolist() == heard.tolist()


@pytest.mark.parametrize(
    ("engine", "answer", "message"),
    [
        (VLLM, vllm_answer(), "vLLM's answer has no routed experts"),
        (VLLM, {"choices": []}, "vLLM's answer has no routed experts"),
        (VLLM, vllm_answer(routed_experts="%%"), "no base64"),
        (VLLM, vllm_answer(routed_experts="AAAA"), r"no \.npy"),
        (VLLM, vllm_answer(routed_experts=npy(np.array(["x"], dtype=object))), r"no \.npy"),
        (VLLM, vllm_answer(routed_experts=[[[1], [1, 2]]]), "no table of numbers"),
        (VLLM, vllm_answer(routed_experts=npy(routes_of(MOE)[:, 1:])), r"of shape \[4, 7, 2\]"),
        (VLLM, vllm_answer(routed_experts=npy(routes_of(MOE)[:, :, 0])), r"of shape \[4, 8\]"),
        (VLLM, {"results": []}, "the probe in vLLM's worker tells no routes"),
        (VLLM, {"results": [{"error": "no router"}]}, "tells no routes: no router"),
        (
            VLLM,
            {"results": [{"layers": [0, 1], "routes": npy(routes_of(MOE)[:, :2])}]},
            r"heard routers in layers \[0, 1\]; the model has them in \[0, 1, 2, 3, 4, 5, 6, 7\]",
        ),
        (VLLM, probe_answer(MOE, routes_of(MOE)[:, :, :1]), r"\[4, 8, 1\] from the probe"),
        (SGLANG, sglang_answer(None), "SGLang's answer has no routed experts"),
        (SGLANG, {"text": ""}, "SGLang's answer has no routed experts"),
        (SGLANG, sglang_answer("AAAA"), "routed experts of 3 bytes: 8 layers × 2 experts are 64"),
        (SGLANG, sglang_answer(""), "routed experts of 0 bytes"),
    ],
)
def test_answers_that_are_not_whole_are_errors_that_say_so(engine, answer, message):
    with pytest.raises(RoutingError, match=message):
        engine.read_routes(answer, MOE)


@pytest.fixture
def probe(monkeypatch):
    """The probe as an engine imports it, with a stand-in for what it needs of the engine."""
    monkeypatch.syspath_prepend(str(ENGINE_PROBE_PATH))

    def module(name, **values):
        stub = ModuleType(name)
        vars(stub).update(values)
        monkeypatch.setitem(sys.modules, name, stub)
        return stub

    yield module
    for name in [name for name in sys.modules if name.startswith("moeperf_probe")]:
        monkeypatch.delitem(sys.modules, name)


class Tensor:
    """Of torch, as much as the probe touches."""

    def __init__(self, values):
        self.values = np.array(values)

    def detach(self):
        return self

    def to(self, *, device, copy):
        assert (device, copy) == ("cpu", True)
        return Tensor(self.values)

    def numpy(self):
        return self.values


class Router:
    def __init__(self):
        self.capture = None

    def set_capture_fn(self, function):
        self.capture = function


def vllm_worker(probe, layers, rank=0):
    base = "vllm.model_executor.layers.fused_moe.router.base_router"
    for name in ("vllm", "vllm.model_executor", "vllm.model_executor.layers"):
        probe(name)
    for name in ("vllm.model_executor.layers.fused_moe", base.rpartition(".")[0]):
        probe(name)
    probe(base, BaseRouter=Router)
    from moeperf_probe.vllm import RoutingProbe  # noqa: PLC0415 - after its path is there

    worker = RoutingProbe()
    modules = {str(layer): SimpleNamespace(layer_id=layer, router=Router()) for layer in layers}
    modules["attention"] = SimpleNamespace()
    context = SimpleNamespace(static_forward_context=modules)
    worker.vllm_config = SimpleNamespace(compilation_config=context)
    worker.rank = rank
    return worker, {layer: modules[str(layer)].router for layer in layers}


def test_the_probe_gives_what_was_heard_since_it_was_asked_last(probe):
    worker, routers = vllm_worker(probe, layers=(2, 1))
    assert worker.moeperf_take_routes()["layers"] == [1, 2]
    for ids in ([[0, 1], [2, 3]], [[1, 3]]):
        passing = Tensor(ids)
        routers[1].capture(passing)
        routers[2].capture(Tensor(np.array(ids)[:, ::-1]))
        passing.values = None
    told = worker.moeperf_take_routes()
    assert told["layers"] == [1, 2]
    heard = np.load(io.BytesIO(base64.b64decode(told["routes"])))
    assert heard.tolist() == [
        [[0, 1], [1, 0]],
        [[2, 3], [3, 2]],
        [[1, 3], [3, 1]],
    ]
    again = worker.moeperf_take_routes()
    assert len(np.load(io.BytesIO(base64.b64decode(again["routes"])))) == 0


def test_of_a_group_of_workers_only_the_first_listens(probe):
    worker, routers = vllm_worker(probe, layers=(0,), rank=1)
    assert worker.moeperf_take_routes() == {}
    assert routers[0].capture is None


def test_a_layer_that_was_not_heard_is_an_error(probe):
    worker, routers = vllm_worker(probe, layers=(0, 1))
    worker.moeperf_take_routes()
    routers[0].capture(Tensor([[0, 1]]))
    said = worker.moeperf_take_routes()
    assert said == {"error": "layers heard of different numbers of tokens: [0, 1]"}


def test_a_model_without_routers_is_an_error(probe):
    worker, _ = vllm_worker(probe, layers=())
    assert worker.moeperf_take_routes() == {"error": "no router of this model can be listened to"}


class MixtralMoE:
    """As in SGLang: it knows its layer and does not tell its router."""

    def __init__(self, num_experts, top_k, hidden_size, intermediate_size, layer_id):
        self.sizes = (num_experts, top_k, hidden_size, intermediate_size)
        self.topk = SimpleNamespace(layer_id=None)
        self.experts = SimpleNamespace(layer_id=layer_id)


@pytest.fixture
def plugin(probe, monkeypatch):
    """The plugin, and the hooks that it registers, in a process that is not the first."""
    hooks = {}
    for name in ("sglang", "sglang.srt", "sglang.srt.plugins"):
        probe(name)
    probe(
        "sglang.srt.plugins.hook_registry",
        HookRegistry=SimpleNamespace(
            register=lambda target, hook, kind: hooks.update({target: (hook, kind)})
        ),
        HookType=SimpleNamespace(AROUND="around"),
    )
    monkeypatch.setattr("multiprocessing.parent_process", lambda: "the first process")
    from moeperf_probe import sglang  # noqa: PLC0415 - after its path is there

    return sglang.name_layers, hooks


def test_the_plugin_tells_routers_their_layer(plugin, monkeypatch):
    name_layers, hooks = plugin
    monkeypatch.setenv("MOEPERF_SGLANG_BLOCK", "some.module.MixtralMoE")
    name_layers()
    ((target, (hook, kind)),) = hooks.items()
    assert (target, kind) == ("some.module.MixtralMoE.__init__", "around")
    block = object.__new__(MixtralMoE)
    hook(MixtralMoE.__init__, block, 8, top_k=2, hidden_size=64, intermediate_size=9, layer_id=5)
    assert block.sizes == (8, 2, 64, 9)
    assert block.topk.layer_id == 5
    hook(MixtralMoE.__init__, block, 8, 2, 64, 9, 7)
    assert block.topk.layer_id == 7


def test_the_plugin_does_nothing_unless_it_is_asked_to(plugin):
    name_layers, hooks = plugin
    name_layers()
    assert hooks == {}


def test_the_plugin_leaves_the_first_process_alone(plugin, monkeypatch):
    name_layers, hooks = plugin
    monkeypatch.setenv("MOEPERF_SGLANG_BLOCK", "some.module.MixtralMoE")
    monkeypatch.setattr("multiprocessing.parent_process", lambda: None)
    name_layers()
    assert hooks == {}
