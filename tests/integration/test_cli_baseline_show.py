"""`moeperf baseline show` as it is typed."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from pytest_moeperf import store
from pytest_moeperf.baseline import KnownRegression
from pytest_moeperf.cli import baseline_show, main

CELL = "serving/mini-moe.closed-c1-isl32-osl48-n8"
FILE = Path("baselines/cpu/vllm") / f"{CELL}.json"


@pytest.fixture(autouse=True)
def stored(tmp_path, monkeypatch, make_recording, make_start):
    """A working directory with two cells; the first has two starts."""
    monkeypatch.chdir(tmp_path)
    writer = store.BaselineWriter(Path("baselines"))
    writer.add(make_recording())
    writer.add(make_recording(start=make_start("start-2", tpot=(30.0, 30.5, None))))
    start = make_start()
    for sample in start.repeats:
        sample.values["ttft_ms.p50"] = 100.0
    writer.add(make_recording(cell="moe/mini-moe.burst", reason="", start=start))
    writer.flush()


@pytest.fixture
def moeperf(capsys):
    """Runs the command; gives exit code, output and error output."""

    def run(*arguments):
        code = main(["baseline", *arguments])
        return code, *capsys.readouterr()

    return run


def test_show_lists_what_every_cell_holds(moeperf):
    code, out, err = moeperf("show", "baselines")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "moe/mini-moe.burst",
        "  vllm 0.32.0 on cpu: 2 cores of AMD EPYC (family 25, model 17); 4567ef01",
        (
            "  1 start of 1 session, 2026-01-02T03:04:05Z, expires 2026-04-02: "
            "baselines/cpu/vllm/moe/mini-moe.burst.json"
        ),
        "    tpot_ms.p50         31.5 ms  (31.4 to 31.5)  gate: +25.0%",
        "",
        CELL,
        "  vllm 0.32.0 on cpu: 2 cores of AMD EPYC (family 25, model 17); 4567ef01",
        f"  2 starts of 1 session, 2026-01-02T03:04:05Z, expires 2026-04-02: {FILE}",
        "  reason: first figures of this machine",
        # the geometric mean of the starts' medians 31.458 and 30.25
        "    tpot_ms.p50         30.8 ms  (30.0 to 31.5)  gate: +25.0%",
    ]


def test_show_of_all_is_a_line_for_each_server(moeperf, monkeypatch, make_recording, make_start):
    day = "2026-04-03"
    monkeypatch.setattr(baseline_show, "today", lambda: day)
    writer = store.BaselineWriter(Path("baselines"))
    recording = make_recording(cell="serving/mixtral-8x7b.burst")
    other = dataclasses.replace(
        recording.fingerprint, model="mixtral-8x7b@dummy-f6819f044d30", server="tp2, bfloat16"
    )
    start = dataclasses.replace(make_start(), recorded_at="2026-02-02T03:04:05Z")
    writer.add(dataclasses.replace(recording, fingerprint=other, start=start))
    writer.flush()
    # Two cells of mini-moe with one start and two, recorded 91 days ago; one of Mixtral, 60.
    assert moeperf("show") == (
        0,
        (
            "vllm 0.32.0 on cpu: 2 cores of AMD EPYC (family 25, model 17)\n"
            "  mini-moe 0123abcd; 4567ef01                 2 baselines  1 to 2 starts  "
            "expired 2026-04-02\n"
            "  mixtral-8x7b, dummy weights; tp2, bfloat16  1 baseline   1 start        "
            "expires 2026-05-03\n"
            "\n"
            "3 baselines; what they hold: moeperf baseline show baselines/cpu/vllm/moe\n"
        ),
        "",
    )


def test_show_of_all_with_every_metric_is_not_shortened(moeperf):
    _, out, _ = moeperf("show", "--all")
    assert [line for line in out.splitlines() if line[:1].strip()] == ["moe/mini-moe.burst", CELL]


@pytest.mark.parametrize("target", [CELL, "serving/", str(FILE), "baselines/cpu/vllm/serving"])
def test_show_takes_a_cell_the_beginning_of_one_a_file_or_a_folder(moeperf, target):
    code, out, _ = moeperf("show", target)
    assert code == 0
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [CELL]


def test_show_all_adds_the_metrics_without_a_gate(moeperf):
    _, out, _ = moeperf("show", "--all", "moe")
    assert out.endswith("    ttft_ms.p50             100  (100 to 100)\n")


def test_show_json_has_everything(moeperf):
    code, out, _ = moeperf("show", "--json", CELL)
    (shown,) = json.loads(out)
    assert code == 0
    assert shown["cell"] == CELL
    assert shown["recorded_at"] == ["2026-01-02T03:04:05Z"] * 2
    assert shown["metrics"] == [
        {
            "anchor": None,
            "direction": "lower",
            "expected": pytest.approx(30.847522),
            "maximum": 31.5,
            "metric": "tpot_ms.p50",
            "minimum": 30.0,
            "tolerance": 0.25,
            "unit": "ms",
        },
    ]


def test_show_tells_of_anchor_and_known_regressions(moeperf):
    baseline = store.read(FILE).anchored("release 1")
    known = KnownRegression(
        metric="tpot_ms.p50",
        reason="the new sampler",
        issue="https://example.org/1",
        expires="2026-03-01",
        extent=0.08,
    )
    store.write_baselines(Path("baselines"), [dataclasses.replace(baseline, known=(known,))])
    _, out, _ = moeperf("show", CELL)
    assert "  anchor: vllm 0.32.0: release 1\n" in out
    assert (
        "  known: tpot_ms.p50 may be 8 % worse until 2026-03-01: the new sampler "
        "(https://example.org/1)\n"
    ) in out
    assert out.endswith("gate: +25.0%  anchor: 30.8\n")


@pytest.mark.parametrize("typed", [f"cpu/vllm/{CELL}", "cpu/vllm/serv"])
def test_a_cell_is_found_by_its_place_as_by_its_name(moeperf, typed):
    found = moeperf("show", typed)
    assert found[0] == 0
    assert found == moeperf("show", CELL)


def test_show_of_something_unknown_is_one_line(moeperf):
    code, out, err = moeperf("show", "servng")
    assert (code, out) == (2, "")
    assert err == (
        "moeperf: error: 'servng' is neither a path nor a cell in baselines; "
        "`moeperf baseline show baselines` lists the cells\n"
    )


def test_without_a_folder_of_baselines_what_was_typed_is_quoted(moeperf):
    shutil.rmtree("baselines")
    assert moeperf("show", "/nope") == (
        2,
        "",
        (
            "moeperf: error: '/nope' is neither a path nor a cell: there is no folder baselines; "
            "give the one that holds baselines as --baseline-dir\n"
        ),
    )


def test_show_of_an_empty_folder_says_so(moeperf, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert moeperf("show", "--baseline-dir", str(empty)) == (0, f"no baselines in {empty}\n", "")


def test_show_of_a_bad_file_is_one_line(moeperf):
    FILE.write_text("{")
    code, out, err = moeperf("show", str(FILE))
    assert (code, out) == (1, "")
    assert err.startswith(f"moeperf: error: {FILE}: line 1 column 2: not JSON")
    assert err.count("\n") == 1
