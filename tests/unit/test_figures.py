import statistics
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.figures import compute, steady_window
from pytest_moeperf.metrics import KEYS, METRICS, SLO, completed, describe
from pytest_moeperf.records import RequestRecord
from pytest_moeperf.stats import PERCENTILE_FLOOR, percentile

MS = 1_000_000


def request(
    chunk_ms=(100, 120, 140), tokens=None, *, sent_ms=0, scheduled_ms=None, error=None, **fields
):
    """A request whose chunks carry one token each, unless told otherwise."""
    tokens = tuple(tokens or (1 for _ in chunk_ms))
    return RequestRecord(
        **{
            "index": 0,
            "sent_ns": sent_ms * MS,
            "scheduled_ns": None if scheduled_ms is None else scheduled_ms * MS,
            "chunk_ns": tuple(round(at * MS) for at in chunk_ms),
            "chunk_tokens": tokens,
            "prompt_tokens": 32,
            "output_tokens": sum(tokens),
            "asked_output_tokens": sum(tokens),
            "ended_ns": 1_000 * MS,
            "error": error,
            **fields,
        }
    )


def test_latencies_of_one_request():
    values = compute([request((100, 120, 160), sent_ms=20)])
    assert values["ttft_ms.p50"] == 80
    assert values["tpot_ms.p50"] == 30  # 60 ms for the two tokens after the first.
    assert values["itl_chunk_ms.mean"] == 30
    assert values["itl_chunk_ms.p50"] == 30
    assert values["e2el_ms.p50"] == 140
    assert values["max_stall_ms"] == 40
    assert values["tokens_per_chunk.mean"] == 1


def test_the_two_itls_differ_where_chunks_carry_several_tokens():
    values = compute([request((100, 130, 140), tokens=(1, 3, 1))])
    assert values["itl_chunk_ms.mean"] == 20  # 30 and 10.
    assert values["itl_token_ms.mean"] == 10  # 10, 10, 10 and 10.
    assert values["tpot_ms.mean"] == 10  # 40 ms for four tokens.
    assert values["tokens_per_chunk.mean"] == pytest.approx(5 / 3)


def test_open_loop_latencies_count_from_the_scheduled_time():
    values = compute([request((100, 120), sent_ms=60, scheduled_ms=10)])
    assert values["ttft_ms.p50"] == 90
    assert values["e2el_ms.p50"] == 110


def test_throughput_over_first_start_to_last_token():
    values = compute(
        [request((600, 1_000), sent_ms=500), request((1_500, 2_500), sent_ms=1_000, index=1)]
    )
    # Two requests, four output tokens and 64 prompt tokens in 2 s.
    assert values["request_throughput"] == 1
    assert values["output_throughput"] == 2
    assert values["total_throughput"] == 34


def test_output_tokens_come_from_the_usage_and_else_from_the_chunks():
    told = compute([request((500, 1_000), output_tokens=6)])
    untold = compute([request((500, 1_000), output_tokens=None)])
    assert told["output_throughput"] == 6
    assert told["tpot_ms.p50"] == 100
    assert untold["output_throughput"] == 2
    assert untold["tpot_ms.p50"] == 500


def test_failed_requests_are_counted_and_left_out_of_everything_else():
    good = request((100, 120))
    failures = [
        request((900, 950), error="HTTP 500", index=1),
        request((), index=2, output_tokens=None, asked_output_tokens=2),
    ]
    with_failures, alone = compute([good, *failures]), compute([good])
    assert with_failures.pop("failed_requests") == 2
    assert alone.pop("failed_requests") == 0
    assert with_failures == alone
    assert not any(map(completed, failures))


def test_nothing_completed_leaves_everything_missing_but_the_failures():
    values = compute([request((100,), error="timeout")])
    assert values.pop("failed_requests") == 1
    assert set(values.values()) == {None}


