import pytest


@pytest.fixture
def gates(gpu):
    """On GPUs the step alone: of so short a run the first token and the host are a good part."""
    return ("itl_token_ms.p50", "output_throughput") if gpu.name == "cpu" else ("tpot_ms.mean",)


def test_streams_decode_together(measure, model, ladder, batch, gates):
    """At every batch size a decode step and the throughput hold the baseline."""
    measure.ladder(model, ladder)[batch].gate(*gates)
