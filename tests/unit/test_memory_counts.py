"""Counts of weights against published totals and against transformers."""

import json
import subprocess
import sys

import pytest

from pytest_moeperf.cache import cache_root
from pytest_moeperf.errors import ModelError
from pytest_moeperf.memory import (
    Architecture,
    active_parameters,
    parameters,
    total_parameters,
)
from pytest_moeperf.models import catalogue

CATALOGUE = {name: dict(entry.config) for name, entry in catalogue().items()}

MIXTRAL_8X22B = CATALOGUE["mixtral-8x7b"] | {
    "hidden_size": 6144,
    "intermediate_size": 16384,
    "num_hidden_layers": 56,
    "num_attention_heads": 48,
}
MISTRAL_7B = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "sliding_window": 4096,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
QWEN3_0_6B = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
QWEN15_MOE = {
    "model_type": "qwen2_moe",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "vocab_size": 151936,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
QWEN2_57B = QWEN15_MOE | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "moe_intermediate_size": 2560,
    "shared_expert_intermediate_size": 20480,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "num_experts": 64,
    "num_experts_per_tok": 8,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "tie_word_embeddings": False,
}
GPT_OSS_20B = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "vocab_size": 201088,
    "sliding_window": 128,
    "max_position_embeddings": 131072,
    "attention_bias": True,
    "tie_word_embeddings": False,
}

TOTALS = {
    "mixtral-8x7b": (CATALOGUE["mixtral-8x7b"], 46_702_792_704),
    "mixtral-8x22b": (MIXTRAL_8X22B, 140_620_634_112),
    "llama-3.1-8b": (CATALOGUE["llama-3.1-8b"], 8_030_261_248),
    "mistral-7b": (MISTRAL_7B, 7_241_732_096),
    "qwen3-0.6b": (QWEN3_0_6B, 596_049_920),
    "qwen3-30b-a3b": (CATALOGUE["qwen3-30b-a3b"], 30_532_122_624),
    "qwen1.5-moe-a2.7b": (QWEN15_MOE, 14_315_784_192),
    "qwen2-57b-a14b": (QWEN2_57B, 57_408_658_944),
    "olmoe-1b-7b": (CATALOGUE["olmoe-1b-7b"], 6_919_161_856),
    "deepseek-v2-lite": (CATALOGUE["deepseek-v2-lite"], 15_706_484_224),
    "deepseek-v3": (DEEPSEEK_V3, 671_026_419_200),
    "gpt-oss-20b": (GPT_OSS_20B, 20_914_757_184),
    "gpt-oss-120b": (
        GPT_OSS_20B | {"num_hidden_layers": 36, "num_local_experts": 128},
        116_829_156_672,
    ),
}
"""Config and published total."""

ODD = {
    "llama with biases": CATALOGUE["mini-dense"] | {"attention_bias": True, "mlp_bias": True},
    "qwen3-moe with biases": CATALOGUE["qwen3-30b-a3b"]
    | {"attention_bias": True, "num_hidden_layers": 3},
    "olmoe with biases": CATALOGUE["olmoe-1b-7b"] | {"attention_bias": True},
    "qwen2-moe with dense layers": QWEN15_MOE
    | {"num_hidden_layers": 7, "decoder_sparse_step": 2, "mlp_only_layers": [1, 4]},
    "qwen2-moe without bias": QWEN15_MOE | {"num_hidden_layers": 2, "qkv_bias": False},
    "deepseek-v2": DEEPSEEK_V3 | {"model_type": "deepseek_v2", "num_hidden_layers": 5},
    "deepseek-v3 of 5 layers": DEEPSEEK_V3 | {"num_hidden_layers": 5},
}
"""Configs that no published model has, but which transformers builds."""

BUILD = """
import json, sys
import torch
from transformers import AutoConfig, AutoModelForCausalLM

for config in json.load(sys.stdin):
    kind = config.pop("model_type")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))
    model.tie_weights()
    # The correction of DeepSeek's router is stored with the weights, but is a buffer there.
    buffers = (each for name, each in model.named_buffers() if "correction_bias" in name)
    print(sum(each.numel() for each in (*model.parameters(), *buffers)))
"""


def architecture(config, **changes):
    return Architecture.from_config({**config, **changes})


@pytest.mark.parametrize("name", TOTALS)
def test_published_models_have_their_published_total(name):
    config, total = TOTALS[name]
    assert total_parameters(architecture(config)) == total


@pytest.mark.parametrize(
    ("name", "active_b"),
    # As published, in billions, rounded as there.
    [
        ("mixtral-8x7b", 12.9),
        ("mixtral-8x22b", 39.2),
        ("qwen3-30b-a3b", 3.35),
        ("olmoe-1b-7b", 1.28),
        ("deepseek-v3", 37.6),
    ],
)
def test_active_parameters_are_the_published_ones(name, active_b):
    active = active_parameters(architecture(TOTALS[name][0]))
    assert active / 1e9 == pytest.approx(active_b, rel=0.005)