def test_one_token_has_a_ttft_and_no_time_between_tokens():
    values = compute([request((100,))])
    assert values["ttft_ms.p50"] == 100
    assert values["tpot_ms.p50"] is None
    assert values["itl_chunk_ms.p50"] is None
    assert values["max_stall_ms"] is None


def test_all_tokens_in_one_chunk_have_no_tpot():
    assert compute([request((100,), tokens=(5,))])["tpot_ms.p50"] is None


def test_total_throughput_is_missing_where_a_prompt_was_not_counted():
    values = compute([request(), request(prompt_tokens=None)])
    assert values["total_throughput"] is None
    assert values["output_throughput"] is not None


def test_a_run_without_duration_has_no_throughput():
    assert compute([request((0,))])["request_throughput"] is None


@pytest.mark.parametrize(
    ("requests", "given_percentiles"),
    [(1, {"p50"}), (63, {"p50"}), (64, {"p50", "p90"}), (662, {"p50", "p90", "p99"})],
)
def test_a_percentile_is_missing_below_its_floor(requests, given_percentiles):
    values = compute([request((100,))] * requests)
    present = {name for name in ("p50", "p90", "p99") if values[f"ttft_ms.{name}"] is not None}
    assert present == given_percentiles


def test_throughput_is_shared_by_the_memory_that_the_gpus_have_in_use():
    # Three tokens in 140 ms, on two GPUs with 40 GiB together.
    values = compute([request()], gpu_memory_gib=40.0)
    assert values["output_throughput_per_gpu_gib"] == pytest.approx(3 / 0.140 / 40)
    assert compute([request()])["output_throughput_per_gpu_gib"] is None
    assert compute([], gpu_memory_gib=40.0)["output_throughput_per_gpu_gib"] is None


def test_goodput_counts_requests_within_every_objective():
    requests = [
        request((100, 200), sent_ms=0),  # TTFT 100, TPOT 100: good.
        request((500, 600), sent_ms=0),  # TTFT 500: late.
        request((100, 1_000), sent_ms=0),  # TPOT 900: slow.
        request((100,), error="HTTP 500"),
    ]
    values = compute(requests, slo=SLO(ttft_ms=100, tpot_ms=100))
    assert values["goodput"] == 1  # In 1 s.
    assert values["goodput_share"] == 0.25  # The failed one counts against it.


def test_goodput_of_zero_is_a_figure_and_without_slo_it_is_missing():
    assert compute([request()], slo=SLO(e2el_ms=1))["goodput"] == 0
    assert compute([request()])["goodput"] is None


def test_a_request_of_one_token_meets_any_tpot():
    assert compute([request((100,))], slo=SLO(tpot_ms=1))["goodput_share"] == 1


def test_compute_gives_exactly_the_keys_of_the_table():
    assert tuple(sorted(compute([]))) == tuple(sorted(KEYS))
    assert compute([])["failed_requests"] == 0


@given(
    st.lists(st.lists(st.integers(1, 10_000), min_size=2, max_size=6), min_size=1, max_size=5),
    st.integers(2, 9),
)
def test_a_run_that_is_slower_throughout_scales_every_figure(gaps, factor):
    def run(scale):
        requests = []
        for row in gaps:
            at, chunks = 0, []
            for gap in row:
                at += gap * scale
                chunks.append(at)
            requests.append(request(chunks))
        return compute(requests)

    fast, slow = run(1), run(factor)
    for key, value in fast.items():
        metric, _ = describe(key)
        scale = {"ms": factor, "req/s": 1 / factor, "tok/s": 1 / factor}.get(metric.unit, 1)
        assert slow[key] == (None if value is None else pytest.approx(value * scale))


# The same figures, slowly: one Python number after the other, as the table defines them.


