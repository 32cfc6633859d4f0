"""Rewrite the tables of docs/metrics.md that are generated from the code."""

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

DOCUMENT = Path(__file__).parent.parent / "docs" / "metrics.md"


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
            ("metric", "tolerance, CPU", "noise, CPU", "tolerance, GPU", "noise, GPU"),
            (
                (
                    f"`{key}`",
                    *(
                        f"{100 * ratio:g} %"
                        for hardware in (CPU, GPU)
                        for policy in (POLICIES[hardware][key],)
                        for ratio in (policy.tolerance, policy.noise)
                    ),
                )
                for key in POLICIES[CPU]
            ),
        ),
    }


def updated(text: str) -> str:
    """Put every table between its two marks."""
    for name, content in tables().items():
        marked = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        replacement = rf"\g<1>{content}\n\g<2>"
        text, count = re.subn(marked, replacement, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{DOCUMENT}: needs '<!-- table: {name} -->' and '<!-- end -->' once")
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
