"""SGLang's `python -m sglang.bench_serving --output-file FILE [--output-details]`.

Fields and definitions as in `python/sglang/benchmark/serving.py` (the module that
`sglang.bench_serving` became) of SGLang 0.5.23. It appends one line a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_moeperf.exchange.imported import (
    FROM_SEND,
    LISTED,
    Detail,
    ImportedResult,
    complete,
    detail_of,
    few_observations,
    from_schedule,
    left_out,
    rates,
    read_spread,
    recompute,
    recompute_chunks,
)
from pytest_moeperf.exchange.played import Played, statistics_ms
from pytest_moeperf.metrics import METRICS
from pytest_moeperf.workload import (
    ClosedLoop,
    OpenLoop,
    RandomTokens,
    SharedPrefix,
    ShareGPT,
    TraceReplay,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_moeperf.exchange.fields import Fields
    from pytest_moeperf.records import RepeatRecord, RequestRecord
    from pytest_moeperf.workload import Workload

__all__ = ["SOURCE", "export", "read", "recognises"]

SOURCE = "SGLang's `bench_serving --output-file`"

_DATASETS = {
    RandomTokens: "random-ids",
    SharedPrefix: "generated-shared-prefix",
    ShareGPT: "sharegpt",
}
_NATIVE = {"sglang", "sglang-native"}
"""Backends whose ITL shares the gap before a chunk between the tokens of that chunk."""
_RETOKENIZED = {"sglang-oai", "sglang-oai-chat"}
"""Backends whose summary does the same by counting tokens anew, under speculative decoding."""


def export(
    repeat: RepeatRecord,
    values: Mapping[str, float | None],
    *,
    model: str,
    url: str,
    workload: Workload,
    seed: int,
) -> dict[str, object]:
    """Give the object of one line, as `--output-details` would have stored it.

    For the backend `sglang-oai`, which speaks the protocol that we speak. Nothing was tokenized
    again, so the retokenized figures are null.
    """
    played = Played.of(repeat, end_ns=_stream_end_ns, output_tokens=_output_tokens)
    done = played.done
    e2e_s = [call.latency_s for call in done]
    return {
        "tag": f"moeperf {workload.slug} seed {seed}",
        "backend": "sglang-oai",
        "model": model,
        "base_url": url,
        **_traffic(workload),
        "server_info": None,
        **_sums(played),
        **statistics_ms("e2e_latency", e2e_s, ranks=_RANKS),
        **statistics_ms("ttft", (call.ttft_s for call in done), ranks=_RANKS),
        **statistics_ms(
            "tpot", (call.tpot_s for call in done if call.tpot_s is not None), ranks=_RANKS
        ),
        **statistics_ms("itl", (gap_s for call in done for gap_s in call.gaps_s), ranks=_RANKS),
        "concurrency": played.per_second(sum(e2e_s)),
        "accept_length": None,
        **played.peaks(),
        **_goodput(played, values),
        **played.lists(),
        "generated_texts": ["" for _ in played.calls],
        "errors": [call.error for call in played.calls],
    }


_RANKS = (90, 95, 99)


def _stream_end_ns(request: RequestRecord) -> int:
    return request.ended_ns


def _output_tokens(request: RequestRecord) -> int:
    if request.output_tokens is not None:
        return request.output_tokens
    return request.asked_output_tokens


def _traffic(workload: Workload) -> dict[str, object]:
    isl = osl = None
    if not isinstance(workload, TraceReplay):
        isl, osl = workload.isl, workload.osl
    return {
        "dataset_name": _DATASETS[type(workload.prompts)],
        "request_rate": _request_rate(workload),
        "max_concurrency": workload.concurrency if isinstance(workload, ClosedLoop) else None,
        "sharegpt_output_len": osl if isinstance(workload.prompts, ShareGPT) else None,
        "random_input_len": isl,
        "random_output_len": osl,
        "random_range_ratio": 1.0,  # all of one length
    }


def _request_rate(workload: Workload) -> float | str:
    if isinstance(workload, OpenLoop):
        return workload.request_rate
    # SGLang itself writes Infinity, which is no JSON; float() takes this word as well.
    return "trace" if isinstance(workload, TraceReplay) else "inf"


def _sums(played: Played) -> dict[str, object]:
    return {
        "duration": played.duration_s,
        "completed": len(played.done),
        "total_input_tokens": played.prompt_tokens,
        "total_input_text_tokens": played.prompt_tokens,
        "total_input_vision_tokens": 0,
        "total_output_tokens": played.output_tokens,
        "total_output_tokens_retokenized": None,
        "request_throughput": played.per_second(len(played.done)),
        "input_throughput": played.per_second(played.prompt_tokens),
        "output_throughput": played.per_second(played.output_tokens),
        "total_throughput": played.per_second(played.total_tokens),
    }


def _goodput(played: Played, values: Mapping[str, float | None]) -> dict[str, object]:
    """Nothing without objectives; which they were is not among the values."""
    good = played.good(values)
    if good is None:
        return {}
    return {
        "request_goodput": played.per_second(good),
        "slo_attainment": values["goodput_share"],
    }


def recognises(fields: Fields) -> bool:
    """Whether the document has what only SGLang's has."""
    return fields.has("completed", "duration", "total_output_tokens_retokenized")


