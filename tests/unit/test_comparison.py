"""Two runs, held against each other."""

import dataclasses

import pytest

from pytest_moeperf.comparison import compare, read_run
from pytest_moeperf.errors import BaselineError, UsageError
from pytest_moeperf.records import CellResult, Outcome, Verdict
from pytest_moeperf.report.json import to_json
from pytest_moeperf.report.model import SessionReport
from pytest_moeperf.store import schema

TPOT = "tpot_ms.p50"


@pytest.fixture
def make_run(fingerprint, make_start):
    """Builds the text of a run.json: a cell's starts, each with two repeats around a value."""

    def make(
        *starts, cell="serving/c", engine="vllm==0.32.0", metric=TPOT, direction="lower", **changes
    ):
        records = [
            make_start(f"{engine}-{number}", tpot=(value * 0.999, value * 1.001))
            for number, value in enumerate(starts)
        ]
        return CellResult(
            cell=cell,
            test="t",
            server="mini-moe",
            engine=engine,
            workload="w",
            fingerprint=dataclasses.replace(fingerprint, **changes),
            start=records[0],
            further=tuple(records[1:]),
            verdicts=(Verdict(metric=metric, outcome=Outcome.PASS, direction=direction),),
        )

    return make


def as_run(*cells, source="run.json"):
    report = SessionReport(
        tool_version="0.1.0",
        started_at="2026-01-02T03:00:00Z",
        duration_s=1.0,
        hardware="h200",
        engines=(),
        cells=cells,
    )
    return read_run(to_json(report), source=source, schema=schema("run-2"))


def outcomes(first, second):
    comparison = compare(as_run(first, source="a.json"), as_run(second, source="b.json"))
    return [verdict.outcome for cell in comparison.cells for verdict in cell.verdicts]


GPU = {"hardware": "h200", "gpus": ("H200",)}
FIVE = (20.0, 20.1, 19.9, 20.05, 19.95)


def slower(values, factor):
    return tuple(value * factor for value in values)


def test_the_same_figures_pass(make_run):
    assert outcomes(make_run(*FIVE, **GPU), make_run(*FIVE, **GPU)) == [Outcome.PASS]


def test_a_tenth_slower_is_a_regression_and_the_mirror_an_improvement(make_run):
    fast, slow = make_run(*FIVE, **GPU), make_run(*slower(FIVE, 1.1), **GPU)
    assert outcomes(fast, slow) == [Outcome.REGRESSED]
    assert outcomes(slow, fast) == [Outcome.IMPROVED]


def test_one_start_each_is_too_little_to_blame_an_engine(make_run):
    assert outcomes(make_run(20.0, **GPU), make_run(22.0, **GPU)) == [Outcome.INCONCLUSIVE]


def test_two_starts_blame_an_engine_that_lost_half(make_run):
    """There will be no third one, as in a session with a limit."""
    assert outcomes(make_run(20.0, **GPU), make_run(40.0, 41.0, **GPU)) == [Outcome.REGRESSED]


def test_another_machine_cannot_be_compared(make_run):
    other = GPU | {"gpus": ("H100",)}
    assert outcomes(make_run(*FIVE, **GPU), make_run(*FIVE, **other)) == [Outcome.INCOMPARABLE]


def test_starts_of_an_a_b_count_and_those_of_its_old_engine_do_not(make_run, make_start):
    cell = dataclasses.replace(
        make_run(20.0, **GPU), old=(make_start("old"),), new=(make_start("new"),)
    )
    [read] = as_run(cell).cells.values()
    assert [start.start_id for start in read.starts] == ["vllm==0.32.0-0", "new"]


def test_a_cell_that_two_tests_judged_counts_once(make_run):
    cell = make_run(*FIVE, **GPU)
    [read] = as_run(cell, dataclasses.replace(cell, test="another")).cells.values()
    assert len(read.starts) == 5


def test_ratios_and_cells_without_figures_are_left_out(make_run):
    ratio = make_run(20.0, metric="tpot_ms.p50 ÷ dense", direction=None, **GPU)
    empty = dataclasses.replace(make_run(20.0, cell="serving/d", **GPU), start=None)
    assert as_run(ratio, empty).cells == {}


def test_what_only_one_run_has_is_named(make_run):
    first = as_run(make_run(*FIVE, **GPU), make_run(*FIVE, cell="serving/gone", **GPU))
    second = as_run(make_run(*FIVE, **GPU), make_run(*FIVE, cell="serving/new", **GPU))
    comparison = compare(first, second)
    assert comparison.only_in_first == ("serving/gone",)
    assert comparison.only_in_second == ("serving/new",)


def test_runs_without_a_common_cell_are_misuse(make_run):
    first, second = make_run(20.0), make_run(20.0, cell="serving/other")
    with pytest.raises(UsageError, match=r"a\.json and b\.json have no judged cell in common"):
        outcomes(first, second)


def test_a_run_of_two_engines_is_misuse(make_run):
    cells = make_run(20.0), make_run(20.0, engine="vllm==0.31.0")
    with pytest.raises(
        UsageError, match=r"of vllm==0\.32\.0 and of vllm==0\.31\.0; compare runs of"
    ):
        as_run(*cells)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "run.json: .*not JSON"), ('{"schema": 2}', "run.json: .*required")]
)
def test_another_file_is_refused_with_its_name(text, message):
    with pytest.raises(BaselineError, match=message):
        read_run(text, source="run.json", schema=schema("run-2"))
