import pytest

from pytest_moeperf import weight_bytes_per_step

SLACK = 2.0
"""Routing, and experts that are smaller matrices than the dense layer, cost time as well."""


@pytest.mark.parametrize("streams", [1, 8])
def test_throughput_of_moe_over_dense(measure, moe, dense, ladder, streams):
    """A MoE is slower than its dense partner by the experts that it reads, and by little more."""
    rungs = {few: ladder[few] for few in (1, 8)}
    moe_cells, dense_cells = measure.together(moe, dense, rungs)
    read = [weight_bytes_per_step(measure.architecture(each), streams) for each in (dense, moe)]
    moe_cells[streams].over(dense_cells[streams], "output_throughput").within(
        read[0] / read[1] / SLACK, 1.5, why="half of what the bytes of a step allow, or more"
    )
