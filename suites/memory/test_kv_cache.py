import pytest

from pytest_moeperf import kv_tokens

GIB = 2**30


@pytest.mark.own_server
def test_kv_cache_holds_the_calculated_tokens(serve, measure, moe):
    """The engine turns the memory that it was given into exactly the tokens that fit."""
    server = serve(moe)
    fit = kv_tokens(
        int(server.facts.kv_cache_gib * GIB),
        measure.architecture(moe),
        block_size=int(server.counters()["kv_block_tokens"]),
        context_tokens=server.context_tokens,
    )
    told = server.facts.kv_cache_tokens
    serve.expect(moe, "kv_cache_tokens", told, equal_to=fit, why="whole blocks of K and V")
