"""Published figures against ours: the rule, what may answer what, and the data themselves."""

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.baseline import Baseline
from pytest_moeperf.claims import (
    Outcome,
    Stored,
    answers,
    from_baseline,
    read_measured,
    read_published,
)
from pytest_moeperf.claims.estimates import Estimate, estimate, outcome, quotient
from pytest_moeperf.claims.published import Measured
from pytest_moeperf.claims.stored import Start
from pytest_moeperf.identity import server_identity
from pytest_moeperf.metrics import describe
from pytest_moeperf.models import catalogue
from pytest_moeperf.records import Sample
from pytest_moeperf.store import write_baselines

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs" / "claims"
DOCUMENT = json.loads((DATA / "published.json").read_text(encoding="utf-8"))
PUBLISHED = read_published(DOCUMENT)
MEASURED = read_measured(json.loads((DATA / "measured.json").read_text(encoding="utf-8")))
ARCHITECTURES = {name: entry.architecture for name, entry in catalogue().items()}

PLAYS = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=4)
STARTS = st.lists(PLAYS, min_size=1, max_size=5)


def test_several_starts_have_a_student_interval_on_the_log_scale():
    # ln 100 and ln 121 differ by 0.19062: standard error 0.09531, t(0.975, 1) = 12.7062.
    ours = estimate([[100, 90, 300], [121]])
    assert ours.value == pytest.approx(110)
    assert (ours.low, ours.high) == pytest.approx((32.77, 369.3), rel=1e-3)
    assert ours.certain


def test_one_start_has_the_range_of_its_plays_and_two_percent():
    ours = estimate([[4.0, 1.02, 9.0]])
    assert (ours.value, ours.low, ours.high) == pytest.approx((4.0, 1.0, 9.18))
    assert not ours.certain


def test_nothing_measured_is_no_estimate():
    assert estimate([]) is None
    assert quotient([[1.0]], []) is None


def test_a_quotient_of_starts_has_the_interval_of_welch():
    # Both sides as above: variance 2 x 0.09531^2 = 0.018168, 2 degrees of freedom, t = 4.30265.
    ours = quotient([[100], [121]], [[50], [60.5]])
    assert ours.value == pytest.approx(2)
    assert (ours.low, ours.high) == pytest.approx((1.1199, 3.5718), rel=1e-3)
    assert ours.certain


def test_a_quotient_with_a_single_start_spans_the_ranges_of_both():
    # Divided by the interval of the other side, 32.77 to 369.3 around 110.
    ours = quotient([[200, 220, 240]], [[100], [121]])
    assert ours.value == pytest.approx(2)
    assert (ours.low, ours.high) == pytest.approx(
        (200 / 1.02 / 369.3, 240 * 1.02 / 32.77), rel=1e-3
    )
    assert not ours.certain


def test_equal_starts_leave_no_doubt():
    assert estimate([[5.0], [5.0]]) == Estimate(*[pytest.approx(5.0)] * 3, certain=True)
    assert quotient([[6.0], [6.0]], [[3.0], [3.0]]).high == pytest.approx(2.0)


@given(of=STARTS, over=STARTS)
def test_a_quotient_turned_over_is_its_inverse(of, over):
    one, other = quotient(of, over), quotient(over, of)
    assert one.value * other.value == pytest.approx(1)
    assert one.low * other.high == pytest.approx(1)
    assert one.low <= one.value * (1 + 1e-9)


@pytest.mark.parametrize(
    ("low", "high", "published", "said"),
    [
        (95, 105, 100, Outcome.CONFIRMED),
        (91, 110, 100, Outcome.CONFIRMED),
        (90, 105, 100, Outcome.UNDECIDED),  # 100 / 1.1 = 90.9
        (80, 90, 100, Outcome.REFUTED),
        (109, 112, 100, Outcome.UNDECIDED),
        (111, 140, 100, Outcome.REFUTED),
        (50, 200, 100, Outcome.UNDECIDED),
        (1.06, 1.09, (1.05, 1.10), Outcome.CONFIRMED),
        (1.03, 1.04, (1.05, 1.10), Outcome.REFUTED),  # A range has no further 10 %.
        (1.3, 1.4, (1.21, None), Outcome.CONFIRMED),
        (1.1, 1.2, (1.21, None), Outcome.REFUTED),
        (0.9, 1.1, (None, 1), Outcome.UNDECIDED),
    ],
)
def test_all_of_the_interval_confirms_and_none_of_it_refutes(low, high, published, said):
    assert outcome(Estimate(1.0, low, high, certain=True), published) is said


