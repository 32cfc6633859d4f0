"""Results of other tools: what is written for them and what is read of theirs.

Times of the play below, in ms; it started at 990:

    request   sent   chunks (tokens)               end of stream
    0         1000   1100 (1), 1120 (1), 1150 (1)  1160
    1         1000   1200 (1), 1210 (3)            1230
    2         1160   -                             1170, failed
"""

import json
from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_moeperf.exchange import EXPORTS, documents, read_result
from pytest_moeperf.exchange.played import statistics_ms
from pytest_moeperf.figures import compute
from pytest_moeperf.metrics import KEYS, SLO
from pytest_moeperf.records import RepeatRecord, RequestRecord
from pytest_moeperf.workload import (
    Burst,
    ClosedLoop,
    OpenLoop,
    SharedPrefix,
    ShareGPT,
    TraceReplay,
)

DATA = Path(__file__).parents[1] / "data" / "results"
MS = 1_000_000
CLOSED = ClosedLoop(concurrency=2, isl=32, osl=4, requests=3)
OPEN = OpenLoop(request_rate=4.0, isl=32, osl=4, requests=3)


def request(index, sent, chunks, tokens, ended, **fields):
    return RequestRecord(
        **{
            "index": index,
            "sent_ns": sent * MS,
            "chunk_ns": array("q", [at * MS for at in chunks]),
            "chunk_tokens": array("I", tokens),
            "prompt_tokens": 32,
            "output_tokens": sum(tokens),
            "asked_output_tokens": sum(tokens),
            "ended_ns": ended * MS,
            **fields,
        }
    )


FIRST = request(0, 1000, (1100, 1120, 1150), (1, 1, 1), 1160)
SECOND = request(1, 1000, (1200, 1210), (1, 3), 1230, prompt_tokens=16)
FAILED = request(2, 1160, (), (), 1170, prompt_tokens=None, output_tokens=None, error="HTTP 500")


def play(*requests):
    return RepeatRecord(requests=requests, started_ns=990 * MS, ended_ns=1300 * MS)


PLAY = play(FIRST, SECOND, FAILED)


def export(tool, repeat=PLAY, *, workload=CLOSED, slo=None):
    values = compute(repeat.requests, slo=slo)
    return EXPORTS[tool](
        repeat, values, model="mini-moe", url="http://host:8000", workload=workload, seed=7
    )


def read(document):
    """As a file would bring it."""
    return read_result(json.loads(json.dumps(document, allow_nan=False)), name="r.json")


def without_lists(document):
    lists = {"input_lens", "output_lens", "ttfts", "itls", "start_times", "errors"}
    return {key: value for key, value in document.items() if key not in lists}


def recorded(name, line=0):
    return documents((DATA / name).read_text(encoding="utf-8"), name=name)[line]


def measured(values):
    return {key: value for key, value in values.items() if value is not None}


def close(values):
    return pytest.approx(values, rel=1e-9)


def test_vllm_gets_single_requests_in_seconds_from_the_send():
    document = export("vllm")
    assert document["ttfts"] == close([0.1, 0.2, 0])
    assert document["itls"] == [close([0.02, 0.03]), close([0.01]), []]
    assert document["latencies"] == close([0.15, 0.21, 0])
    assert document["start_times"] == close([1.0, 1.0, 1.16])
    assert document["queue_times"] == close([0.01, 0.01, 0.17])  # All wait from 990 on.
    assert document["input_lens"] == [32, 16, None]
    assert document["output_lens"] == [3, 4, 0]
    assert document["errors"] == ["", "", "HTTP 500"]
    assert document["generated_texts"] == ["", "", ""]


