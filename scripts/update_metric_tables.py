"""Rewrite the tables of the documents that are generated from the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.metrics import METRICS
from pytest_moeperf.policy import CPU, GPU, POLICIES
from pytest_moeperf.stats import PERCENTILE_FLOOR
from pytest_moeperf.validity import FINDINGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DOCS = Path(__file__).parent.parent / "docs"
DOCUMENTS = (DOCS / "metrics.md", DOCS / "verdicts.md")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def tables() -> dict[str, str]:
    better = {"lower": "lower", "higher": "higher", None: "neither"}
    return {
        "definitions": table(
            ("key", "unit", "better", "given as", "definition", "defined alike by, or different"),
            (
                (
                    f"`{metric.key}`",
                    metric.unit or "ratio",
                    better[metric.direction],
                    ", ".join(f"`.{name}`" for name in metric.statistics) or "one figure",
                    metric.formula,
                    metric.source,
                )
                for metric in METRICS.values()
            ),
        ),
        "floors": table(
            ("percentile", "fewest observations"),
            ((f"p{rank}", str(count)) for rank, count in PERCENTILE_FLOOR.items()),
        ),
        "findings": table(
            ("code", "found when"), ((f"`{code}`", rule) for code, rule in FINDINGS.items())
        ),
        "policies": table(
            (
                "metric",
                *(
                    f"{name}, {kind}"
                    for kind in ("CPU", "GPU")
                    for name in ("tolerance", "catch", "noise")
                ),
            ),
            (
                (
                    f"`{key}`",
                    *(
                        f"{100 * ratio:g} %"
                        for hardware in (CPU, GPU)
                        for policy in (POLICIES[hardware][key],)
                        for ratio in (policy.tolerance, policy.catch, policy.noise)
                    ),
                )
                for key in POLICIES[CPU]
            ),
        ),
    }


def updated(text: str) -> str:
    """Put every table that a document has marks for between them."""
    known = tables()

    def table_of(marked: re.Match[str]) -> str:
        name = marked["name"]
        if name not in known:
            raise SystemExit(f"no table is called {name!r}; there are {', '.join(known)}")
        return f"<!-- table: {name} -->\n{known[name]}\n<!-- end -->"

    marks = r"<!-- table: (?P<name>\w+) -->\n.*?<!-- end -->"
    return re.sub(marks, table_of, text, flags=re.DOTALL)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(updated(document.read_text(encoding="utf-8")), encoding="utf-8")
