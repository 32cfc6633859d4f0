"""When a load worker naps, and what it counts of its own reads."""

from array import array

from pytest_moeperf.loadgen.traffic import BLIND_NAP_NS, MOST_LAGS, NAP_NS, Traffic

MS = 1_000_000


def after(traffic, *, reads, ms=10, unstamped=0, since=0, streams=100):
    """Let so many reads come within so many milliseconds."""
    traffic.reads += reads
    traffic.unstamped += unstamped
    traffic.adapt((since + ms) * MS, streams=streams)
    return traffic


def test_a_worker_naps_when_more_than_2_reads_come_in_a_millisecond():
    assert not after(Traffic(), reads=20).napping
    assert after(Traffic(), reads=21).napping


def test_a_nap_is_a_fifth_of_the_gap_between_the_reads_of_a_stream():
    # 100 streams with a read every 2 ms each: 500 in 10 ms.
    assert after(Traffic(), reads=500).longest_nap_ns == 2 * MS // 5
    assert after(Traffic(), reads=1000).longest_nap_ns == MS // 5
    assert after(Traffic(), reads=50).longest_nap_ns == NAP_NS


def test_the_last_moments_decide():
    traffic = after(Traffic(), reads=500)
    assert after(traffic, reads=5, since=10).napping is False


def test_nothing_is_decided_before_10_milliseconds():
    assert not after(Traffic(), reads=500, ms=9).napping


def test_reads_without_a_stamp_forbid_naps_for_as_long_as_they_come():
    traffic = after(Traffic(), reads=100, unstamped=1)
    assert (traffic.napping, traffic.longest_nap_ns) == (False, BLIND_NAP_NS)
    after(traffic, reads=100, since=10)
    assert (traffic.napping, traffic.longest_nap_ns) == (True, NAP_NS)


def test_of_many_lags_every_other_is_kept():
    traffic = Traffic()
    traffic.lags_ns = array("q", range(MOST_LAGS + 1))
    after(traffic, reads=1)
    assert traffic.lag_stride == 2
    assert list(traffic.lags_ns[:3]) == [0, 2, 4]


def test_of_chunks_that_are_read_together_all_but_the_last_lose_their_times():
    traffic = Traffic()
    traffic.note_merged(4, within_ns=3 * MS)
    assert (traffic.merged, traffic.lost) == (1, 0)
    traffic.note_merged(4, within_ns=3 * MS + 1)
    assert (traffic.merged, traffic.lost) == (2, 3)
