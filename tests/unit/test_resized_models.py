"""Models in other sizes than their config has."""

import json
from dataclasses import replace

import pytest

from pytest_moeperf.errors import ModelError, UsageError
from pytest_moeperf.memory import Architecture, total_parameters
from pytest_moeperf.models import ModelDirectory, catalogue, resized
from pytest_moeperf.records import ServerSpec


@pytest.fixture
def mixtral(tmp_path):
    entry = catalogue()["mixtral-8x7b"]
    (tmp_path / "config.json").write_text(json.dumps(entry.config))
    return ModelDirectory(
        name=entry.name,
        path=tmp_path,
        architecture=entry.architecture,
        context_tokens=32768,
        vocab_size=32000,
        first_id=3,
        digest="d",
        trained=True,
    )


def test_another_size_is_another_architecture(mixtral):
    wider = resized(mixtral, (("num_local_experts", 16), ("num_hidden_layers", 4)))
    assert (wider.architecture.experts, wider.architecture.layers) == (16, 4)
    # 8 experts of 3 matrices of 4096 x 14336 in each of 4 layers, and 8 rows of its router.
    eight = resized(mixtral, (("num_hidden_layers", 4),))
    more = total_parameters(wider.architecture) - total_parameters(eight.architecture)
    assert more == 4 * 8 * (3 * 4096 * 14336 + 4096)


def test_another_context_is_the_most_that_a_request_may_have(mixtral):
    assert resized(mixtral, (("max_position_embeddings", 2048),)).context_tokens == 2048
    assert resized(mixtral, (("num_hidden_layers", 4),)).context_tokens == 32768


def test_without_other_sizes_it_is_the_model_itself(mixtral):
    assert resized(mixtral, ()) is mixtral


def test_a_size_that_the_model_has_not_got_is_refused_with_those_that_it_has(mixtral):
    with pytest.raises(UsageError) as error:
        resized(mixtral, (("num_experts", 16),))
    assert str(error.value).startswith(
        "no size 'num_experts' in the config.json of mixtral-8x7b: give one of hidden_size, "
    )


def test_an_impossible_size_is_refused(mixtral):
    with pytest.raises(ModelError) as error:
        resized(mixtral, (("num_local_experts", 0), ("num_hidden_layers", 4)))
    assert str(error.value) == (
        "mixtral-8x7b with num_local_experts=0, num_hidden_layers=4: "
        "num_local_experts is 0, not a positive whole number"
    )


def test_other_sizes_are_in_the_label():
    spec = ServerSpec("mini-moe", overrides=(("num_experts_per_tok", 1),))
    assert spec.label == "mini-moe num_experts_per_tok=1"
    assert replace(spec, overrides=()) == ServerSpec("mini-moe")


def test_sizes_are_those_of_the_config_of_each_family():
    entry = catalogue()["qwen3-30b-a3b"]
    config = {**entry.config, "num_experts": 64}
    assert Architecture.from_config(config).experts == 64
