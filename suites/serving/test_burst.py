from pytest_moeperf import Burst


def test_all_requests_at_once(measure, moe):
    """A burst of requests is worked off no slower than the baseline."""
    cell = measure(moe, Burst(requests=16, isl=64, osl=32))
    cell.gate("output_throughput", "ttft_ms.p50")
