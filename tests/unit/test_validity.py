import pytest

from pytest_moeperf.records import ClientRecord, RepeatRecord, RequestRecord
from pytest_moeperf.validity import FINDINGS, busy_machine, find

MS = 1_000_000


def request(index=0, **fields):
    """Four tokens, one a chunk: the first 100 ms after the send, then one every 20 ms."""
    sent_ns = fields.pop("sent_ns", 0)
    return RequestRecord(
        **{
            "index": index,
            "sent_ns": sent_ns,
            "chunk_ns": tuple(sent_ns + at * MS for at in (100, 120, 140, 160)),
            "chunk_tokens": (1, 1, 1, 1),
            "output_tokens": 4,
            "asked_output_tokens": 4,
            "ended_ns": sent_ns + 161 * MS,
            **fields,
        }
    )


def client(**fields):
    """A client that had little to do."""
    return ClientRecord(
        **{
            "workers": 1,
            "timestamps": "kernel",
            "cpu_s": 0.05,
            "cpu_share": 0.05,
            "read_lag_ms_p50": 0.2,
            "read_lag_ms_p99": 0.9,
            "reads": 8,
            "merged_reads": 0,
            "lost_arrivals": 0,
            "clock_step_ms": 0.0,
            **fields,
        }
    )


def repeat(*requests, **fields):
    return RepeatRecord(
        **{
            "requests": requests or (request(), request(1)),
            "started_ns": 0,
            "ended_ns": 1_000 * MS,
            "client": client(),
            **fields,
        }
    )


def only(found):
    (finding,) = found
    assert finding.code in FINDINGS
    assert finding.advice
    return finding.code, finding.message


def test_nothing_is_found_in_a_good_repeat():
    counters = {
        "generation_tokens": 8.0,
        "prefix_cache_queries": 64.0,
        "prefix_cache_hits": 0.0,
        "preemptions": 0.0,
    }
    log = ("INFO: throughput 8 tokens/s",)
    assert find(repeat(counters=counters, log=log), compile_patterns=["[Cc]ompil"]) == ()


def test_nothing_is_found_where_the_server_tells_nothing():
    quiet = request(output_tokens=None, prompt_tokens=None)
    assert find(repeat(quiet, client=None)) == ()


def test_a_repeat_without_requests_is_invalid():
    empty = RepeatRecord(requests=(), started_ns=0, ended_ns=0)
    assert only(find(empty))[0] == "no_requests"


def test_failed_requests_are_counted_and_the_first_is_quoted():
    found = find(repeat(request(), request(1, error="HTTP 500"), request(2, error="timed out")))
    assert only(found) == (
        "failed_requests",
        "2 of 3 requests failed; the first is request 1: HTTP 500",
    )


def test_a_request_without_a_token_failed():
    silent = request(7, chunk_ns=(), chunk_tokens=(), output_tokens=None)
    assert only(find(repeat(silent))) == (
        "failed_requests",
        "1 of 1 requests failed; the first is request 7: it ended without a token",
    )


@pytest.mark.parametrize(
    ("fields", "got"),
    [
        ({"asked_output_tokens": 5}, "4 instead of 5"),
        ({"output_tokens": 3}, "4 and 3 instead of 4"),
        ({"chunk_tokens": (1, 1, 1, 2)}, "5 and 4 instead of 4"),
    ],
)
def test_other_than_the_asked_tokens_is_found(fields, got):
    assert only(find(repeat(request(), request(1, **fields)))) == (
        "token_totals",
        f"1 of 2 requests brought other than the asked tokens; the first is request 1: {got}",
    )


def test_tokens_that_went_to_somebody_else_are_found():
    assert only(find(repeat(counters={"generation_tokens": 30.0}))) == (
        "other_traffic",
        "the server generated 30 tokens while 8 were received",
    )


@pytest.mark.parametrize(("generated", "codes"), [(110.0, []), (111.0, ["other_traffic"])])
def test_a_tenth_more_tokens_than_were_received_may_be_a_late_counter(generated, codes):
    many = [request(index) for index in range(25)]  # 100 tokens.
    found = find(repeat(*many, counters={"generation_tokens": generated}))
    assert [finding.code for finding in found] == codes


def test_a_failed_request_explains_tokens_that_never_arrived():
    found = find(repeat(request(error="cut off"), counters={"generation_tokens": 30.0}))
    assert only(found)[0] == "failed_requests"


def test_compilation_is_quoted_from_the_log():
    log = ("ready", "WARNING kernel compiled during inference  ", "torch.compile took 3 s")
    found = find(repeat(log=log), compile_patterns=["during inference", r"torch\.compile took"])
    assert only(found) == (
        "compilation",
        (
            "the server compiled while it was measured: 'WARNING kernel compiled during inference' "
            "(one of 2 such lines)"
        ),
    )


def test_hits_of_the_prefix_cache_are_found_where_none_were_meant():
    counters = {"prefix_cache_queries": 200.0, "prefix_cache_hits": 128.0}
    assert only(find(repeat(counters=counters))) == (
        "prefix_cache",
        "64 % of the prompt tokens came from the prefix cache, 0 % were meant to",
    )
    assert find(repeat(counters=counters), expect_prefix_hit_rate=0.65) == ()


@pytest.mark.parametrize(("hits", "codes"), [(20.0, []), (21.0, ["prefix_cache"])])
def test_two_points_of_the_prefix_cache_are_none(hits, codes):
    counters = {"prefix_cache_queries": 1000.0, "prefix_cache_hits": hits}
    assert [finding.code for finding in find(repeat(counters=counters))] == codes


