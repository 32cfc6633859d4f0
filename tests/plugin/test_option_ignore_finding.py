"""--ignore-finding: repeats that count in spite of a finding."""

import pytest

COMPILING = "WARNING Triton kernel JIT compilation during inference: fused_moe"


@pytest.fixture
def compiling_suite(suite):
    """Every play finds that the server compiled."""
    suite.script(load_log=[COMPILING], load_log_requests=[1, 1000])
    return suite


def test_a_repeat_with_a_finding_is_measured_again_twice_and_then_the_cell_is_invalid(
    compiling_suite,
):
    outcome = compiling_suite.run()
    outcome.counts(failed=1)
    outcome.shows(
        "  INVALID all metrics",
        "    3 repeats were invalid: the server compiled while it was measured: *",
        "  repeat with seed 0 discarded: the server compiled while it was measured: *",
        "    warm up with the shapes of this workload",
        "  repeat with seed 2 discarded: *",
    )
    [cell] = outcome.run_json["cells"]
    assert cell["invalid"]


@pytest.mark.usefixtures("whole_warm_up")
def test_a_finding_of_a_passing_phase_costs_a_repeat_only(suite):
    # Two warm-up plays of two requests each, and the first of the repeats.
    suite.script(load_log=[COMPILING], load_log_requests=[5, 6])
    suite.write_ratio((0.9, 1.1))
    outcome = suite.run()
    outcome.counts(passed=1)
    [cell] = outcome.judged
    assert (cell["start"]["repeats"]["seeds"], cell["warmup_plays"]) in [([1], 2), ([0], 3)]


def test_repeats_with_an_ignored_finding_count(compiling_suite):
    compiling_suite.write_ratio((0.9, 1.1))
    outcome = compiling_suite.run(
        "--ignore-finding", "compilation", "--ignore-finding", "busy_machine"
    )
    outcome.counts(passed=1)
    [cell] = outcome.judged
    assert cell["start"]["environment"]["ignored_findings"] == "busy_machine, compilation"


def test_an_unknown_finding_is_an_error_that_lists_the_known(suite):
    error = suite.run("--ignore-finding", "noise").usage_error
    assert error.startswith(
        "ERROR: --ignore-finding noise: no such finding; there are busy_machine"
    )
