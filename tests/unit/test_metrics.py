import runpy
from pathlib import Path

import pytest

from pytest_moeperf.errors import UsageError
from pytest_moeperf.metrics import METRICS, SLO, describe, quantity
from pytest_moeperf.records import Outcome

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("objectives", [{}, {"ttft_ms": 0}, {"e2el_ms": float("nan")}])
def test_an_slo_that_says_nothing_is_refused(objectives):
    with pytest.raises(UsageError, match="SLO"):
        SLO(**objectives)


def test_describe_splits_a_key():
    assert describe("tpot_ms.p99") == (METRICS["tpot_ms"], "p99")
    assert describe("goodput") == (METRICS["goodput"], None)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("tpt_ms.p50", r"'tpt_ms.p50' is not a metric \(did you mean tpot_ms.p50\?\); valid: ttft"),
        ("tpot_ms", "given as tpot_ms.mean, tpot_ms.p50, tpot_ms.p90, tpot_ms.p99"),
        ("tpot_ms.p75", "'tpot_ms.p75' is not a metric; tpot_ms is given as"),
        ("goodput.p50", "goodput is given as goodput"),
        ("", r"'' is not a metric; valid: ttft_ms.\{mean,p50,p90,p99\}"),
    ],
)
def test_an_unknown_key_is_answered_with_the_valid_ones(key, message):
    with pytest.raises(UsageError, match=message):
        describe(key)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "ms", "–"),
        (1234.56, "tok/s", "1235 tok/s"),
        (31.24, "ms", "31.2 ms"),
        (1.5, "", "1.50"),
        (0.012345, "s", "0.0123 s"),
        (0, "requests", "0 requests"),
    ],
)
def test_quantity_writes_three_significant_digits(value, unit, text):
    assert quantity(value, unit) == text


@pytest.mark.parametrize("document", ["metrics.md", "verdicts.md"])
def test_the_tables_in_the_documentation_are_current(document):
    script = runpy.run_path(str(ROOT / "scripts" / "update_metric_tables.py"))
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert script["updated"](text) == text, "run python scripts/update_metric_tables.py"


def test_the_documentation_explains_every_verdict():
    text = (ROOT / "docs" / "verdicts.md").read_text(encoding="utf-8")
    assert [outcome for outcome in Outcome if f"| `{outcome}` |" not in text] == []
