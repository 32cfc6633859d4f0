import pytest

from pytest_moeperf import predicted_step_growth

WHY = "a decode step reads each weight once, and only the experts that its tokens chose"
TOLERANCE = 2.0
"""Attention, activations and arithmetic take time beside the bytes. An engine that reads all
experts at every step would not grow at all (1.0 where 3.1 and 3.4 are predicted)."""


@pytest.mark.parametrize("streams", [2, 4, 8, 16])
def test_step_grows_with_the_experts_it_reads(measure, moe, ladder, streams):
    """A step of B tokens reads 1 - (1 - k/E)^B of the experts and takes time accordingly."""
    cells = measure.ladder(moe, ladder)
    growth = cells[streams].over(cells[1], "itl_token_ms.p50")
    predicted = predicted_step_growth(measure.architecture(moe), streams)
    growth.expect(predicted, factor=TOLERANCE, why=WHY)


def test_dense_step_stays_flat(measure, dense, ladder, flat_batch):
    """A dense model reads the same weights at every batch size, while arithmetic is cheap."""
    cells = measure.ladder(dense, {few: ladder[few] for few in (1, flat_batch)})
    growth = cells[flat_batch].over(cells[1], "itl_token_ms.p50")
    predicted = predicted_step_growth(measure.architecture(dense), flat_batch)
    growth.expect(predicted, factor=TOLERANCE, why=WHY)
