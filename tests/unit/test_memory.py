import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.errors import ModelError
from pytest_moeperf.memory import (
    Architecture,
    active_parameters,
    kv_bytes_per_token,
    kv_tokens,
    parameters,
    rotary_bytes,
    total_parameters,
    weight_bytes,
)
from pytest_moeperf.models import catalogue

GIB = 2**30

TINY_MOE = {
    "model_type": "mixtral",
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "vocab_size": 10,
    "torch_dtype": "bfloat16",
}

OLMOE_1B_7B = {
    "model_type": "olmoe",
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "vocab_size": 50304,
    "torch_dtype": "bfloat16",
}

QWEN3_30B_A3B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "dtype": "bfloat16",
}


def architecture(config, **changes):
    return Architecture.from_config({**config, **changes})


def test_parameters_are_counted_by_group():
    assert parameters(architecture(TINY_MOE)) == {
        "embeddings": 2 * 10 * 4,
        # Per layer: query and output 4×4 each, key and value 2×4 each.
        "attention": 2 * (16 + 16 + 8 + 8),
        "ffn": 0,
        "experts": 2 * 4 * 3 * 4 * 6,
        "shared_experts": 0,
        "router": 2 * 4 * 4,
        "norms": 2 * 2 * 4 + 4,
    }


def test_tied_embeddings_are_counted_once():
    assert parameters(architecture(TINY_MOE, tie_word_embeddings=True))["embeddings"] == 10 * 4


def test_a_token_uses_only_the_experts_it_is_routed_to():
    arch = architecture(TINY_MOE)
    assert total_parameters(arch) - active_parameters(arch) == 2 * 3 * (3 * 4 * 6)


@pytest.mark.parametrize(
    ("config", "total"),
    [
        (catalogue()["mixtral-8x7b"].config, 46_702_792_704),
        (catalogue()["llama-3.1-8b"].config, 8_030_261_248),
        (OLMOE_1B_7B, 6_919_161_856),
        (QWEN3_30B_A3B, 30_532_122_624),
    ],
    ids=["mixtral-8x7b", "llama-3.1-8b", "olmoe-1b-7b", "qwen3-30b-a3b"],
)
def test_published_checkpoints_are_counted_exactly(config, total):
    assert total_parameters(architecture(config)) == total


def test_active_parameters_of_qwen3_are_the_published_count():
    assert active_parameters(architecture(QWEN3_30B_A3B)) == 3_353_032_704


def test_every_weight_of_a_dense_model_is_active():
    arch = catalogue()["llama-3.1-8b"].architecture
    assert active_parameters(arch) == total_parameters(arch)


def test_mini_dense_has_the_size_that_one_token_of_mini_moe_activates():
    moe, dense = (catalogue()[name].architecture for name in ("mini-moe", "mini-dense"))
    router = parameters(moe)["router"]
    assert active_parameters(moe) - router == total_parameters(dense)


def test_weights_of_mixtral_take_what_an_engine_measured():
    assert weight_bytes(catalogue()["mixtral-8x7b"].architecture) / GIB == pytest.approx(
        86.99, abs=0.01
    )


def test_two_gpus_share_the_matrices_and_both_hold_router_and_norms():
    # Of the groups above: (80 + 96 + 576) ÷ 2, and router and norms whole; two bytes each. The one
    # key-value head cannot be split: of its 2 × 2 × 8 weights each GPU has all.
    groups = parameters(architecture(TINY_MOE))
    shared = groups["embeddings"] + groups["attention"] + groups["experts"]
    kv_head = 2 * 2 * 4 * 2
    per_gpu = (shared - kv_head) // 2 + kv_head + groups["router"] + groups["norms"]
    assert weight_bytes(architecture(TINY_MOE), tensor_parallel_size=2) == 2 * per_gpu


@pytest.mark.parametrize(
    ("model", "gpus", "told_gib"),
    # "Model loading took … GiB" and "mem usage=… GB" of recorded logs, per GPU.
    [
        ("mixtral-8x7b", 1, 87.0),
        ("mixtral-8x7b", 2, 43.51),
        ("llama-3.1-8b", 1, 15.0),
        ("llama-3.1-8b", 2, 7.54),
    ],
)
def test_weights_of_a_gpu_take_what_engines_told(model, gpus, told_gib):
    arch = catalogue()[model].architecture
    calculated = (weight_bytes(arch, tensor_parallel_size=gpus) + rotary_bytes(arch)) / GIB
    assert calculated == pytest.approx(told_gib, rel=0.005)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("llama-3.1-8b", 131_072 * 128 * 2),
        ("mixtral-8x7b", 32_768 * 128 * 2),
        ("deepseek-v2-lite", 163_840 * 64 * 2),  # of each head only the part with the position
    ],
)
def test_the_table_of_positions_has_a_sine_and_a_cosine_for_each_pair(model, size):
    assert rotary_bytes(catalogue()[model].architecture) == size