def test_vllm_gets_its_own_sums():
    document = export("vllm")
    assert (document["completed"], document["failed"], document["num_prompts"]) == (2, 1, 3)
    assert document["duration"] == close(0.24)  # From 990 to the last end of a stream.
    assert document["total_input_tokens"] == 48
    assert document["total_output_tokens"] == 7
    assert document["request_throughput"] == close(2 / 0.24)
    assert document["output_throughput"] == close(7 / 0.24)
    assert document["total_token_throughput"] == close(55 / 0.24)
    assert document["request_goodput"] is None
    assert document["max_output_tokens_per_s"] == 5  # Chunks, not tokens.
    assert document["max_concurrent_requests"] == 2


def test_vllm_gets_its_own_latencies():
    document = export("vllm")
    assert document["mean_ttft_ms"] == close(150)
    assert document["mean_tpot_ms"] == close((50 / 2 + 10 / 3) / 2)
    assert document["median_itl_ms"] == close(20)  # 20, 30 and 10
    assert document["std_itl_ms"] == close((200 / 3) ** 0.5)
    assert document["p90_itl_ms"] == close(28)
    assert document["mean_e2el_ms"] == close(180)


def test_vllm_gets_the_request_that_has_all_tokens_in_one_chunk_as_a_tpot_of_0():
    assert export("vllm", play(request(0, 1000, (1100,), (4,), 1110)))["mean_tpot_ms"] == 0


def test_sglang_gets_latencies_to_the_closing_message():
    document = export("sglang")
    assert document["mean_e2e_latency_ms"] == close((160 + 230) / 2)
    assert document["mean_tpot_ms"] == close((60 / 2 + 30 / 3) / 2)
    assert document["p95_ttft_ms"] == close(195)
    assert document["concurrency"] == close((0.16 + 0.23) / 0.24)
    assert document["total_throughput"] == close(55 / 0.24)
    assert document["input_throughput"] == close(48 / 0.24)
    assert document["total_output_tokens_retokenized"] is None
    assert document["errors"] == ["", "", "HTTP 500"]


def test_tokens_that_the_server_did_not_count_are_those_of_chunks_or_those_asked_for():
    uncounted = play(replace(SECOND, output_tokens=None, asked_output_tokens=9))
    assert export("vllm", uncounted)["output_lens"] == [4]
    assert export("sglang", uncounted)["output_lens"] == [9]


@pytest.mark.parametrize("tool", EXPORTS)
def test_prompts_that_the_server_did_not_count_leave_their_sums_out(tool):
    document = export(tool, play(replace(FIRST, prompt_tokens=None), SECOND))
    assert document["total_input_tokens"] is None
    assert read(without_lists(document)).values["total_throughput"] is None
    assert read(document).values["total_throughput"] is None


@pytest.mark.parametrize(
    ("workload", "rate", "burstiness", "concurrency"),
    [
        (CLOSED, "inf", 1.0, 2),
        (Burst(isl=32, osl=4, requests=3), "inf", 1.0, None),
        (OPEN, 4.0, 1.0, None),
        (replace(OPEN, arrivals="gamma", burstiness=0.5), 4.0, 0.5, None),
        (replace(OPEN, arrivals="constant"), 4.0, None, None),
    ],
)
def test_the_traffic_is_told_in_their_words(workload, rate, burstiness, concurrency):
    vllm = export("vllm", workload=workload)
    assert (vllm["request_rate"], vllm["burstiness"]) == (rate, burstiness)
    sglang = export("sglang", workload=workload)
    assert sglang["request_rate"] == rate
    assert vllm["max_concurrency"] == sglang["max_concurrency"] == concurrency


def test_a_ramp_is_told_to_vllm_as_its_own():
    document = export("vllm", workload=replace(OPEN, end_rate=8.0))
    assert document["ramp_up_strategy"] == "linear"
    assert (document["ramp_up_start_rps"], document["ramp_up_end_rps"]) == (4.0, 8.0)


