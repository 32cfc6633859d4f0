"""`vllm bench serve --save-result [--save-detailed]`.

Fields and definitions as in `vllm/benchmarks/serve.py` and `vllm/benchmarks/lib/
endpoint_request_func.py` of vLLM 0.32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_moeperf.exchange.imported import (
    FROM_SEND,
    Detail,
    ImportedResult,
    complete,
    detail_of,
    few_observations,
    from_schedule,
    left_out,
    rates,
    read_spread,
    recompute_chunks,
    spread,
)
from pytest_moeperf.exchange.played import Played, statistics_ms
from pytest_moeperf.metrics import METRICS
from pytest_moeperf.units import NS_PER_S
from pytest_moeperf.workload import ClosedLoop, OpenLoop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_moeperf.exchange.fields import Fields
    from pytest_moeperf.records import RepeatRecord, RequestRecord
    from pytest_moeperf.workload import Workload

__all__ = ["SOURCE", "export", "read", "recognises"]

SOURCE = "`vllm bench serve --save-result`"

_LATENCIES = {"ttft_ms": "ttft", "tpot_ms": "tpot", "itl_chunk_ms": "itl", "e2el_ms": "e2el"}


def export(
    repeat: RepeatRecord,
    values: Mapping[str, float | None],
    *,
    model: str,
    url: str,
    workload: Workload,
    seed: int,
) -> dict[str, object]:
    """Give the document that `--save-result --save-detailed` would have stored.

    With `--percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 90,99`; the fields
    `moeperf_*` are what `--metadata` would have added. No text and no date was recorded.
    """
    played = Played.of(repeat, end_ns=_last_chunk_ns, output_tokens=_output_tokens)
    done = played.done
    return {
        "date": None,
        "endpoint_type": "openai",
        "backend": "openai",
        "label": None,
        "model_id": model,
        "tokenizer_id": None,
        "num_prompts": len(played.calls),
        "moeperf_url": url,
        "moeperf_workload": workload.slug,
        "moeperf_seed": str(seed),
        **_traffic(workload),
        **_sums(played, values),
        **played.lists(),
        "latencies": [call.latency_s for call in played.calls],
        "start_times": [call.start_s for call in played.calls],
        "queue_times": _queue_times(repeat),
        "generated_texts": ["" for _ in played.calls],
        "errors": [call.error for call in played.calls],
        **played.peaks(),
        "rtfx": 0.0,
        **statistics_ms("ttft", (call.ttft_s for call in done)),
        **statistics_ms("tpot", (call.tpot_s for call in done if call.tpot_s is not None)),
        **statistics_ms("itl", (gap_s for call in done for gap_s in call.gaps_s)),
        **statistics_ms("e2el", (call.latency_s for call in done)),
    }


def _last_chunk_ns(request: RequestRecord) -> int:
    return request.chunk_ns[-1]


def _output_tokens(request: RequestRecord) -> int:
    if request.output_tokens is not None:
        return request.output_tokens
    return sum(request.chunk_tokens)


def _traffic(workload: Workload) -> dict[str, object]:
    traffic: dict[str, object] = {"request_rate": "inf", "burstiness": 1.0, "max_concurrency": None}
    if isinstance(workload, ClosedLoop):
        traffic["max_concurrency"] = workload.concurrency
    if isinstance(workload, OpenLoop):
        traffic["request_rate"] = workload.request_rate
        # vLLM has no word for constant gaps, which no finite burstiness gives.
        traffic["burstiness"] = None if workload.arrivals == "constant" else workload.burstiness
        if workload.end_rate is not None:
            traffic |= {
                "ramp_up_strategy": "linear",
                "ramp_up_start_rps": workload.request_rate,
                "ramp_up_end_rps": workload.end_rate,
            }
    return traffic


def _sums(played: Played, values: Mapping[str, float | None]) -> dict[str, object]:
    completed = len(played.done)
    return {
        "duration": played.duration_s,
        "completed": completed,
        "failed": len(played.calls) - completed,
        "total_input_tokens": played.prompt_tokens,
        "total_output_tokens": played.output_tokens,
        "request_throughput": played.per_second(completed),
        "request_goodput": played.per_second(played.good(values)),
        "output_throughput": played.per_second(played.output_tokens),
        "total_token_throughput": played.per_second(played.total_tokens),
    }


def _queue_times(repeat: RepeatRecord) -> list[float]:
    """Seconds between a request's arrival and its send.

    Without a schedule vLLM lets all requests arrive at the start, to wait for a free slot.
    """
    return [
        max(
            request.sent_ns
            - (repeat.started_ns if request.scheduled_ns is None else request.scheduled_ns),
            0,
        )
        / NS_PER_S
        for request in repeat.requests
    ]


def recognises(fields: Fields) -> bool:
    """Whether the document has what only vLLM's has."""
    return fields.has("completed", "duration", "model_id", "tokenizer_id")