def test_without_a_figure_of_ours_nothing_is_said():
    assert outcome(None, 100) is Outcome.UNTESTED


def stored(cell, *throughputs, cold=None, source="here"):
    """A cell with one start for each throughput."""
    starts = tuple(
        Start(
            cold={} if cold is None else {"output_throughput": [cold]},
            warm={"output_throughput": [each]},
        )
        for each in throughputs
    )
    return Stored(cell=cell, version="1.0", source=source, starts=starts)


PUBLISHED_100 = {"metric": "output_throughput", "published": 100}


def answered(*cells, figures=(PUBLISHED_100,), has=()):
    """The answer to one claim whose cells are `cells`, where `has` was measured."""
    document = {
        "sources": {"A": "somebody"},
        "cells": {name: f"h200 * {name}" for name in ("exact", "near", "partner")},
        "architectures": {},
        "claims": [{"id": "A1", "says": "so", "cells": cells, "figures": list(figures)}],
    }
    return answers(read_published(document), has, ARCHITECTURES)[0]


def test_a_claim_without_a_stored_cell_is_not_tested_and_names_it():
    answer = answered({"of": "exact", "over": "partner"}, has=[stored("h200 vllm partner", 1.0)])
    assert answer.outcome is Outcome.UNTESTED
    assert answer.results[0].lacking == ("exact",)


def test_the_first_cells_that_are_stored_answer():
    near = {"of": "near", "differs": "one GPU"}
    has = [stored("h200 vllm near", 500.0), stored("h200 vllm exact", 100.0)]
    assert answered({"of": "exact"}, near, has=has).outcome is Outcome.CONFIRMED


def test_a_near_cell_is_shown_and_decides_nothing():
    answer = answered({"of": "near", "differs": "one GPU"}, has=[stored("h200 vllm near", 500.0)])
    assert answer.outcome is Outcome.UNTESTED
    assert [each.ours.value for each in answer.compared] == [pytest.approx(500)]


@pytest.mark.parametrize(
    ("ours", "said"),
    [(120.0, Outcome.REFUTED), (111.0, Outcome.UNTESTED), (50.0, Outcome.UNTESTED)],
)
def test_a_lighter_load_refutes_only_what_it_exceeds(ours, said):
    near = {"of": "near", "differs": "fewer requests", "floor": True}
    assert answered(near, has=[stored("h200 vllm near", ours)]).outcome is said


def test_the_best_source_comes_first():
    has = [stored("h200 vllm exact", 100.0), stored("h200 vllm exact", 300.0)]
    assert answered({"of": "exact"}, has=has).outcome is Outcome.CONFIRMED


def test_first_plays_may_come_from_another_source_than_the_repeats():
    has = [stored("h200 vllm exact", 200.0), stored("h200 vllm exact", 300.0, cold=101.0)]
    answer = answered({"of": "exact"}, has=has)
    assert answer.results[0].ours.value == pytest.approx(200)
    assert answer.results[0].cold.value == pytest.approx(101)
    assert answer.outcome is Outcome.REFUTED
    assert answer.of_a_cold_server


@pytest.mark.parametrize(
    ("cells", "cold"),
    [({"of": "exact"}, 150.0), ({"of": "exact", "differs": "fewer", "floor": True}, 100.0)],
)
def test_no_other_figure_is_called_that_of_a_cold_server(cells, cold):
    answer = answered(cells, has=[stored("h200 vllm exact", 200.0, cold=cold)])
    assert answer.outcome is Outcome.REFUTED
    assert not answer.of_a_cold_server


def test_a_claim_is_refuted_with_any_of_its_figures():
    figures = [{"metric": "output_throughput", "published": each} for each in (100, 300)]
    figures.append({"name": "told", "published": 7})
    answer = answered({"of": "exact"}, figures=figures, has=[stored("h200 vllm exact", 100.0)])
    said = [each.outcome for each in answer.results]
    assert said == [Outcome.CONFIRMED, Outcome.REFUTED, Outcome.UNTESTED]
    assert answer.outcome is Outcome.REFUTED
    assert len(answer.decided) == 2


def test_a_figure_can_be_that_of_a_part():
    figure = {"metric": "output_throughput", "published": 25, "per": 4}
    has = [stored("h200 vllm exact", 98.0, 102.0)]
    answer = answered({"of": "exact"}, figures=[figure], has=has)
    assert answer.results[0].ours.value == pytest.approx((98 * 102) ** 0.5 / 4)