def slow_series(key, record):
    tokens = sum(record.chunk_tokens) if record.output_tokens is None else record.output_tokens
    first, last = record.chunk_ns[0], record.chunk_ns[-1]
    gaps = [(b - a) / 1e6 for a, b in zip(record.chunk_ns, record.chunk_ns[1:], strict=False)]
    shared = zip(gaps, record.chunk_tokens[1:], strict=True)
    several = len(record.chunk_ns) > 1 and tokens > 1
    series = {
        "ttft_ms": [(first - record.start_ns) / 1e6],
        "e2el_ms": [(last - record.start_ns) / 1e6],
        "tpot_ms": [(last - first) / (tokens - 1) / 1e6] if several else [],
        "itl_chunk_ms": gaps,
        "itl_token_ms": [gap / count for gap, count in shared for _ in range(count)],
        "tokens_per_chunk": list(record.chunk_tokens),
    }
    return series.get(key, [])


def slow_statistic(values, name):
    if not values or len(values) < PERCENTILE_FLOOR.get(int(name[1:]) if name != "mean" else 50):
        return None
    if name == "mean":
        return statistics.fmean(values)
    return percentile(sorted(values), int(name[1:]))


def slow_compute(requests, slo):
    done = [each for each in requests if completed(each)]
    values = {"failed_requests": float(len(requests) - len(done))}
    for metric in METRICS.values():
        series = [value for each in done for value in slow_series(metric.key, each)]
        for name in metric.statistics:
            values[f"{metric.key}.{name}"] = slow_statistic(series, name)
    duration_s = (
        (max(each.chunk_ns[-1] for each in done) - min(each.start_ns for each in done)) / 1e9
        if done
        else None
    )
    output = sum(
        sum(each.chunk_tokens) if each.output_tokens is None else each.output_tokens
        for each in done
    )
    prompts = [each.prompt_tokens for each in done]
    good = sum(
        all(
            value <= objective
            for key in ("ttft_ms", "tpot_ms", "e2el_ms")
            if (objective := getattr(slo, key)) is not None
            for value in slow_series(key, each)
        )
        for each in done
    )
    rates = {
        "request_throughput": len(done),
        "output_throughput": output,
        "total_throughput": None if None in prompts else sum(prompts) + output,
        "goodput": good,
    }
    for key, amount in rates.items():
        values[key] = amount / duration_s if duration_s and amount is not None else None
    values["goodput_share"] = good / len(requests) if requests else None
    stalls = [gap for each in done for gap in slow_series("itl_chunk_ms", each)]
    values["max_stall_ms"] = max(stalls, default=None)
    return values


@st.composite
def records(draw):
    gaps = draw(st.lists(st.integers(0, 10**9), max_size=8))
    sent_ns = draw(st.integers(0, 10**15))
    at, chunk_ns = sent_ns, []
    for gap in gaps:
        at += gap
        chunk_ns.append(at)
    tokens = draw(st.lists(st.integers(1, 9), min_size=len(gaps), max_size=len(gaps)))
    typed = draw(st.booleans())
    return RequestRecord(
        index=0,
        sent_ns=sent_ns,
        scheduled_ns=draw(st.none() | st.just(max(0, sent_ns - 12_345_678))),
        chunk_ns=array("q", chunk_ns) if typed else tuple(chunk_ns),
        chunk_tokens=array("I", tokens) if typed else tuple(tokens),
        prompt_tokens=draw(st.none() | st.integers(1, 99)),
        output_tokens=draw(st.none() | st.integers(0, 99)),
        asked_output_tokens=8,
        ended_ns=at,
        error=draw(st.sampled_from([None, None, None, "timed out"])),
    )


SLOS = st.builds(
    SLO,
    ttft_ms=st.floats(0.001, 2000),
    tpot_ms=st.none() | st.floats(0.001, 2000),
    e2el_ms=st.none() | st.floats(0.001, 9000),
)


@given(st.lists(records(), max_size=12), st.integers(1, 60), SLOS)
def test_every_figure_equals_the_slow_definition_to_the_last_bit(requests, times, slo):
    """Repeated, so that there are enough observations for p90 and p99."""
    requests = requests * times
    fast = compute(requests, slo=slo)
    for key, value in slow_compute(requests, slo).items():
        assert fast[key] == value, key


