import pytest

WHY = "both read the same weights with much the same kernels: a fifth apart, one has lost something"


@pytest.mark.across_engines("sglang", "vllm")
def test_sglang_over_vllm(measure, moe, burst, single):
    """Neither engine is far ahead of the other, all at once or with one stream."""
    loads = {"burst": burst, "single": single}
    sglang, vllm = measure.together(moe["sglang"], moe["vllm"], loads)
    sglang["burst"].over(vllm["burst"], "output_throughput").within(0.8, 1.25, why=WHY)
    sglang["single"].over(vllm["single"], "itl_token_ms.p50").within(0.8, 1.25, why=WHY)