def test_baselines_give_repeats_and_the_first_play_of_each_start(make_recording, make_start):
    def sample(value):
        return Sample(seed=0, values={"tpot_ms.p50": value, "tpot_ms.p99": None})

    start = replace(make_start(tpot=(30.0, 32.0)), warmup=(sample(99.0), sample(40.0)))
    cell = from_baseline(Baseline.begun(make_recording(start=start)))
    assert cell.cell == "cpu vllm mini-moe 0123abcd (4567ef01) closed-c1-isl32-osl48-n8 v1"
    assert cell.version == "0.32.0"
    assert cell.plays("tpot_ms.p50", "warm") == [[30.0, 32.0]]
    assert cell.plays("tpot_ms.p50", "cold") == [[99.0]]
    assert cell.plays("tpot_ms.p99", "warm") == []


@pytest.mark.parametrize("plays", [0, 1])
def test_a_server_that_was_warm_has_no_cold_play(make_recording, make_start, plays):
    warmup = (Sample(seed=0, values={"tpot_ms.p50": 30.0}),) * plays
    recording = make_recording(start=replace(make_start(), warmup=warmup))
    assert from_baseline(Baseline.begun(recording)).plays("tpot_ms.p50", "cold") == []


@pytest.mark.parametrize(("caches", "cold"), [("warm", []), ("cold", [[99.0]]), (None, [[99.0]])])
def test_a_server_that_found_compiled_kernels_was_not_cold(
    make_recording, make_start, caches, cold
):
    warmup = tuple(Sample(seed=0, values={"tpot_ms.p50": value}) for value in (99.0, 40.0))
    start = replace(make_start(), warmup=warmup)
    if caches is not None:
        start = replace(start, environment={**start.environment, "engine_caches": caches})
    stored = from_baseline(Baseline.begun(make_recording(start=start)))
    assert stored.plays("tpot_ms.p50", "cold") == cold


def test_digest_and_version_are_no_part_of_a_cell(make_recording, fingerprint):
    now = replace(fingerprint, model="mini-moe@0123abcd", workload="burst-n4-isl8-osl8@1 ttft<=9")
    cell = from_baseline(Baseline.begun(make_recording(fingerprint=now)))
    assert cell.cell == "cpu vllm mini-moe (4567ef01) burst-n4-isl8-osl8"


# The data.


def test_every_published_claim_is_there_once():
    count = {"A": 26, "B": 12, "C": 11, "D": 9}
    expected = [f"{letter}{n + 1}" for letter in count for n in range(count[letter])]
    assert [claim.id for claim in PUBLISHED.claims] == expected


def test_every_claim_can_be_answered_or_says_why_not():
    answered_by_none = [
        claim.id
        for claim in DOCUMENT["claims"]
        if bool(claim.get("untested"))
        is any({"metric", "calculated"} & figure.keys() for figure in claim.get("figures", ()))
    ]
    assert answered_by_none == []


def measured_figures():
    figures = [figure for claim in PUBLISHED.claims for figure in claim.figures]
    return [figure for figure in figures if isinstance(figure, Measured)]


def test_cells_are_defined_and_used():
    used = {name for each in measured_figures() for cells in each.cells for name in cells.names}
    assert used == set(PUBLISHED.cells)


def test_metrics_are_known():
    for figure in measured_figures():
        assert describe(figure.metric)


EARLIER = re.compile(r"--|num_hidden_layers=4, intermediate_size")
"""Servers of another client, and of suites that have changed since; their figures are stored."""


def test_servers_of_the_suites_are_those_of_the_claims():
    """Else a recorded baseline would silently answer nothing."""
    hook = runpy.run_path(str(ROOT / "suites" / "conftest.py"))["pytest_moeperf_servers"]
    servers = hook("h200").values()
    specs = [spec for each in servers for spec in (each if isinstance(each, tuple) else [each])]
    measured = {f"{spec.model} ({server_identity(spec)})" for spec in specs}
    cells = PUBLISHED.cells.values()
    claimed = {re.search(r"\S+ \(.*\)", cell)[0] for cell in cells if not EARLIER.search(cell)}
    assert claimed <= measured


def by_id(has=MEASURED):
    return {each.claim.id: each for each in answers(PUBLISHED, has, ARCHITECTURES)}


