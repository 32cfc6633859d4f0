from types import SimpleNamespace

from pytest_moeperf.cell import Cell
from pytest_moeperf.records import Finding, Sample


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
