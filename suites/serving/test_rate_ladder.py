from pytest_moeperf import SLO

INTERACTIVE = SLO(ttft_ms=2000, tpot_ms=200)


def test_requests_arrive_at_a_fixed_rate(measure, online, arrivals, rate):
    """Under Poisson arrivals, queueing included, users wait no longer than in the baseline."""
    measure.ladder(online, arrivals, slo=INTERACTIVE)[rate].gate("e2el_ms.p50")