def test_figures_are_plain_numbers_that_json_knows():
    values = compute([request()] * 700, slo=SLO(ttft_ms=1), gpu_memory_gib=131.5)
    assert {type(value) for value in values.values()} == {float}


# Steady window


def stream(start_ms, end_ms, *, every_ms=10, sent_ms=None):
    """A request that brings one token every so many ms after it was sent, until its end."""
    chunks = range(start_ms + every_ms, end_ms + 1, every_ms)
    return request(tuple(chunks), sent_ms=start_ms if sent_ms is None else sent_ms)


def window_ms(requests):
    window = steady_window(requests)
    return window.start_ns / MS, window.end_ns / MS, window.concurrency


def test_the_drain_of_a_burst_is_no_part_of_the_steady_window():
    """Ten streams of which one goes on alone for as long as a quarter of the run."""
    requests = [*(stream(0, 300) for _ in range(9)), stream(0, 400)]
    assert window_ms(requests) == (0, 300, 10)
    values = compute(requests)
    # 300 tokens in 0.3 s, where the whole run has 310 in 0.4 s.
    assert values["steady_output_throughput"] == pytest.approx(1000)
    assert values["output_throughput"] == pytest.approx(775)
    assert values["steady_concurrency"] == 10


def test_a_ramp_up_is_no_part_of_the_steady_window():
    """Streams that begin 10 ms after each other; the plateau is 10, nine of them are enough."""
    requests = [stream(10 * number, 400) for number in range(10)]
    assert window_ms(requests)[:2] == (80, 400)


def test_a_dip_in_the_middle_is_a_part_of_the_steady_window():
    """All end at 200 ms and the next ones begin 20 ms later."""
    requests = [*(stream(0, 200) for _ in range(4)), *(stream(220, 420) for _ in range(4))]
    start, end, concurrency = window_ms(requests)
    assert (start, end) == (0, 420)
    assert concurrency == pytest.approx(4 * 400 / 420)


def test_a_short_peak_does_not_move_the_steady_window():
    requests = [*(stream(0, 400) for _ in range(4)), *(stream(190, 210) for _ in range(40))]
    assert window_ms(requests)[:2] == (0, 400)


def test_a_lone_stream_is_steady_from_its_send_to_its_last_token():
    values = compute([request((100, 200, 300), tokens=(1, 4, 5))])
    assert window_ms([request((100, 200, 300))]) == (0, 300, 1)
    assert values["steady_output_throughput"] == pytest.approx(10 / 0.3)


def test_concurrency_counts_from_the_send_not_from_the_schedule():
    late = request((100, 200), sent_ms=50, scheduled_ms=0)
    assert window_ms([late]) == (50, 200, 1)


@pytest.mark.parametrize("requests", [[], [request((0,))], [request((5,), error="HTTP 500")]])
def test_without_time_or_completed_requests_nothing_is_steady(requests):
    assert steady_window(requests) is None
    values = compute(requests)
    assert values["steady_output_throughput"] is values["steady_concurrency"] is None


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 500)), min_size=1, max_size=20))
def test_the_steady_window_lies_in_the_run_and_is_at_least_half_of_it(spans):
    requests = [request((sent + length,), sent_ms=sent) for sent, length in spans]
    window = steady_window(requests)
    first = min(sent for sent, _ in spans) * MS
    last = max(sent + length for sent, length in spans) * MS
    assert first <= window.start_ns < window.end_ns <= last
    assert 2 * (window.end_ns - window.start_ns) >= last - first
    assert 0 < window.concurrency <= len(spans)


def test_a_burst_in_step_has_its_steady_throughput_by_hand():
    """Two streams, in step, of 3 and of 5 tokens every 10 ms, sent at 0."""
    requests = [request((10, 20, 30)), request((10, 20, 30, 40, 50))]
    # Concurrency is 2 for 30 ms of 50: that is the median, and 1 is below 90 % of it.
    assert window_ms(requests) == (0, 30, 2)
    assert compute(requests)["steady_output_throughput"] == pytest.approx(6 / 0.03)
