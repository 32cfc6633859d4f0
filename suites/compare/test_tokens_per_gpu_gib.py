import pytest


@pytest.mark.gpus(1)
def test_tokens_for_the_memory_they_take(measure, model, burst):
    """A burst yields as many tokens a second for each GiB in use as in the baseline."""
    measure(model, burst).gate("output_throughput_per_gpu_gib")