def test_without_a_longest_context_there_is_no_table():
    assert rotary_bytes(architecture(TINY_MOE)) == 0


@given(tp=st.sampled_from([1, 2, 4, 8]), model=st.sampled_from(["mixtral-8x7b", "llama-3.1-8b"]))
def test_all_gpus_together_hold_the_model_and_what_is_repeated(tp, model):
    arch = catalogue()[model].architecture
    groups = parameters(arch)
    repeated = (tp - 1) * (groups["router"] + groups["norms"])
    together = tp * weight_bytes(arch, tensor_parallel_size=tp)
    assert together == 2 * (total_parameters(arch) + repeated)


@pytest.mark.parametrize(
    ("gpus", "gib", "told"),
    # vLLM 0.24.0 and SGLang 0.5.16 on two H200, vLLM on one; GiB as logged, so rounded.
    [(2, 82.89, 1_358_112), (2, 2 * 40.63, 1_331_517)],
)
def test_a_cache_on_several_gpus_holds_the_tokens_that_engines_told(gpus, gib, told):
    arch = catalogue()["mixtral-8x7b"].architecture
    tokens = kv_tokens(int(gib * GIB), arch, block_size=16, tensor_parallel_size=gpus)
    assert tokens == pytest.approx(told, rel=0.001)


def test_more_gpus_than_key_value_heads_repeat_them():
    arch = catalogue()["mixtral-8x7b"].architecture  # 8 of them
    sizes = [kv_bytes_per_token(arch, tensor_parallel_size=gpus) for gpus in (1, 2, 8, 16)]
    assert sizes == [131_072, 65_536, 16_384, 16_384]


def test_keys_and_values_of_a_token_take_bytes_in_every_layer():
    # 2 (key, value) × 32 layers × 8 heads × 128 × 2 bytes
    assert kv_bytes_per_token(catalogue()["mixtral-8x7b"].architecture) == 131_072
    assert kv_bytes_per_token(catalogue()["mixtral-8x7b"].architecture, dtype_bytes=1) == 65_536


@pytest.mark.parametrize("context_tokens", [None, 2048])
def test_one_gib_holds_the_kv_tokens_that_vllm_logs_for_mini_moe(context_tokens):
    arch = catalogue()["mini-moe"].architecture
    tokens = kv_tokens(GIB, arch, block_size=128, context_tokens=context_tokens)
    assert tokens == 131_072


def test_a_kv_cache_has_only_whole_blocks():
    arch = architecture(TINY_MOE)  # 2 × 2 layers × 1 head × 2 × 2 bytes = 16 bytes a token
    assert kv_tokens(16 * 16 * 3 + 255, arch, block_size=16) == 48


def test_a_context_that_ends_within_a_block_wastes_the_rest_of_it():
    arch = architecture(TINY_MOE)
    # 10 blocks; 20 tokens need 2 blocks, so 5 requests of 20 fit.
    assert kv_tokens(16 * 16 * 10, arch, block_size=16, context_tokens=20) == 100


def test_heads_default_to_one_key_value_head_each_of_even_size():
    config = {name: value for name, value in TINY_MOE.items() if name != "num_key_value_heads"}
    arch = architecture(config)
    assert (arch.kv_heads, arch.head_dim) == (2, 2)


@pytest.mark.parametrize(
    "field", ["hidden_size", "num_hidden_layers", "num_local_experts", "vocab_size"]
)
def test_a_missing_field_is_named(field):
    config = {name: value for name, value in TINY_MOE.items() if name != field}
    with pytest.raises(ModelError, match=rf"^lacks {field}$"):
        architecture(config)


@pytest.mark.parametrize("value", [0, -1, "8", 1.5, True])
def test_a_count_must_be_a_positive_whole_number(value):
    with pytest.raises(ModelError, match=rf"^hidden_size is {value!r}, not a posit"):
        architecture(TINY_MOE, hidden_size=value)


@pytest.mark.parametrize("model_type", [None, "gpt2", ["llama"]])
def test_an_unknown_model_type_is_quoted_and_the_known_are_listed(model_type):
    with pytest.raises(ModelError, match=r"is not one of: deepseek_v2, .*llama, mistral, mix"):
        architecture(TINY_MOE, model_type=model_type)


def test_an_unknown_dtype_is_quoted():
    with pytest.raises(ModelError, match=r"^dtype 'int3' is not one of: bfloat16"):
        architecture(TINY_MOE, torch_dtype="int3")


@pytest.mark.parametrize(
    "uneven", [{"attention_bias": True}, {"mlp_only_layers": [0]}, {"decoder_sparse_step": 2}]
)
def test_layers_that_differ_are_refused_rather_than_miscounted(uneven):
    with pytest.raises(ModelError, match="is not supported"):
        architecture(TINY_MOE, **uneven)
