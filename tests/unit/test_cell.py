from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pytest_moeperf import cell
from pytest_moeperf.cell import Cell
from pytest_moeperf.records import Finding, Outcome, Sample, Verdict


def test_repeats_that_were_measured_again_are_counted_by_what_was_found_in_them():
    found = [("compilation", "stall"), ("stall",), ("busy_machine",)]
    discarded = tuple(
        Sample(
            seed=seed, values={}, findings=tuple(Finding(code=code, message="") for code in codes)
        )
        for seed, codes in enumerate(found)
    )
    measured = SimpleNamespace(
        result=SimpleNamespace(invalid=False), measurement=SimpleNamespace(discarded=discarded)
    )
    cell = Cell(None, measured)
    assert cell.discarded("compilation", "stall") == 2
    assert cell.discarded("compilation") == 1
    assert cell.discarded("token_totals") == 0


@pytest.mark.parametrize(
    ("release", "raised"), [(False, pytest.skip.Exception), (True, pytest.fail.Exception)]
)
def test_before_a_release_no_skip_hides_what_is_open(session_report, monkeypatch, release, raised):
    drifted, noisy = (
        replace(session_report.cells[0], verdicts=(Verdict(metric="tpot_ms.p50", outcome=each),))
        for each in (Outcome.ENV_DRIFT, Outcome.INCONCLUSIVE)
    )
    monkeypatch.setattr(cell, "at_work", lambda *_: nullcontext())
    item = SimpleNamespace(config=SimpleNamespace(getoption=lambda _: False))
    session = SimpleNamespace(
        options=SimpleNamespace(release=release), settle=lambda _: [drifted, noisy]
    )
    with pytest.raises(raised):
        cell._settle(item, session)