@pytest.mark.parametrize(
    ("workload", "dataset", "input_len"),
    [
        (CLOSED, "random-ids", 32),
        (replace(CLOSED, prompts=ShareGPT("chats.json")), "sharegpt", 32),
        (
            replace(CLOSED, prompts=SharedPrefix(groups=1, prefix=8)),
            "generated-shared-prefix",
            32,
        ),
        (TraceReplay(path="trace.csv"), "random-ids", None),
    ],
)
def test_sglang_gets_its_own_word_for_the_prompts(workload, dataset, input_len):
    document = export("sglang", workload=workload)
    assert document["dataset_name"] == dataset
    assert document["random_input_len"] == input_len


def test_the_origin_of_an_export_can_be_seen():
    assert export("sglang")["tag"] == "moeperf closed-c2-isl32-osl4-n3 seed 7"
    document = export("vllm")
    assert document["moeperf_workload"] == "closed-c2-isl32-osl4-n3"
    assert document["moeperf_url"] == "http://host:8000"
    assert document["moeperf_seed"] == "7"


@pytest.mark.parametrize("tool", EXPORTS)
def test_a_play_without_a_completed_request_has_their_zeros_and_reads_as_nothing(tool):
    document = export(tool, play(FAILED))
    assert document["mean_ttft_ms"] == document["p99_itl_ms"] == 0
    for values in (read(document).values, read(without_lists(document)).values):
        assert measured(values).keys() <= {"failed_requests"}


def test_goodput_is_written_over_their_duration_and_read_over_ours():
    slo = SLO(ttft_ms=150)  # Only the first request meets it.
    vllm = export("vllm", slo=slo)
    assert vllm["request_goodput"] == close(1 / 0.24)
    assert read(vllm).values["goodput"] == close(1 / 0.21)  # From 1000 to 1210.
    assert read(without_lists(vllm)).values["goodput"] == close(1 / 0.24)
    sglang = export("sglang", slo=slo)
    assert sglang["request_goodput"] == close(1 / 0.24)
    assert sglang["slo_attainment"] == close(1 / 3)
    for document in (vllm, without_lists(vllm), sglang):
        assert read(document).values["goodput_share"] == close(1 / 3)


def test_vllm_brings_everything_back_where_chunks_hold_one_token():
    requests = (FIRST, request(1, 1005, (1190, 1215, 1222), (1, 1, 1), 1230), FAILED)
    result = read(export("vllm", play(*requests), slo=SLO(ttft_ms=150)))
    assert (result.tool, result.model, result.name) == ("vllm", "mini-moe", "r.json")
    assert measured(result.values) == close(measured(compute(requests, slo=SLO(ttft_ms=150))))
    assert "as many chunks as tokens" in result.notes[1]


def test_vllm_cannot_tell_the_tokens_of_each_chunk():
    result = read(export("vllm"))
    ours, theirs = measured(compute(PLAY.requests)), measured(result.values)
    lost = {"itl_token_ms.mean", "itl_token_ms.p50", "steady_output_throughput"}
    assert ours.keys() - theirs.keys() == lost
    assert theirs == close({key: value for key, value in ours.items() if key not in lost})
    assert "a chunk held 1.40 tokens on average" in result.notes[1]


def test_sglang_brings_latencies_back_and_its_own_throughput():
    values = read(export("sglang")).values
    ours = compute(PLAY.requests)
    for key in ("ttft_ms.mean", "tpot_ms.mean", "itl_chunk_ms.p50", "e2el_ms.p50"):
        assert values[key] == close(ours[key])
    assert values["max_stall_ms"] == close(30)
    assert values["failed_requests"] == 1
    assert ours["request_throughput"] == close(2 / 0.21)
    assert values["request_throughput"] == close(2 / 0.24)
    assert values["steady_concurrency"] is None