def interpreter_with_transformers():
    candidates = [sys.executable, *sorted((cache_root() / "engines").glob("*/bin/python"))]
    for python in candidates:
        # Looked for without importing it, which takes seconds.
        code = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
        asked = [str(python), "-I", "-c", code, "torch", "transformers"]
        if subprocess.run(asked, check=False, capture_output=True, timeout=60).returncode == 0:
            return str(python)
    return None


def test_counts_are_those_of_transformers_on_the_meta_device():
    python = interpreter_with_transformers()
    if python is None:
        pytest.skip("no interpreter here has torch and transformers; `make suites` builds one")
    configs = {
        **CATALOGUE,
        **{name: config for name, (config, _) in TOTALS.items()},
        **ODD,
    }
    built = subprocess.run(
        [python, "-I", "-c", BUILD],
        input=json.dumps(list(configs.values())),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    told = dict(zip(configs, map(int, built.stdout.split()), strict=True))
    ours = {name: total_parameters(architecture(config)) for name, config in configs.items()}
    assert ours == told


def test_groups_of_deepseek_v2_lite_by_hand():
    # https://arxiv.org/abs/2405.04434, appendix B: 27 layers, the first of them dense.
    hidden, heads = 2048, 16
    query, compress = hidden * heads * (128 + 64), hidden * (512 + 64)
    expand, output = 512 * heads * (128 + 128), heads * 128 * hidden
    assert parameters(architecture(CATALOGUE["deepseek-v2-lite"])) == {
        "embeddings": 2 * 102_400 * hidden,
        "attention": 27 * (query + compress + expand + output),
        "ffn": 3 * hidden * 10_944,
        "experts": 26 * 64 * 3 * hidden * 1408,
        "shared_experts": 26 * 2 * 3 * hidden * 1408,
        "router": 26 * 64 * hidden,
        "norms": 27 * (2 * hidden + 512) + hidden,
    }


def test_a_gate_weighs_the_shared_expert_of_qwen2_moe():
    groups = parameters(architecture(QWEN15_MOE))
    assert groups["shared_experts"] == 24 * (3 * 2048 * 5632 + 2048)
    # Query, key and value have a bias, the output has none.
    assert groups["attention"] == 24 * (4 * 2048 * 2048 + 3 * 2048)


@pytest.mark.parametrize(
    ("changes", "dense"),
    [
        ({"first_k_dense_replace": 2}, (0, 1)),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 3}, (0, 1, 2, 4, 5)),
        ({"first_k_dense_replace": 0}, ()),
    ],
)
def test_layers_without_experts_of_deepseek(changes, dense):
    arch = architecture(CATALOGUE["deepseek-v2-lite"], num_hidden_layers=7, **changes)
    assert arch.dense_layers == dense


def test_layers_without_experts_of_qwen():
    arch = architecture(QWEN15_MOE, num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3])
    assert arch.dense_layers == (0, 2, 3, 4)
    assert arch.expert_layers == (1, 5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mixtral-8x7b", "GQA"),
        ("olmoe-1b-7b", "MHA"),
        ("deepseek-v2-lite", "MLA"),
    ],
)
def test_attention_has_a_kind(name, kind):
    assert architecture(CATALOGUE[name]).attention_kind == kind


def test_one_key_value_head_is_multi_query_attention():
    assert architecture(CATALOGUE["mini-moe"], num_key_value_heads=1).attention_kind == "MQA"


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (MISTRAL_7B, tuple(range(32))),
        (MISTRAL_7B | {"sliding_window": None}, ()),
        (GPT_OSS_20B, tuple(range(0, 24, 2))),
        (
            QWEN3_0_6B
            | {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 26},
            (26, 27),
        ),
        (QWEN3_0_6B | {"use_sliding_window": False, "sliding_window": 512}, ()),
        (
            MISTRAL_7B
            | {
                "num_hidden_layers": 3,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
            (1,),
        ),
    ],
)
def test_layers_with_a_sliding_window(config, layers):
    assert architecture(config).window_layers == layers


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MISTRAL_7B | {"layer_types": ["full_attention"]}, "layer_types must be 32"),
        (DEEPSEEK_V3 | {"attention_bias": True}, "attention_bias = True is not supported"),
        (CATALOGUE["llama-3.1-8b"] | {"attention_bias": 1}, "attention_bias is 1, not true or"),
        (DEEPSEEK_V3 | {"kv_lora_rank": None}, "lacks kv_lora_rank"),
        (DEEPSEEK_V3 | {"first_k_dense_replace": -1}, "first_k_dense_replace is -1, not"),
        (QWEN15_MOE | {"mlp_only_layers": [24]}, r"mlp_only_layers is \[24\], not a list of"),
    ],
)
def test_what_would_be_miscounted_is_refused(config, message):
    with pytest.raises(ModelError, match=message):
        architecture(config)


@pytest.mark.parametrize(
    ("section", "quantization"),
    [
        (None, None),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "gptq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "gptq"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
    ],
)
def test_how_a_checkpoint_is_quantized(section, quantization):
    arch = architecture(CATALOGUE["mixtral-8x7b"], quantization_config=section)
    assert arch.quantization == quantization