def test_a_prefix_cache_that_is_off_misses_hits_that_were_meant():
    counters = {"prefix_cache_queries": 0.0, "prefix_cache_hits": 0.0}
    assert find(repeat(counters=counters)) == ()
    assert only(find(repeat(counters=counters), expect_prefix_hit_rate=0.5))[0] == "prefix_cache"


def test_preemptions_are_found():
    full = repeat(counters={"preemptions": 3.0})
    assert only(find(full)) == (
        "preemptions",
        "the server's KV cache was full (requests preempted: 3)",
    )


def test_sends_behind_the_schedule_are_found():
    # The TTFT counts from the schedule: 100 ms and the lag of 50 ms.
    late = [request(index, scheduled_ns=-50 * MS) for index in range(3)]
    assert only(find(repeat(*late))) == (
        "schedule_lag",
        "requests were sent up to 50.0 ms late (p99), with a median TTFT of 150 ms",
    )


@pytest.mark.parametrize(("late", "codes"), [(1, []), (3, ["schedule_lag"])])
def test_it_is_the_slowest_1_percent_of_sends_that_must_not_be_late(late, codes):
    # Of 200, the 99th percentile lies between the third and the second slowest.
    sent = [request(index, scheduled_ns=-50 * MS if index < late else 0) for index in range(200)]
    assert [finding.code for finding in find(repeat(*sent))] == codes


def test_a_lag_that_is_small_beside_the_ttft_is_none():
    assert find(repeat(request(scheduled_ns=-25 * MS))) == ()


def test_a_lag_within_the_grain_of_a_clock_is_none():
    fast = request(scheduled_ns=-2 * MS, chunk_ns=tuple(at * MS for at in (1, 2, 3, 4)))
    assert find(repeat(fast)) == ()


def test_a_client_at_its_limit_is_found():
    assert find(repeat(client=client(cpu_share=0.9))) == ()
    assert only(find(repeat(client=client(cpu_share=0.93)))) == (
        "client_cpu",
        "the load client used 0.93 of the one core that a worker has",
    )


def test_the_cpu_of_the_client_says_nothing_in_a_very_short_repeat():
    busy = client(cpu_share=1.0)
    assert find(repeat(client=busy, ended_ns=499 * MS)) == ()
    assert only(find(repeat(client=busy, ended_ns=500 * MS)))[0] == "client_cpu"


def test_arrival_times_that_were_lost_are_found():
    assert find(repeat(client=client(lost_arrivals=2))) == ()
    many = [request(index) for index in range(1000)]  # 4000 chunks: one in a thousand is 4
    assert find(repeat(*many, client=client(lost_arrivals=4))) == ()
    assert only(find(repeat(*many, client=client(lost_arrivals=5)))) == (
        "client_reads",
        "5 of 4000 chunks were read so late that their arrival times are lost",
    )


def test_a_client_that_is_late_with_the_next_request_of_a_closed_loop_is_found():
    # The E2EL is 160 ms: 0.5 % of it is less than the floor of 2 ms.
    assert find(repeat(client=client(read_lag_ms_p50=2.0))) == ()
    assert only(find(repeat(client=client(read_lag_ms_p50=2.2)))) == (
        "client_turnaround",
        "answers waited 2.20 ms (median) for the load client, with a median E2EL of 160 ms",
    )
    long = request(chunk_ns=tuple(at * MS for at in (100, 120, 140, 1_000)))
    assert find(repeat(long, client=client(read_lag_ms_p50=4.9))) == ()
    assert only(find(repeat(long, client=client(read_lag_ms_p50=5.1))))[0] == "client_turnaround"


def test_no_slot_waits_for_the_client_in_an_open_loop():
    late = client(read_lag_ms_p50=50.0)
    assert find(repeat(request(scheduled_ns=0), client=late)) == ()
    assert find(repeat(client=client(read_lag_ms_p50=None))) == ()


def test_a_clock_that_was_set_spoils_the_stamps_of_the_kernel():
    assert find(repeat(client=client(clock_step_ms=0.1))) == ()
    assert find(repeat(client=client(clock_step_ms=5.0, timestamps="read"))) == ()
    assert find(repeat(client=client(clock_step_ms=5.0, timestamps="mixed"))) != ()
    assert only(find(repeat(client=client(clock_step_ms=5.0)))) == (
        "clock_step",
        "the wall clock was set by 5.00 ms during the repeat",
    )


def test_every_reason_is_found_at_once():
    found = find(
        repeat(
            request(error="HTTP 500"),
            request(1, asked_output_tokens=5),
            counters={"preemptions": 1.0},
            client=client(cpu_share=0.99),
        )
    )
    assert [finding.code for finding in found] == [
        "failed_requests",
        "token_totals",
        "preemptions",
        "client_cpu",
    ]


def test_a_busy_machine_is_one_with_15_percent_of_its_cores_taken():
    assert busy_machine(foreign_cores=0.3, usable_cores=2) is None
    finding = busy_machine(foreign_cores=0.6, usable_cores=2, names=["cc1plus", "rsync"])
    assert finding.code in FINDINGS
    assert finding.message == "others kept 0.6 of 2 usable cores busy (cc1plus, rsync)"
    assert finding.advice == "stop them, or measure on a quiet machine"


def test_who_only_shares_the_host_cannot_be_stopped():
    finding = busy_machine(foreign_cores=0.6, stolen_cores=0.5, usable_cores=2, names=["sshd"])
    assert finding.message == (
        "others kept 0.6 of 2 usable cores busy (withheld by the hypervisor)"
    )
    assert finding.advice == "wait until its other machines rest, or measure on a host of your own"


def test_processes_that_took_more_than_the_hypervisor_are_named():
    finding = busy_machine(foreign_cores=0.6, stolen_cores=0.3, usable_cores=2, names=["rsync"])
    assert finding.message == "others kept 0.6 of 2 usable cores busy (rsync)"
