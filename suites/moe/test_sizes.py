import pytest

from pytest_moeperf import weight_bytes_per_step

WHY = "a decode step takes as long as the weights that it reads"
TOLERANCE = 2.0
"""As for the steps of one model: attention, activations and arithmetic take time as well."""
STREAMS = (1, 32)


def expect_time_of_bytes(measure, one, other, ladder, streams):
    # Both loads at once: where one GPU has no room for two servers, each starts only once.
    loads = {each: ladder[each] for each in STREAMS}
    cells = [found[streams] for found in measure.together(one, other, loads)]
    read = [weight_bytes_per_step(measure.architecture(each), streams) for each in (one, other)]
    ratio = cells[0].over(cells[1], "itl_token_ms.p50")
    ratio.expect(read[0] / read[1], factor=TOLERANCE, why=WHY)


@pytest.mark.parametrize("streams", STREAMS)
def test_one_expert_a_token_over_two(measure, one_expert, moe, ladder, streams):
    """With one expert a token in place of two, a stream reads less, and a batch still all."""
    expect_time_of_bytes(measure, one_expert, moe, ladder, streams)


@pytest.mark.parametrize("streams", STREAMS)
def test_more_experts_over_eight(measure, more_experts, eight_experts, ladder, streams):
    """More experts, of which a token takes as many as before, slow down a batch alone."""
    expect_time_of_bytes(measure, more_experts, eight_experts, ladder, streams)


def test_narrower_experts_over_wide_ones(measure, narrower, moe, ladder):
    """Experts of a half or a quarter of the width take that part of the time.

    With all layers: four narrow ones take 0.8 ms on an H200, and the engine between steps 1.1 ms.
    """
    expect_time_of_bytes(measure, narrower, moe, ladder, 32)