def test_a_summary_of_vllm_keeps_its_definitions():
    result = read(without_lists(export("vllm")))
    values = result.values
    assert values["ttft_ms.p50"] == close(150)
    assert values["tpot_ms.mean"] == close((25 + 10 / 3) / 2)
    assert values["itl_chunk_ms.p99"] == close(29.8)
    assert values["itl_token_ms.mean"] is None
    assert values["e2el_ms.mean"] == close(180)
    assert values["output_throughput"] == close(7 / 0.24)
    assert values["failed_requests"] == 1
    assert values["max_stall_ms"] is values["tokens_per_chunk.mean"] is None
    text = "\n".join(result.notes)
    assert "e2el_ms.p99 rest on 2 requests: moeperf gives p90 from 64 and p99 from 662" in text
    assert "max_output_tokens_per_s" in result.notes[-1]


def test_a_summary_of_sglang_keeps_its_definitions():
    result = read(without_lists(export("sglang")))
    assert result.values["e2el_ms.mean"] == close(195)  # 180 to the last token.
    assert result.values["tpot_ms.mean"] == close(20)
    assert result.values["itl_chunk_ms.p50"] == close(20)
    assert result.values["itl_token_ms.p50"] is None
    assert result.values["failed_requests"] is None
    assert "its E2EL and TPOT count to the closing message of a stream" in result.notes[0]


@pytest.mark.parametrize(
    ("changes", "itl"),
    [
        ({"backend": "sglang"}, "itl_token_ms"),
        ({"backend": "sglang-native"}, "itl_token_ms"),
        ({"backend": "sglang-oai"}, "itl_chunk_ms"),
        ({"backend": "sglang-oai", "accept_length": 1.6}, "itl_token_ms"),
        ({"backend": "vllm", "accept_length": 1.6}, "itl_chunk_ms"),
    ],
)
def test_the_itl_of_an_sglang_summary_depends_on_its_backend(changes, itl):
    values = read(without_lists(export("sglang")) | changes).values
    assert values[f"{itl}.p50"] == close(20)
    other = {"itl_token_ms", "itl_chunk_ms"} - {itl}
    assert values[f"{other.pop()}.p50"] is None


@pytest.mark.parametrize("tool", EXPORTS)
@pytest.mark.parametrize(("workload", "told"), [(CLOSED, False), (OPEN, True)])
def test_only_a_schedule_makes_the_start_of_a_request_differ(tool, workload, told):
    late = play(replace(FIRST, scheduled_ns=900 * MS))
    result = read(export(tool, late, workload=workload))
    assert compute(late.requests)["ttft_ms.p50"] == close(200)
    assert result.values["ttft_ms.p50"] == close(100)
    assert any("count from the send" in note for note in result.notes) is told


def test_requests_that_brought_no_token_count_as_failed():
    document = export("sglang") | {"ttfts": [0.1, 0.0, 0.0]}
    assert read(document).values["failed_requests"] == 2
    vllm = export("vllm") | {"ttfts": [0.1, 0.0, 0.0]}
    assert "its summary counts 2 completed requests, 1 of those listed" in read(vllm).notes[-2]


def test_older_results_lack_fields():
    old = {
        "backend": "sglang",
        "completed": 300,
        "duration": 298.5,
        "median_e2e_latency_ms": 7819.0,
        "median_ttft_ms": 85.5,
        "median_itl_ms": 13.5,
        "output_throughput": 537.5,
        "request_rate": float("inf"),
        "total_output_tokens_retokenized": 160192,
    }
    assert measured(read_result(old, name="old.jsonl").values) == {
        "e2el_ms.p50": 7819.0,
        "ttft_ms.p50": 85.5,
        "itl_token_ms.p50": 13.5,
        "output_throughput": 537.5,
    }
    older = {"model_id": "m", "tokenizer_id": "m", "duration": 2.0, "completed": 5}
    assert read_result(older, name="v").values["failed_requests"] is None
    counted = older | {"num_prompts": 8}
    assert read_result(counted, name="v").values["failed_requests"] == 3


