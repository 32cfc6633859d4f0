import pytest

SLICES = "both read the same weights; at worst one GPU has all tokens and takes twice as long"
MOVING = "to count loads and to move a few experts now and then must not show"
SKEW = "the busiest of four GPUs would draw 36 % of the tokens instead of 25 %"


@pytest.mark.gpus(2)
def test_whole_experts_over_slices(measure, moe_ep2, moe_tp2, burst):
    """Whole experts on each GPU serve a burst as fast as slices of all do, but for imbalance."""
    whole, slices = measure.together(moe_ep2, moe_tp2, burst)
    whole.over(slices, "output_throughput").within(0.5, 1.5, why=SLICES)


@pytest.mark.gpus(2)
def test_balancing_over_none(measure, balancing, unbalancing, burst):
    """A load balancer that moves experts between GPUs costs next to nothing."""
    moved, fixed = measure.together(balancing, unbalancing, burst)
    moved.over(fixed, "output_throughput").within(0.9, None, why=MOVING)


@pytest.mark.gpus(4)
def test_skewed_over_even_routing(measure, skewed, unskewed, burst):
    """Where some experts draw most tokens, a burst takes as long as the busiest GPU and no more."""
    uneven, even = measure.together(skewed, unskewed, burst)
    uneven.over(even, "output_throughput").within(0.25 / 0.364, 1.1, why=SKEW)
