import pytest

from pytest_moeperf import kv_tokens

GIB = 2**30


@pytest.fixture
def precision(gpu):
    """On a CPU the cache has the size that was set; on GPUs the log rounds what was left."""
    return 0.0 if gpu.name == "cpu" else 0.02


@pytest.mark.own_server
def test_kv_cache_holds_the_calculated_tokens(serve, measure, model, gpu, precision):
    """The engine turns the memory that it was given into the tokens that fit."""
    server = serve(model)
    given_gib = server.facts.kv_cache_gib
    if given_gib is None:
        # Fails: what is missing could not be measured.
        serve.at_most(model, "kv_cache_gib", given_gib, gpu.memory_gib, why="the machine's memory")
    fit = kv_tokens(
        int(given_gib * GIB),
        measure.architecture(model),
        block_size=int(server.counters().get("kv_block_tokens", 1)),
        context_tokens=server.context_tokens,
        tensor_parallel_size=model.spec.tensor_parallel_size,
    )
    told = server.facts.kv_cache_tokens
    why = "whole blocks of K and V"
    serve.expect(model, "kv_cache_tokens", told, equal_to=fit, within=precision, why=why)