def read(fields: Fields) -> ImportedResult:
    """Recompute latencies where requests are listed (`--output-details`), else map the summary."""
    detail = detail_of(fields)
    values, notes = _summary(fields) if detail is None else _listed(fields, detail)
    notes.append(
        "its duration runs from the start of the benchmark until the server answered a last "
        "question about itself, ours from the first send to the last token: its throughput is a "
        "little lower"
    )
    notes.append("where the server sends no usage, its output tokens are those asked for")
    if fields.figure("request_goodput") is not None:
        notes.append("its goodput holds E2EL and TPOT, to the closing message, against the SLO")
    if from_schedule(fields):
        notes.append(FROM_SEND)
    used = ("completed", "ttft", "tpot", "itl", "e2e_latency")
    return ImportedResult(
        name=fields.name,
        tool="sglang",
        model=fields.text("model") or fields.section("server_info").text("model_path"),
        values=complete(values | _rates(fields)),
        notes=(*notes, *left_out(fields, used)),
    )


def _rates(fields: Fields) -> dict[str, float | None]:
    """From the summary even where requests are listed: the lists do not tell when they began."""
    done, goodput = fields.figure("completed"), fields.figure("request_goodput")
    return {
        **rates(fields, total="total_throughput"),
        "goodput": goodput if done else None,
        "goodput_share": fields.figure("slo_attainment"),
    }


def _listed(fields: Fields, detail: Detail) -> tuple[dict[str, float | None], list[str]]:
    if fields.text("backend") not in _NATIVE:
        return recompute_chunks(detail)
    of_chunks = (*METRICS["itl_chunk_ms"].keys, "tokens_per_chunk.mean", "max_stall_ms")
    shared = (
        "its ITL shares the gap before a chunk between the tokens of that chunk: read as "
        "itl_token_ms; itl_chunk_ms, tokens_per_chunk and max_stall_ms need the chunks themselves"
    )
    return {**recompute(detail), **dict.fromkeys(of_chunks)}, [LISTED, shared]


def _summary(fields: Fields) -> tuple[dict[str, float | None], list[str]]:
    backend = fields.text("backend") or ""
    values: dict[str, float | None] = {}
    notes = [
        "its E2EL and TPOT count to the closing message of a stream, ours to the last token",
        "its summary does not tell how many requests failed",
    ]
    if backend in _NATIVE or (backend in _RETOKENIZED and fields.figure("accept_length")):
        itl = "itl_token_ms"
        notes.append("its ITL shares the gap before a chunk between its tokens: itl_token_ms")
    else:
        itl = "itl_chunk_ms"
        notes.append(
            "its ITL is the gap between chunks, however many tokens they hold: itl_chunk_ms"
        )
    for ours, theirs in {
        "ttft_ms": "ttft",
        "tpot_ms": "tpot",
        itl: "itl",
        "e2el_ms": "e2e_latency",
    }.items():
        values |= read_spread(fields, ours=ours, theirs=theirs)
    return values, notes + few_observations(fields, values)
