"""A setting has one spelling: an engine's own flag for a field of ServerSpec is refused."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from pytest_moeperf.engines import ENGINES, Launch
from pytest_moeperf.engines.flags import flag_names
from pytest_moeperf.errors import UsageError
from pytest_moeperf.records import ServerSpec

SPEC = ServerSpec("mini-moe", tensor_parallel_size=2)
OTHERS = {
    "model": "mini-dense",
    "tensor_parallel_size": 4,
    "dtype": "float16",
    "max_model_len": 64,
    "expert_parallel": True,
    "overrides": (("num_hidden_layers", 4),),
    "load_format": "dummy",
}
WITHOUT_A_FLAG = {"flags", "env", "engine", "counts_experts"}


@pytest.fixture(params=ENGINES)
def engine(request):
    return ENGINES[request.param]


def settings(engine, spec):
    """The flags of a command line, each with its value."""
    launch = Launch(
        model_path=Path("/models") / spec.model,
        served_name=spec.model,
        port=8001,
        context_tokens=spec.max_model_len or 4096,
        scratch=Path("/scratch"),
        gpu_ids=("0",),
    )
    words = engine.argv(spec, launch)[2:]
    flags = [at for at, word in enumerate(words) if flag_names([word])]
    return {
        (words[at], *words[at + 1 : following])
        for at, following in zip(flags, [*flags[1:], len(words)], strict=True)
    }


def refusal(engine, *flags):
    spec = ServerSpec("m", flags=flags, overrides=OTHERS["overrides"])
    with pytest.raises(UsageError) as caught:
        engine.check_flags(spec, None, label=engine.name)
    return str(caught.value)


def test_every_field_is_looked_at():
    assert {each.name for each in fields(ServerSpec)} == OTHERS.keys() | WITHOUT_A_FLAG


@pytest.mark.parametrize("field", OTHERS)
def test_the_flags_of_a_field_are_reserved(engine, field):
    plain, changed = (
        settings(engine, SPEC),
        settings(engine, replace(SPEC, **{field: OTHERS[field]})),
    )
    names = {setting[0] for setting in plain ^ changed}
    assert names
    for name in names:
        told = f"engine flag {name}: set by the plugin; use ServerSpec({field}="
        assert refusal(engine, name).startswith(told)


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("vllm", "--hf_overrides"),
        ("vllm", "--hf-overrides.num_hidden_layers=4"),
        ("vllm", "-ep"),
        ("vllm", "-tp"),
        # The last of two that contradict each other holds.
        ("vllm", "--no-enable-expert-parallel"),
        ("sglang", "--json_model_override_args={}"),
        ("sglang", "--ep"),
        ("sglang", "--tp"),
    ],
)
def test_other_spellings_of_them_are_reserved_as_well(name, flag):
    assert "set by the plugin; use ServerSpec(" in refusal(ENGINES[name], flag)


@pytest.mark.parametrize("known", [None, frozenset({"--config"})])
@pytest.mark.parametrize("flags", [("--config", "more.yaml"), ("--config=more.yaml",)])
def test_a_file_of_flags_is_refused(engine, flags, known):
    # It could say `max-model-len: 64`, where the spec says nothing.
    spec = ServerSpec("m", flags=("--max-num-seqs", "8", *flags))
    with pytest.raises(UsageError) as caught:
        engine.check_flags(spec, known and known | {"--max-num-seqs"}, label=engine.name)
    assert str(caught.value) == (
        "engine flag --config: what its file sets is neither checked nor recorded; "
        "put its entries into ServerSpec(flags=…)"
    )


@pytest.mark.parametrize(
    ("name", "flag"), [("vllm", "--hf-overrides"), ("sglang", "--json-model-override-args")]
)
def test_overrides_that_are_no_sizes_go_by_the_engine_s_flag(name, flag):
    spec = ServerSpec("m", flags=(flag, '{"rope_scaling": null}'))
    ENGINES[name].check_flags(spec, None, label=name)