def test_our_own_document_is_taken_as_it_is():
    document = {
        "url": "http://host:8000",
        "model": "mini-moe",
        "workload": "closed-c1",
        "metrics": {"ttft_ms.p50": 12.5, "goodput": None, "future_ms.p50": 1},
        "findings": [{"code": "failed_requests", "message": "3 of 8 failed", "advice": ""}],
    }
    result = read(document)
    assert result.tool == "moeperf"
    assert set(result.values) == set(KEYS)
    assert result.values["ttft_ms.p50"] == 12.5
    assert result.values["goodput"] is result.values["tpot_ms.p50"] is None
    assert result.notes == (
        "not to be trusted: 3 of 8 failed",
        "left out, as this version has no such metric: future_ms.p50",
    )


def test_a_recorded_result_of_vllm_is_what_its_summary_says():
    document = recorded("vllm-0.32.0.json")
    values = read_result(document, name="vllm").values
    assert values["failed_requests"] == 1
    for ours, theirs in {
        "ttft_ms": "ttft",
        "tpot_ms": "tpot",
        "itl_chunk_ms": "itl",
        "itl_token_ms": "itl",
        "e2el_ms": "e2el",
    }.items():
        assert values[f"{ours}.mean"] == pytest.approx(document[f"mean_{theirs}_ms"], abs=1e-5)
        assert values[f"{ours}.p50"] == pytest.approx(document[f"median_{theirs}_ms"], abs=1e-5)
    # Before the first send it drew up its tasks, after the last token it waited for the end.
    assert 0 < values["request_throughput"] / document["request_throughput"] - 1 < 0.01
    share = values["request_throughput"] / document["request_throughput"]
    assert values["total_throughput"] == close(document["total_token_throughput"] * share)
    assert values["goodput_share"] == close(5 / 6)


def test_chunks_that_a_client_read_together_are_told():
    document = recorded("vllm-0.32.0.json")
    short = [gap for gaps in document["itls"] for gap in gaps if gap < 0.00005]
    assert (len(short), sum(map(len, document["itls"]))) == (3, 35)
    notes = read_result(document, name="vllm").notes
    assert notes[1].startswith("9% of its gaps are under 0.05 ms, which no decode step is")
    assert not any("gaps are under" in note for note in read(export("vllm")).notes)


def test_our_statistics_are_those_that_the_tools_write():
    for document, name, ranks in (
        (recorded("vllm-0.32.0.json"), "ttft", (90, 99)),
        (recorded("sglang-0.5.23.jsonl"), "ttft", (90, 95, 99)),
    ):
        completed = [value for value in document["ttfts"] if value]
        written = statistics_ms(name, completed, ranks=ranks)
        assert written == close({key: document[key] for key in written})


def test_a_recorded_summary_of_vllm_still_has_its_latencies():
    document = recorded("vllm-0.32.0-summary.json")
    assert "mean_e2el_ms" not in document
    values = read_result(document, name="vllm").values
    seen = sorted(value for value in document["latencies"] if value)
    assert len(seen) == 5
    assert values["e2el_ms.p50"] == close(seen[2] * 1000)
    assert values["e2el_ms.mean"] == close(sum(seen) * 200)
    assert values["e2el_ms.p90"] is None


def test_recorded_results_of_sglang_are_what_their_summaries_say():
    openai, native = recorded("sglang-0.5.23.jsonl"), recorded("sglang-0.5.23.jsonl", 1)
    values = read_result(openai, name="openai").values
    assert values["itl_chunk_ms.mean"] == pytest.approx(openai["mean_itl_ms"], abs=1e-5)
    assert values["failed_requests"] == 1
    assert values["goodput_share"] == close(5 / 6)
    values = read_result(native, name="native").values
    assert values["itl_token_ms.mean"] == pytest.approx(native["mean_itl_ms"], abs=1e-5)
    assert values["itl_chunk_ms.mean"] is values["tokens_per_chunk.mean"] is None
    assert values["max_stall_ms"] is None
    # Its closing message came 8 ms after the last token, for 7 tokens after the first.
    assert native["mean_e2e_latency_ms"] - values["e2el_ms.mean"] > 8
    assert native["mean_tpot_ms"] - values["tpot_ms.mean"] > 8 / 7
