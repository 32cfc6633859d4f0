import pytest


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16])
def test_streams_decode_together(measure, moe, ladder, batch):
    """At every batch size a decode step and the throughput hold the baseline."""
    cell = measure.ladder(moe, ladder)[batch]
    cell.gate("itl_token_ms.p50", "output_throughput")