def test_the_burst_on_two_gpus_is_published_as_it_is_cold():
    answer = by_id()["A1"]
    assert answer.outcome is Outcome.REFUTED
    assert answer.of_a_cold_server
    output = answer.results[1]
    assert output.cold.value == pytest.approx(3132.84)
    assert output.ours.value == pytest.approx((6082.03 * 6209.5) ** 0.5)


def test_what_was_measured_on_h200_is_answered():
    said = {name: each.outcome for name, each in by_id().items()}
    assert [said[name] for name in ("A4", "A8", "A26", "B4")] == [Outcome.REFUTED] * 4
    assert [said[name] for name in ("A3", "A6", "A9", "A14")] == [Outcome.UNTESTED] * 4


def test_what_follows_from_sizes_is_answered_without_any_run():
    known = by_id(has=())
    figures = {
        (name, each.name): round(each.ours.value, 2)
        for name, answer in known.items()
        for each in answer.compared
    }
    assert figures["A20", "mixtral-8x7b: weights"] == 93.41
    assert figures["A20", "mixtral-8x7b: weights, each of 2 GPUs"] == 46.7
    assert figures["A21", "llama-3.1-70b: weights"] == 141.11
    # 32 layers x 2 sums x 4096 values x 2 bytes = 512 KiB.
    assert figures["A25", "mixtral-8x7b: all-reduce of a token and step"] == 512
    assert figures["D2", "mixtral-8x22b: parameters"] == 140.62
    # Half a byte and 2.5 for 128 of 46,439,333,888 weights, two bytes for the other 263 million.
    assert figures["D2", "mixtral-8x7b: weights, INT4"] == 24.65
    assert known["C1"].outcome is Outcome.REFUTED
    assert known["C7"].outcome is Outcome.CONFIRMED
    assert known["A1"].outcome is Outcome.UNTESTED


def test_the_page_is_current(capsys):
    script = runpy.run_path(str(ROOT / "scripts" / "write_claims.py"))
    assert script["main"](["--check"]) == 0, capsys.readouterr().out


def test_a_recorded_baseline_answers_before_what_was_measured_earlier(
    tmp_path, make_recording, make_start, fingerprint
):
    def start(number, throughput):
        values = {"output_throughput": throughput}
        repeats = (Sample(seed=0, values=values),)
        plays = (900.0, throughput)
        warmup = tuple(Sample(seed=0, values={"output_throughput": each}) for each in plays)
        return replace(make_start(f"start-{number}"), repeats=repeats, warmup=warmup)

    burst = replace(
        fingerprint,
        hardware="h200",
        model="llama-3.1-8b@0123abcd",
        server="tp1, bfloat16, context 4096",
        workload="burst-n150-isl70-osl127@1",
    )
    cell = "serving.burst/llama-3.1-8b.burst-n150-isl70-osl127"
    recorded = Baseline.begun(
        make_recording(cell=cell, fingerprint=burst, gates={}, start=start(1, 10_700.0))
    )
    starts = tuple(start(number, 10_700.0 + number) for number in (1, 2, 3))
    fewer = replace(recorded, cell="compare.any/burst")
    write_baselines(tmp_path / "baselines", [fewer, replace(recorded, starts=starts)])
    script = runpy.run_path(str(ROOT / "scripts" / "write_claims.py"))
    script["all_stored"].__globals__["ROOT"] = tmp_path
    tables = script["tables"]()
    assert (
        "| A13 | Output throughput, tok/s | 10784 | 10702 (10700–10704) | 900 |"
        in (tables["measured"])
    )
    assert f"| 3 | baselines/h200/vllm/{cell}.json |" in tables["cells"]


def test_an_outdated_page_is_told_and_left_alone(tmp_path, capsys):
    page = tmp_path / "docs" / "claims.md"
    page.parent.mkdir()
    page.write_text("<!-- table: summary -->\nold\n<!-- end -->\n")
    main = runpy.run_path(str(ROOT / "scripts" / "write_claims.py"))["main"]
    main.__globals__.update(PAGE=page, ROOT=tmp_path)
    main.__globals__["all_stored"] = lambda: MEASURED
    assert main(["--check"]) == 1
    assert (
        "docs/claims.md is outdated: run python scripts/write_claims.py" in capsys.readouterr().out
    )
    assert "old" in page.read_text()
    assert main([]) == 0
    assert "| refuted |" in page.read_text()
    assert main(["--check"]) == 0
