"""The comparison as a table of the documentation."""

import re
import statistics
from itertools import groupby

HEADER = (
    "streams",
    "chunks sent",
    "client",
    "throughput, of the script",
    "throughput, of what was sent",
    "TTFT p50, ms",
    "TTFT p99, ms",
    "ITL p50, ms",
    "ITL p99, ms",
    "CPU ms per 1,000 chunks",
    "peak memory, MB",
    "s before the first request",
)
MARKED = r"(<!-- table: clients -->\n).*?(<!-- end -->)"


def markdown(trials, *, about):
    """Medians over the repeats of each load, and below what they were measured with."""
    lines = [HEADER, ("---",) * len(HEADER), *map(_row, _groups(trials))]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *about])


def updated(document, table):
    """The document with the table between its two marks."""
    text, count = re.subn(
        MARKED, lambda match: f"{match[1]}{table}\n{match[2]}", document, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit("the document needs '<!-- table: clients -->' and '<!-- end -->' once")
    return text


def _groups(trials):
    def key(trial):
        return trial.streams, trial.mode

    # Sorted without the client: clients stay in the order in which they were run.
    for _, group in groupby(sorted(trials, key=key), key=key):
        loads = list(group)
        for name in dict.fromkeys(trial.client for trial in loads):
            yield [trial for trial in loads if trial.client == name]


def _row(trials):
    first = trials[0]

    def median(attribute):
        return statistics.median(getattr(trial, attribute) for trial in trials)

    def throughput(attribute):
        seen = [trial.seen_per_s / getattr(trial, attribute) - 1 for trial in trials]
        return f"{statistics.median(seen):+.1%}".replace("-", "−")

    return (
        f"{first.streams} ({first.scripted_per_s / 1e3:.1f} k/s)",
        {"spread": "spread", "step": "in step"}[first.mode],
        first.client + _invalid(trials),
        throughput("scripted_per_s"),
        throughput("sent_per_s"),
        *(
            _pair([getattr(trial, name) for trial in trials])
            for name in ("ttft_ms_p50", "ttft_ms_p99", "itl_ms_p50", "itl_ms_p99")
        ),
        f"{median('cpu_ms_per_1000'):.1f}",
        f"{median('peak_rss_mb'):.0f}",
        f"{median('first_request_s'):.1f}",
    )


def _invalid(trials):
    """In how many runs the client said itself that it was the limit, and by which rule."""
    found = [trial.findings for trial in trials if trial.findings]
    if not found:
        return ""
    codes = ", ".join(sorted({f"`{code}`" for codes in found for code in codes}))
    return f"; {len(found)} of {len(trials)} INVALID: {codes}"


def _pair(pairs):
    """Reported, and in brackets the truth."""
    reported = [value for value, _ in pairs if value is not None]
    shown = f"{statistics.median(reported):.2f}" if reported else "–"
    return f"{shown} ({statistics.median(true for _, true in pairs):.2f})"
