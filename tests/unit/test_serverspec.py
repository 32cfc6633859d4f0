"""What a ServerSpec takes, and what it refuses as soon as it is written."""

from pathlib import Path

import pytest

from pytest_moeperf.errors import UsageError
from pytest_moeperf.records import EngineInstall, ServerSpec


def test_a_list_of_flags_is_the_same_as_a_tuple():
    spec = ServerSpec("m", flags=["--max-num-seqs", "8"])
    assert spec == ServerSpec("m", flags=("--max-num-seqs", "8"))
    assert len({spec, ServerSpec("m", flags=("--max-num-seqs", "8"))}) == 1


@pytest.mark.parametrize(
    "env",
    [{"B": "2", "A": "1"}, [("B", "2"), ("A", "1")], (["A", "1"], ["B", "2"])],
    ids=["mapping", "list", "lists"],
)
def test_an_environment_in_any_form_and_order_is_the_same(env):
    spec = ServerSpec("m", env=env)
    assert spec.env == (("A", "1"), ("B", "2"))
    assert hash(spec) == hash(ServerSpec("m", env=(("A", "1"), ("B", "2"))))


def test_overrides_are_taken_as_a_mapping_and_keep_their_order():
    """Their order is part of the label, by which baselines are filed."""
    spec = ServerSpec("m", overrides={"num_hidden_layers": 4, "hidden_size": 8})
    assert spec.overrides == (("num_hidden_layers", 4), ("hidden_size", 8))
    assert spec.label == "m num_hidden_layers=4 hidden_size=8"
    assert len({spec}) == 1


def test_the_engine_can_be_told_later():
    engine = EngineInstall(engine="vllm")
    spec = ServerSpec("m", env={"A": "1"}).on(engine)
    assert (spec.engine, spec.env) == (engine, (("A", "1"),))


WHOLE = "it must be a whole number above 0"
TRUTH = "it must be True or False"
PAIRS = "give pairs, as in {'VLLM_LOGGING_LEVEL': 'DEBUG'}"
SIZES = "give pairs, as in {'num_experts_per_tok': 1}"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": Path("/m")}, "model = PosixPath('/m') in a ServerSpec: give a name of the cat"),
        ({"model": ""}, "model = '' in a ServerSpec: give a name of the catalogue, or the path"),
        ({"dtype": 16}, "dtype = 16 in a ServerSpec: valid are bfloat16, float16, half, float32"),
        ({"dtype": "bf16"}, "dtype = 'bf16' in a ServerSpec: valid are bfloat16, float16, half, f"),
        ({"tensor_parallel_size": 0}, f"tensor_parallel_size = 0 in a ServerSpec: {WHOLE}"),
        ({"tensor_parallel_size": "2"}, f"tensor_parallel_size = '2' in a ServerSpec: {WHOLE}"),
        ({"tensor_parallel_size": True}, f"tensor_parallel_size = True in a ServerSpec: {WHOLE}"),
        ({"max_model_len": -1}, f"max_model_len = -1 in a ServerSpec: {WHOLE}"),
        ({"max_model_len": 2048.0}, f"max_model_len = 2048.0 in a ServerSpec: {WHOLE}"),
        ({"expert_parallel": 2}, f"expert_parallel = 2 in a ServerSpec: {TRUTH}"),
        ({"counts_experts": "no"}, f"counts_experts = 'no' in a ServerSpec: {TRUTH}"),
        ({"load_format": "gguf"}, "load_format = 'gguf' in a ServerSpec: valid are auto, dummy"),
        (
            {"flags": "--nope 4"},
            "flags = '--nope 4' in a ServerSpec: give word by word, as in ('--nope', '4')",
        ),
        ({"flags": {"--nope": "4"}}, "flags = {'--nope': '4'} in a ServerSpec: give words, as in"),
        (
            {"flags": ("--max-num-seqs", 8)},
            "flags with 8 in a ServerSpec: give text, as in '8'",
        ),
        ({"env": "HF_TOKEN=secret"}, f"env of type str in a ServerSpec: {PAIRS}"),
        ({"env": ("A", "1")}, f"env with 'A' in a ServerSpec: {PAIRS}"),
        ({"env": {"A": 1}}, f"env with ('A', 1) in a ServerSpec: {PAIRS}"),
        ({"env": (("A", "1"), ("A", "2"))}, "env with 'A' twice in a ServerSpec: give it once"),
        (
            {"env": {"CUDA_VISIBLE_DEVICES": "1"}},
            (
                "env with 'CUDA_VISIBLE_DEVICES' in a ServerSpec: each server gets GPUs of its "
                "own; set it where pytest is called, to hide others from all servers"
            ),
        ),
        ({"overrides": {"a": "1"}}, f"overrides with ('a', '1') in a ServerSpec: {SIZES}"),
        ({"overrides": {"a": True}}, f"overrides with ('a', True) in a ServerSpec: {SIZES}"),
        ({"overrides": {"a"}}, f"overrides of type set in a ServerSpec: {SIZES}"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_no_server_can_be_started_with_is_told_in_one_line(fields, told):
    with pytest.raises(UsageError) as caught:
        ServerSpec(**{"model": "m", **fields})
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("env", "shown"),
    [
        ({"HF_TOKEN": "hf_secret", "A": 1}, "('A', 1)"),
        ({"HF_TOKEN": b"hf_secret"}, "('HF_TOKEN', a bytes)"),
        (["HF_TOKEN=hf_secret"], "'HF_TOKEN=…'"),
        ([("HF_TOKEN", "hf_secret", "A")], "('HF_TOKEN', a str, a str)"),
        ([{"HF_TOKEN": "hf_secret"}], "a dict"),
    ],
)
def test_secrets_in_an_environment_are_not_shown(env, shown):
    with pytest.raises(UsageError) as caught:
        ServerSpec("m", env=env)
    assert str(caught.value).startswith(f"env with {shown} in a ServerSpec: {PAIRS}")