def read(fields: Fields) -> ImportedResult:
    """Recompute where requests are listed (`--save-detailed`), else map the summary."""
    detail = detail_of(fields)
    values, notes = _summary(fields) if detail is None else _listed(fields, detail)
    if from_schedule(fields):
        notes.append(FROM_SEND)
    used = ("completed", *_LATENCIES.values())
    return ImportedResult(
        name=fields.name,
        tool="vllm",
        model=fields.text("model_id"),
        values=complete(values),
        notes=(*notes, *left_out(fields, used)),
    )


def _listed(fields: Fields, detail: Detail) -> tuple[dict[str, float | None], list[str]]:
    values, notes = recompute_chunks(detail)
    if detail.timed:
        notes.append(
            "throughput is recomputed: its duration runs from the start of the benchmark to the "
            "end of the last stream, ours from the first send to the last token"
        )
    else:
        values |= rates(fields, total="total_token_throughput")
        notes.append(_DURATION)
    completed = fields.figure("completed")
    if completed is not None and completed != len(detail.done):
        notes.append(
            f"its summary counts {completed:.0f} completed requests, "
            f"{len(detail.done)} of those listed brought tokens"
        )
    return values | _goodput(fields, values, done=len(detail.done)), notes


_DURATION = (
    "its duration runs from the start of the benchmark to the end of the last stream, ours from "
    "the first send to the last token: its throughput is a little lower"
)


def _summary(fields: Fields) -> tuple[dict[str, float | None], list[str]]:
    values = rates(fields, total="total_token_throughput")
    for ours, theirs in _LATENCIES.items():
        values |= read_spread(fields, ours=ours, theirs=theirs)
    latencies = fields.figures("latencies")
    if latencies and all(values[key] is None for key in METRICS["e2el_ms"].keys):
        # vLLM 0.32 keeps these without --save-detailed; a request that failed has 0.
        values |= spread("e2el_ms", (latency for latency in latencies if latency))
    values["failed_requests"] = _failed(fields)
    gaps = "its ITL is the gap between chunks, however many tokens they hold: read as itl_chunk_ms"
    notes = [
        _DURATION,
        f"{gaps}; itl_token_ms needs --save-detailed",
        "a request whose tokens all came in one chunk has a TPOT of 0 there and none here",
    ]
    done = fields.figure("completed") or 0
    return values | _goodput(fields, values, done=done), notes + few_observations(fields, values)


def _failed(fields: Fields) -> float | None:
    failed, sent = fields.figure("failed"), fields.figure("num_prompts")
    completed = fields.figure("completed")
    if failed is None and sent is not None and completed is not None:
        return max(sent - completed, 0.0)
    return failed


def _goodput(
    fields: Fields, values: Mapping[str, float | None], *, done: float
) -> dict[str, float | None]:
    """Both goodputs from the number of good requests, over the duration of `values`."""
    rate, duration_s = fields.figure("request_goodput"), fields.figure("duration")
    throughput, failed = values["request_throughput"], values["failed_requests"]
    if rate is None or duration_s is None or not throughput:
        return {}
    good = rate * duration_s
    return {
        "goodput": good * throughput / done,
        "goodput_share": None if failed is None else good / (done + failed),
    }
