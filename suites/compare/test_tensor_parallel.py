WHY = "each GPU reads half of the weights, and the exchange after a layer must not eat that up"
MOST = 2.2


def test_two_gpus_over_one_with_experts(measure, moe, moe_tp2, burst, single):
    """Two GPUs serve a mixture of experts faster than one, up to twice as fast."""
    one, two = measure.together(moe, moe_tp2, {"burst": burst, "single": single})
    two["burst"].over(one["burst"], "output_throughput").within(1.0, MOST, why=WHY)
    one["single"].over(two["single"], "itl_token_ms.p50").within(1.0, MOST, why=WHY)


def test_two_gpus_over_one_without_experts(measure, dense, dense_tp2, burst, single):
    """Two GPUs serve a dense model faster than one, up to twice as fast."""
    one, two = measure.together(dense, dense_tp2, {"burst": burst, "single": single})
    two["burst"].over(one["burst"], "output_throughput").within(1.0, MOST, why=WHY)
    one["single"].over(two["single"], "itl_token_ms.p50").within(1.0, MOST, why=WHY)
