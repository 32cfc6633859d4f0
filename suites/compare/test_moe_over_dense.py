import pytest

from pytest_moeperf import ClosedLoop, weight_bytes_per_step

SLACK = 2.0
"""Routing, and experts that are smaller matrices than the dense layer, cost time as well."""


@pytest.mark.parametrize("batch", [1, 8])
def test_throughput_of_moe_over_dense(measure, moe, dense, batch):
    """A MoE is slower than its dense partner by the experts that it reads, and by little more."""
    streams = ClosedLoop(concurrency=batch, isl=32, osl=32, requests=max(4, batch))
    moe_cell, dense_cell = measure.together(moe, dense, streams)
    read = [weight_bytes_per_step(measure.architecture(each), batch) for each in (dense, moe)]
    moe_cell.over(dense_cell, "output_throughput").within(
        read[0] / read[1] / SLACK, 1.5, why="half of what the bytes of a step allow, or more"
    )
