"""Rewrite the tables of docs/claims.md: published figures beside those of the stored baselines.

Run `python scripts/write_claims.py` after a refresh of baselines; `--check` only says whether the
page is current.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf import store
from pytest_moeperf.claims import (
    Answer,
    Estimate,
    Outcome,
    Published,
    Result,
    Stored,
    answers,
    from_baseline,
    read_measured,
    read_published,
)
from pytest_moeperf.metrics import quantity
from pytest_moeperf.models import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs" / "claims"
PAGE = ROOT / "docs" / "claims.md"
AS_COLD = "but the first play after a start gives the published figures"


def read(name: str) -> dict[str, object]:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def all_stored() -> tuple[Stored, ...]:
    """Baselines first, the one with most starts before others of the same cell."""
    root = ROOT / "baselines"
    placed = [from_baseline(store.load_placed(root, path)) for path in store.find(root)]
    placed.sort(key=lambda each: -len(each.starts))
    return (*placed, *read_measured(read("measured.json")))


def tables() -> dict[str, str]:
    published = read_published(read("published.json"))
    architectures = {name: entry.architecture for name, entry in catalogue().items()}
    answered = answers(published, all_stored(), architectures)
    return {
        "summary": summary_table(answered),
        "earlier": earlier_sentence(answered),
        **{
            letter: claims_table([each for each in answered if each.claim.id[0] == letter], source)
            for letter, source in published.sources.items()
        },
        "measured": measured_table(answered),
        "calculated": calculated_table(answered),
        "cells": cells_table(answered, published),
    }


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def summary_table(answered: Sequence[Answer]) -> str:
    counts: dict[Outcome, list[str]] = {outcome: [] for outcome in Outcome}
    for each in answered:
        counts[each.outcome].append(each.claim.id)
    rows = ((outcome, str(len(which)), ", ".join(which)) for outcome, which in counts.items())
    return table(("answer", "claims", "which"), (row for row in rows if row[-1]))


def earlier_sentence(answered: Sequence[Answer]) -> str:
    """Which refutations rest on one server start that another client measured."""
    which = [
        answer.claim.id
        for answer in answered
        if (refuting := [each for each in answer.results if each.outcome is Outcome.REFUTED])
        and all(by_one_earlier(each) for each in refuting)
    ]
    if not which:
        return "Every claim that measurements refute has a figure that the suites measured."
    return (
        f"**One start.** The refutations of {', '.join(which)} each rest on a single server start "
        "that another client measured; of a ratio, at least one side does."
    )


def by_one_earlier(result: Result) -> bool:
    return any(
        len(each.starts) == 1 and not each.source.startswith(("baselines/", "suites/"))
        for each in result.stored
    )


def claims_table(answered: Sequence[Answer], source: str) -> str:
    rows = ((each.claim.id, each.claim.says, verdict(each), why(each)) for each in answered)
    return f"{source}.\n\n{table(('claim', 'says', 'answer', 'why'), rows)}"


def verdict(answer: Answer) -> str:
    if answer.outcome is Outcome.UNTESTED:
        return answer.outcome
    decided, all_of_it = len(answer.decided), len(answer.results)
    partly = f" ({decided} of {all_of_it} figures)" if decided < all_of_it else ""
    return f"**{answer.outcome}**{partly}"


def why(answer: Answer) -> str:
    """In one line: the figure of ours that says most, what is missing, what to know."""
    ours = telling(answer)
    if answer.outcome is Outcome.UNTESTED:
        lacking = ", ".join(dict.fromkeys(name for each in answer.results for name in each.lacking))
        said = [
            answer.claim.untested,
            f"no stored run of: {lacking}" if lacking else "",
            f"nearest: {ours}" if ours else "",
        ]
    else:
        said = [ours, AS_COLD if answer.of_a_cold_server else ""]
    differing = {each.cells.differs for each in answer.compared if each.cells is not None}
    near = [f"ours: {each}" for each in sorted(differing) if each]
    return "; ".join(filter(None, [*said, *near, answer.claim.note]))


def telling(answer: Answer) -> str:
    """Of the figures that decided, the one furthest off."""
    deciding = [each for each in answer.compared if each.outcome is answer.outcome]
    if not deciding:
        return ""
    worst = max(deciding, key=lambda each: abs(math.log(off(each))))
    ours = interval(worst.ours, worst.unit)
    return f"{worst.name} {ours} against {shown(worst.figure.published)}"


def off(result: Result) -> float:
    """Ours ÷ published, or ÷ the nearer end of a published range."""
    published = result.figure.published
    ends = published if isinstance(published, tuple) else (published,)
    ratios = [result.ours.value / end for end in ends if end is not None]
    return min(ratios, key=lambda ratio: abs(math.log(ratio)))


def shown(published: float | tuple[float | None, float | None]) -> str:
    match published:
        case (None, high):
            return f"below {high}"
        case (low, None):
            return f"above {low}"
        case (low, high):
            return f"{low} to {high}"
    return str(published)


def measured_table(answered: Sequence[Answer]) -> str:
    return table(
        (
            "claim",
            "figure",
            "published",
            "ours, warm",
            "ours, cold",
            "warm ÷ published",
            "says",
            "by",
        ),
        (
            (
                answer.claim.id,
                figure_of(each),
                shown(each.figure.published),
                interval(each.ours),
                interval(each.cold),
                f"{off(each):.2f}",
                "–" if each.outcome is Outcome.UNTESTED else each.outcome,
                each.cells.label,
            )
            for answer in answered
            for each in answer.compared
            if each.cells is not None
        ),
    )


def figure_of(result: Result) -> str:
    return f"{result.name}, {result.unit}" if result.unit else result.name


def interval(ours: Estimate | None, unit: str = "") -> str:
    if ours is None:
        return "–"
    value, low, high = quantity(ours.value, unit), quantity(ours.low), quantity(ours.high)
    if ours.low == ours.high:
        return value
    return f"{value} ({low}–{high})" if ours.certain else f"{value} ({low}–{high}, one start)"


def calculated_table(answered: Sequence[Answer]) -> str:
    return table(
        ("claim", "figure", "published", "calculated", "calculated ÷ published"),
        (
            (
                answer.claim.id,
                figure_of(each),
                shown(each.figure.published),
                quantity(each.ours.value),
                f"{off(each):.3f}",
            )
            for answer in answered
            for each in answer.compared
            if each.cells is None
        ),
    )


def cells_table(answered: Sequence[Answer], published: Published) -> str:
    """Every stored cell that answers a claim, by its name."""
    used = {
        name: stored
        for answer in answered
        for each in answer.compared
        if each.cells is not None
        for name, stored in zip(each.cells.names, each.stored, strict=True)
    }
    return table(
        ("cell", "is", "engine's version", "starts", "raw data"),
        (
            (
                name,
                f"`{used[name].cell}`",
                used[name].version or "–",
                str(len(used[name].starts)),
                used[name].source,
            )
            for name in published.cells
            if name in used
        ),
    )


def updated(text: str) -> str:
    """Put every table between the marks that the page has for it."""
    known = tables()
    marks = r"<!-- table: (?P<name>\w+) -->\n.*?<!-- end -->"
    return re.sub(
        marks,
        lambda marked: f"<!-- table: {marked['name']} -->\n{known[marked['name']]}\n<!-- end -->",
        text,
        flags=re.DOTALL,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if outdated")
    check = parser.parse_args(arguments).check
    before = PAGE.read_text(encoding="utf-8")
    after = updated(before)
    if not check:
        PAGE.write_text(after, encoding="utf-8")
    elif after != before:
        print(f"{PAGE.relative_to(ROOT)} is outdated: run python scripts/write_claims.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
