"""Every baseline that this repository stores."""

from pathlib import Path

import pytest

from pytest_moeperf import store
from pytest_moeperf.baseline_format import encode
from pytest_moeperf.policy import policy_for

ROOT = Path(__file__).parents[2] / "baselines"


@pytest.mark.parametrize("path", store.find(ROOT), ids=lambda path: str(path.relative_to(ROOT)))
def test_it_is_valid_in_its_place_and_in_canonical_form(path):
    baseline = store.load_placed(ROOT, path)
    assert path.read_text(encoding="utf-8") == encode(baseline)
    assert baseline.gates or baseline.routing
    assert all(baseline.repeats(metric) for metric in baseline.gates)


@pytest.mark.parametrize("path", store.find(ROOT), ids=lambda path: str(path.relative_to(ROOT)))
def test_its_tolerances_are_those_of_the_policy(path):
    """So that a wider policy changes these files, and the guard sees it."""
    baseline = store.load_placed(ROOT, path)
    hardware = baseline.fingerprint.hardware
    for metric, gate in baseline.gates.items():
        assert gate.tolerance == policy_for(hardware, metric).tolerance


def test_the_folder_holds_only_baselines_and_their_readme():
    found = {path for path in ROOT.rglob("*") if path.is_file()}
    named = {ROOT / "README.md", ROOT / store.WAIVERS}
    assert found - set(store.find(ROOT)) <= named
