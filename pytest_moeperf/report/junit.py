"""A cell as JUnit properties, for the dashboards of CI systems."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_moeperf.records import CellResult, Verdict

__all__ = ["properties"]


def properties(cell: CellResult) -> list[tuple[str, str]]:
    """Names and values for the test's `<properties>`; what was not measured has no property.

    A verdict gives `moeperf.<metric>.verdict` and its figures, in the metric's unit.
    """
    listed: list[tuple[str, str | int | None]] = [
        ("moeperf.cell", cell.cell),
        ("moeperf.engine", cell.engine),
        ("moeperf.server", cell.server),
        ("moeperf.workload", cell.workload),
        ("moeperf.start", cell.start.start_id if cell.start else None),
        ("moeperf.against", cell.against),
        ("moeperf.warmup_plays", cell.warmup_plays),
        ("moeperf.discarded_repeats", len(cell.discarded)),
    ]
    shown = [(name, str(value)) for name, value in listed if value is not None]
    for verdict in cell.verdicts:
        shown.extend(_verdict_properties(verdict))
    return shown


def _verdict_properties(verdict: Verdict) -> list[tuple[str, str]]:
    prefix = f"moeperf.{verdict.metric}"
    low, high = verdict.interval or (None, None)
    figures = (
        ("measured", verdict.measured),
        ("spread", verdict.spread),
        ("expected", verdict.expected),
        ("lower", verdict.lower),
        ("upper", verdict.upper),
        ("change", verdict.change),
        ("effect", verdict.effect),
        ("effect_low", low),
        ("effect_high", high),
        ("p", verdict.p),
        ("p_limit", verdict.p_limit),
        ("tolerance", verdict.tolerance),
        ("visible", verdict.visible),
        ("starts", verdict.starts),
    )
    words = (("unit", verdict.unit), ("reason", verdict.reason))
    judged = verdict.starts is not None
    return [
        (f"{prefix}.verdict", verdict.outcome.value),
        *([(f"{prefix}.paired", str(verdict.paired).lower())] if judged else []),
        *((f"{prefix}.{name}", f"{value:.6g}") for name, value in figures if value is not None),
        *((f"{prefix}.{name}", text) for name, text in words if text),
    ]
