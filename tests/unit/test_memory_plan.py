"""What one GPU holds and what that leaves room for; expected values are worked out by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.gpu import hardware_classes
from pytest_moeperf.memory import (
    PRECISIONS,
    Parallelism,
    Request,
    activation_bytes,
    fit,
    kv_bytes_per_token,
    kv_tokens,
    least_gpus,
    parameters,
    remedies,
    rotary_bytes,
    stage_bytes,
    stored_precision,
    total_parameters,
    unservable,
    weight_bytes,
)
from pytest_moeperf.memory.sharding import stages
from pytest_moeperf.models import catalogue

GIB = 2**30
ARCHITECTURES = {name: entry.architecture for name, entry in catalogue().items()}
MIXTRAL, LITE = ARCHITECTURES["mixtral-8x7b"], ARCHITECTURES["deepseek-v2-lite"]
QWEN = ARCHITECTURES["qwen3-30b-a3b"]
BF16, FP8, INT4, MXFP4 = (PRECISIONS[name] for name in ("bf16", "fp8", "int4", "mxfp4"))
H200_GIB = next(each.memory_gib for each in hardware_classes() if each.name == "h200")


def asked(arch=MIXTRAL, **changes):
    request = Request(
        arch=arch,
        gpu_gib=H200_GIB,
        parallel=Parallelism(),
        precision=BF16,
        kv_dtype="bf16",
        context_tokens=4096,
        concurrency=1,
        utilization=0.92,
    )
    return replace(request, **changes)


def held(arch, precision=BF16, *, stage=0, **parallel):
    return stage_bytes(arch, Parallelism(**parallel), precision, stage=stage)


# Engines' logs


@pytest.mark.parametrize(
    ("model", "tensor", "weights_gib", "tokens"),
    # vLLM 0.24.0 on one and two H200 at a utilisation of 0.92; SGLang 0.5.16 with its own rule.
    [
        ("mixtral-8x7b", 1, 87.0, 319_264),
        ("mixtral-8x7b", 1, 87.01, 317_240),
        ("mixtral-8x7b", 2, 43.51, 1_358_112),
        ("mixtral-8x7b", 2, 43.51, 1_331_517),
        ("llama-3.1-8b", 1, 15.0, 919_824),
        ("llama-3.1-8b", 2, 7.54, 1_961_216),
    ],
)
def test_the_plan_is_what_engines_told_on_h200(model, tensor, weights_gib, tokens):
    plan = fit(asked(ARCHITECTURES[model], parallel=Parallelism(tensor=tensor)))
    told = plan.weight_bytes + rotary_bytes(ARCHITECTURES[model])
    assert told / GIB == pytest.approx(weights_gib, rel=0.005)
    assert plan.kv_tokens == pytest.approx(tokens, rel=0.02)


def test_the_activations_of_mixtral_by_hand():
    # 8192 tokens, top 2: gate and up of 28,672 and their product of 14,336; 2 bytes each. And
    # twice the hidden states of 4,096.
    mixture, hidden = 8192 * 2 * (28_672 + 14_336) * 2, 2 * 8192 * 4096 * 2
    assert activation_bytes(MIXTRAL, Parallelism()) == mixture + hidden
    assert activation_bytes(MIXTRAL, Parallelism(tensor=2)) == mixture // 2 + hidden
    whole = Parallelism(tensor=2, experts_whole=True)
    assert activation_bytes(MIXTRAL, whole) == mixture + hidden


def test_shared_experts_are_split_with_the_attention():
    # Top 6 of 1,408 columns, of which each of two GPUs computes 704: gate and up of 1,408, or the
    # output of 2,048, and the product. The two shared experts are one of 2,816, the dense layer of
    # 10,944 is less than both.
    arch = replace(LITE, vocab=1000)
    block = 8192 * (6 * (2048 + 704) + 3 * 2816 // 2)
    hidden = 2 * 8192 * 2048 * 2
    assert activation_bytes(arch, Parallelism(tensor=2)) == hidden + 2 * block


def test_the_logits_of_a_large_vocabulary_outweigh_small_blocks():
    # 1024 rows of 151,936 float32 against 8192 × 3 × 1024 activations of 2 bytes.
    arch = replace(ARCHITECTURES["mini-dense"], vocab=151_936, ffn=1024)
    assert activation_bytes(arch, Parallelism()) == 2 * 8192 * 1024 * 2 + 1024 * 151_936 * 4


# Who holds what


def test_attention_ranks_repeat_the_attention_and_share_the_experts():
    one, two = held(LITE), held(LITE, data=2, experts_whole=True)
    assert two["experts"] * 2 == one["experts"]
    others = [group for group in one if group != "experts"]
    assert [two[group] for group in others] == [one[group] for group in others]


def test_experts_take_the_same_sliced_or_whole_where_their_number_divides():
    assert held(QWEN, tensor=4) == held(QWEN, tensor=4, experts_whole=True)


def test_the_fullest_gpu_of_an_uneven_deal_counts():
    # 8 experts on 3 ranks: 3, 3 and 2.
    whole = held(MIXTRAL, data=3, experts_whole=True)["experts"]
    assert whole * 8 == held(MIXTRAL)["experts"] * 3


def test_what_compresses_in_mla_is_on_every_gpu():
    # 27 layers: query 2048 × 16 × 192 split; 2048 × (512 + 64) whole; the rest split.
    query, expand, output = 2048 * 16 * 192, 512 * 16 * 256, 16 * 128 * 2048
    expected = 27 * ((query + expand + output) // 4 + 2048 * 576)
    assert held(LITE, tensor=4)["attention"] == 2 * expected


def test_the_query_is_compressed_on_every_gpu_where_it_is():
    latent = replace(LITE.latent, query_rank=1024)
    groups = held(replace(LITE, latent=latent), tensor=4)
    query, expand, output = 1024 * 16 * 192, 512 * 16 * 256, 16 * 128 * 2048
    expected = 27 * ((query + expand + output) // 4 + 2048 * (576 + 1024))
    assert groups["attention"] == 2 * expected


def test_pipeline_stages_are_those_of_vllm():
    assert [len(each) for each in stages(61, 4)] == [15, 15, 16, 15]
    assert [len(each) for each in stages(27, 2)] == [14, 13]
    assert [len(each) for each in stages(62, 4)] == [15, 16, 16, 15]


def test_ends_of_a_pipeline_hold_an_embedding_each():
    first, middle, last = (held(MIXTRAL, pipeline=3, stage=stage) for stage in range(3))
    assert first["embeddings"] == last["embeddings"] == 2 * 32_000 * 4096
    assert middle["embeddings"] == 0


def test_tied_embeddings_are_twice_in_a_pipeline_and_once_without():
    arch = replace(ARCHITECTURES["mini-dense"], tied_embeddings=True)
    size = 2 * 4096 * 1024
    assert held(arch)["embeddings"] == size
    assert [held(arch, pipeline=2, stage=stage)["embeddings"] for stage in (0, 1)] == [size, size]


@given(
    name=st.sampled_from(sorted(ARCHITECTURES)),
    tensor=st.sampled_from([1, 2, 4, 8]),
    pipeline=st.integers(1, 4),
    data=st.integers(1, 4),
    experts_whole=st.booleans(),
)
def test_all_gpus_together_hold_at_least_the_model(name, tensor, pipeline, data, experts_whole):
    arch = ARCHITECTURES[name]
    spread = {"tensor": tensor, "pipeline": pipeline, "data": data, "experts_whole": experts_whole}
    gpus = tensor * data
    together = gpus * sum(
        sum(held(arch, stage=stage, **spread).values()) for stage in range(pipeline)
    )
    assert together >= 2 * total_parameters(arch)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stages_hold_the_model_once(name):
    arch = ARCHITECTURES[name]
    together = sum(sum(held(arch, pipeline=3, stage=stage).values()) for stage in range(3))
    assert together == 2 * total_parameters(arch) == weight_bytes(arch)


@pytest.mark.parametrize(
    ("arch", "spread", "reason"),
    [
        (MIXTRAL, {"tensor": 3}, "TP=3 does not divide the 32 attention heads"),
        (QWEN, {"tensor": 32}, ""),
        (replace(QWEN, kv_heads=6), {"tensor": 4}, "TP=4 does not divide the 6 key-value heads, n"),
        (MIXTRAL, {"pipeline": 33}, "PP=33 is more than the 32 layers"),
        (ARCHITECTURES["llama-3.1-8b"], {"experts_whole": True}, "a dense model has no experts to"),
        (replace(QWEN, ffn=770), {"tensor": 16, "data": 3}, "48 GPUs do not divide the 770 col"),
        (replace(QWEN, ffn=100), {"tensor": 8}, "8 GPUs do not divide the 100 columns of an exp"),
        (replace(QWEN, ffn=100), {"tensor": 8, "experts_whole": True}, ""),
        (LITE, {"tensor": 16}, ""),
    ],
)
def test_spreads_that_engines_refuse(arch, spread, reason):
    told = unservable(arch, Parallelism(**spread))
    assert told.startswith(reason)
    assert bool(told) is bool(reason)


# Formats


def test_formats_leave_embeddings_router_and_norms_as_they_are():
    plain, fp8 = held(MIXTRAL), held(MIXTRAL, FP8)
    for group in ("embeddings", "router", "norms"):
        assert fp8[group] == plain[group]
    # One byte a weight, and four for 128 × 128 of them.
    experts = parameters(MIXTRAL)["experts"]
    assert fp8["experts"] == experts + 4 * experts // 128**2
    attention = parameters(MIXTRAL)["attention"]
    assert fp8["attention"] == attention + 4 * attention // 128**2


def test_int4_has_a_scale_and_a_zero_point_for_128_weights():
    experts = parameters(MIXTRAL)["experts"]
    assert held(MIXTRAL, INT4)["experts"] == experts // 2 + experts // 128 * 5 // 2


def test_mxfp4_is_for_experts_alone():
    plain, packed = held(MIXTRAL), held(MIXTRAL, MXFP4)
    experts = parameters(MIXTRAL)["experts"]
    assert packed["experts"] == experts // 2 + experts // 32
    assert packed["attention"] == plain["attention"]


def test_mla_keeps_a_copy_that_is_not_quantized():
    attention = parameters(LITE)["attention"]
    copied = 27 * 512 * 16 * 256
    scales = pytest.approx(4 * attention / 128**2, abs=27 * 4 * 5)
    assert held(LITE, FP8)["attention"] - attention - 2 * copied == scales


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "bf16"),
        ({"dtype_bytes": 4}, "fp32"),
        ({"quantization": "fp8"}, "fp8"),
        ({"quantization": "quark"}, None),
    ],
)
def test_what_a_checkpoint_is_stored_as(changes, name):
    precision = stored_precision(replace(MIXTRAL, **changes))
    assert (precision and precision.name) == name


def test_weights_of_an_unknown_quantization_count_as_not_quantized():
    assert weight_bytes(replace(MIXTRAL, quantization="quark")) == weight_bytes(MIXTRAL)
    assert weight_bytes(replace(MIXTRAL, quantization="fp8")) < 0.51 * weight_bytes(MIXTRAL)


# The cache


def test_mla_caches_one_vector_that_is_not_split():
    # 27 layers × (512 + 64) × 2 bytes.
    assert kv_bytes_per_token(LITE) == 31_104
    assert kv_bytes_per_token(LITE, 1, tensor_parallel_size=8) == 15_552


def test_a_mixture_caches_what_the_dense_model_of_equal_attention_caches():
    """C7 of the published claims."""
    llama = ARCHITECTURES["llama-3.1-8b"]
    assert kv_bytes_per_token(MIXTRAL) == kv_bytes_per_token(llama)


def test_fp8_doubles_the_tokens_of_a_cache():
    """D8 of the published claims."""
    tokens = [fit(asked(kv_dtype=dtype)).kv_tokens for dtype in ("bf16", "fp8")]
    assert tokens[1] == pytest.approx(2 * tokens[0], rel=1e-4)


def test_layers_with_a_window_keep_the_end_of_a_request():
    arch = replace(MIXTRAL, window=1024, window_layers=tuple(range(16)))
    size = kv_bytes_per_token(MIXTRAL) * 16 * 1000
    plain = kv_tokens(size, MIXTRAL, block_size=16, context_tokens=4096)
    # Of 256 blocks half of the layers keep 64, and one for a window that starts within a block.
    assert plain == 16_000
    assert kv_tokens(size, arch, block_size=16, context_tokens=4096) == pytest.approx(
        16_000 * 2 * 256 / (256 + 65), abs=1
    )
    assert kv_tokens(size, arch, block_size=16, context_tokens=512) == 16_000


@pytest.mark.parametrize("size", [0, -1, -(2**40)])
def test_no_room_holds_no_token(size):
    assert kv_tokens(size, MIXTRAL, block_size=16, context_tokens=100) == 0


# Does it fit


def test_parts_of_a_gpu_add_up_to_its_memory():
    plan = fit(asked(parallel=Parallelism(tensor=2)))
    parts = plan.weight_bytes + plan.activations + plan.graphs + plan.runtime + plan.kv_cache
    assert parts + plan.unused == int(H200_GIB * GIB)


def test_requests_at_once_are_those_whose_whole_context_fits():
    plan = fit(asked(context_tokens=32_768))
    assert plan.sequences == plan.kv_tokens // 32_768 == 9
    assert fit(asked(context_tokens=32_768, concurrency=9)).fits
    assert not fit(asked(context_tokens=32_768, concurrency=10)).fits


def test_the_fullest_stage_of_a_pipeline_decides():
    request = asked(LITE, parallel=Parallelism(pipeline=2), gpu_gib=40.0)
    plan = fit(request)
    # 14 layers with the dense one against 13 with the output layer.
    assert plan.weights == held(LITE, pipeline=2, stage=0)


def test_the_stage_that_holds_the_fewest_tokens_need_not_be_the_fullest():
    # 32 layers in five stages: 6, 6, 7, 7, 6. The first also holds the embedding, which outweighs
    # the layer that the third has more; but there a token takes the room of seven layers.
    llama = ARCHITECTURES["llama-3.1-8b"]
    request = asked(llama, parallel=Parallelism(pipeline=5), gpu_gib=24.0)
    first, third = (sum(held(llama, pipeline=5, stage=stage).values()) for stage in (0, 2))
    assert first > third
    assert fit(request).weights == held(llama, pipeline=5, stage=2)


def test_attention_ranks_have_a_cache_each():
    whole = Parallelism(tensor=1, data=2, experts_whole=True)
    two, plan = fit(asked(LITE, parallel=whole)), fit(asked(LITE))
    assert two.kv_tokens > 2 * plan.kv_tokens
    assert two.sequences % 2 == 0


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (asked(gpu_gib=79.6), ["--dtype fp8", "--dtype int4"]),
        (
            asked(context_tokens=32_768, concurrency=15),
            ["--concurrency 9", "--context 21280", "--kv-dtype fp8", "--dtype fp8", "--dtype int4"],
        ),
        (asked(gpu_gib=10.0), []),
    ],
)
def test_single_changes_that_would_fit_are_told(request_, told):
    assert not fit(request_).fits
    assert list(remedies(request_)) == told


def test_the_longest_context_that_is_told_fits_and_no_longer_one():
    request = asked(context_tokens=32_768, concurrency=15)
    assert fit(replace(request, context_tokens=21_280)).fits
    assert not fit(replace(request, context_tokens=21_296)).fits


@pytest.mark.parametrize(
    ("request_", "gpu_gib", "spread"),
    [
        (asked(), 79.6, Parallelism(tensor=2)),
        (asked(), 140.4, Parallelism()),
        # TP=3 does not divide the heads.
        (asked(), 40.0, Parallelism(pipeline=3)),
        (asked(), 1.0, None),
    ],
)
def test_fewest_gpus(request_, gpu_gib, spread):
    assert least_gpus(request_, gpu_gib=gpu_gib) == spread


def test_more_than_a_host_is_whole_hosts():
    huge = replace(MIXTRAL, layers=512)
    spread = least_gpus(asked(huge), gpu_gib=140.4)
    assert (spread.tensor, spread.pipeline) == (8, 2)


def change(option, value):
    """What an option of `moeperf fit` sets in a request."""
    match option:
        case "--concurrency":
            return {"concurrency": int(value)}
        case "--context":
            return {"context_tokens": int(value)}
        case "--kv-dtype":
            return {"kv_dtype": value}
        case "--dtype":
            return {"precision": PRECISIONS[value]}


@given(
    gpu_gib=st.floats(20, 200),
    context=st.integers(1, 32_768),
    concurrency=st.integers(1, 64),
    tensor=st.sampled_from([1, 2, 4, 8]),
)
def test_what_is_told_would_fit(gpu_gib, context, concurrency, tensor):
    request = asked(
        gpu_gib=gpu_gib,
        context_tokens=context,
        concurrency=concurrency,
        parallel=Parallelism(tensor=tensor),
    )
    if fit(request).fits:
        return
    for each in remedies(request):
        assert fit(replace(request, **change(*each.split()))).fits
