"""What the runs on H200 GPUs say about noise, and the noise that nights are simulated with."""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from pytest_moeperf import validity

DATA = Path(__file__).with_name("data") / "h200.json"
AT_MOST = 2.37
"""√(4 ÷ 0.711): 95 % bound of a standard deviation that was estimated with 4 degrees of freedom."""
OF_MEDIAN = 0.67
"""Standard deviation of a median of three, in those of one value."""
SPREAD = 0.3
"""Log standard deviation of the noise of cells of one kind: no two cells are equally noisy."""


@dataclass(frozen=True)
class Kind:
    """Relative noise of one gate of one kind of cell, as standard deviations."""

    name: str
    start: float
    repeat: float


@dataclass(frozen=True)
class Fit:
    """The noise of one metric of one kind of cell, as it was measured."""

    repeat: float
    """Between warm repeats of a start."""
    repeat_df: int
    start: float
    """Between the medians of starts: what it holds of the repeats' noise is left in."""


def runs():
    return json.loads(DATA.read_text(encoding="utf-8"))


def fits(document):
    """By (kind, model, metric). Without first runs, and without those that a stall hit."""
    made = {}
    for kind in ("bursts", "singles"):
        for cell in document[kind]:
            starts = [warm(start) for start in cell["starts"]]
            for metric in ("output_throughput", "tpot_ms_p50", "ttft_ms_p50", "itl_ms_p50"):
                if len(starts) > 1:
                    made[kind, cell["model"], metric] = fit(starts, metric)
    return made


def fit(starts, metric):
    logs = [[math.log(run[metric]) for run in start] for start in starts]
    df = sum(len(start) - 1 for start in logs)
    squares = sum((value - statistics.fmean(start)) ** 2 for start in logs for value in start)
    return Fit(
        repeat=math.sqrt(squares / df) if df else 0.0,
        repeat_df=df,
        start=statistics.stdev(statistics.median(start) for start in logs),
    )


def warm(start):
    """The runs of a start that the product would have judged."""
    hit = stalled(start)
    return [run for run in start if run["after_start"] and not hit[run["after_start"]]]


def stalled(start):
    """Whether the rule of `validity` finds each run, by its number; None where TTFT was not kept.

    In a burst the silence of the server is its time to the first token; the runs hold the median.
    """
    found = validity.stalls(
        [
            validity.Pace(
                duration_s=run["duration_s"],
                latency_ms=None,
                ttft_ms=run.get("ttft_ms_p50"),
                silence_ms=None,
            )
            for run in start
        ]
    )
    return {
        run["after_start"]: None if run.get("ttft_ms_p50") is None else finding is not None
        for run, finding in zip(start, found, strict=True)
    }


def kinds(document):
    """Two gates for each kind of cell.

    Repeats as they were measured. Starts at the upper bound of what their medians differed by, less
    what the repeats explain of it, and never below what was measured, which holds repeats as well.
    """
    found = fits(document)

    def medians(kind, metric):
        both = [each.start for (of, _, name), each in found.items() if (of, name) == (kind, metric)]
        return math.sqrt(statistics.fmean(value**2 for value in both))

    def gate(name, model, metric):
        measured, repeat = medians("bursts", metric), found["bursts", model, metric].repeat
        left = (AT_MOST * measured) ** 2 - (OF_MEDIAN * repeat) ** 2
        return Kind(name, math.sqrt(max(left, measured**2)), repeat)

    def burst(name, model):
        return tuple(gate(name, model, metric) for metric in ("output_throughput", "tpot_ms_p50"))

    # One run a start: what repeats differ by is in the figure of the starts.
    single = AT_MOST * medians("singles", "itl_ms_p50")
    return (
        burst("burst, MoE", "mixtral-8x7b tp1"),
        burst("burst, dense", "llama-3.1-8b tp1"),
        (Kind("single stream", single, single / 2), Kind("single stream", single, single / 2)),
    )


def silence(document):
    """Median share of a warm burst that passes before its first token, and its log deviation."""
    shares = [
        [run["ttft_ms_p50"] / 1e3 / run["duration_s"] for run in warm(start)]
        for cell in document["bursts"]
        for start in cell["starts"]
        if all("ttft_ms_p50" in run for run in start)
    ]
    longest = max(statistics.median(start) for start in shares)
    deviations = [math.log(share / statistics.median(start)) for start in shares for share in start]
    return longest, statistics.pstdev(deviations)


def hits(document):
    """Runs after the first that lost over 10 % against the best of their start: (lost, found)."""
    made = []
    for cell in document["bursts"]:
        for start in cell["starts"]:
            best = max(run["output_throughput"] for run in start)
            found = stalled(start)
            made += [
                (1 - run["output_throughput"] / best, found[run["after_start"]])
                for run in start[1:]
                if run["output_throughput"] < 0.9 * best
            ]
    return made
