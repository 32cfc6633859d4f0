import pytest

MOST = 0.02
"""Of a GPU's memory."""


@pytest.mark.gpus(1)
@pytest.mark.own_server
def test_graphs_leave_the_memory_to_the_cache(serve, model, gpu):
    """CUDA graphs take a small share of the memory, for each GiB of theirs the KV cache lacks."""
    told = serve(model).facts.graphs_gib
    why = "2 % of the GPU's memory"
    serve.at_most(model, "graphs_gib", told, MOST * gpu.gpu_memory_gib, why=why)
