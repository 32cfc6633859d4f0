import pytest

from pytest_moeperf import SLO, OpenLoop

INTERACTIVE = SLO(ttft_ms=2000, tpot_ms=200)


@pytest.mark.parametrize(("request_rate", "requests"), [(2, 6), (4, 8), (8, 16)])
def test_requests_arrive_at_a_fixed_rate(measure, moe, request_rate, requests):
    """Under Poisson arrivals, queueing included, users wait no longer than in the baseline."""
    arrivals = OpenLoop(request_rate=request_rate, requests=requests, isl=32, osl=16)
    cell = measure(moe, arrivals, slo=INTERACTIVE)
    cell.gate("e2el_ms.p50")
