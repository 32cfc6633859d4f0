"""`moeperf baseline` as it is typed."""

import json
from pathlib import Path

import pytest

from pytest_moeperf import store
from pytest_moeperf.cli import main

CELL = "serving/mini-moe.closed-c1-isl32-osl48-n8"
FILE = Path("baselines/cpu/vllm") / f"{CELL}.json"


@pytest.fixture(autouse=True)
def stored(tmp_path, monkeypatch, make_recording, make_start):
    """A working directory with two cells; the first has two starts."""
    monkeypatch.chdir(tmp_path)
    writer = store.BaselineWriter(Path("baselines"))
    writer.add(make_recording())
    writer.add(make_recording(start=make_start("start-2", tpot=(30.0, 30.5, None))))
    writer.add(make_recording(cell="moe/mini-moe.burst", reason=""))
    writer.flush()


@pytest.fixture
def moeperf(capsys):
    """Runs the command; gives exit code, output and error output."""

    def run(*arguments):
        code = main(["baseline", *arguments])
        return code, *capsys.readouterr()

    return run


def test_show_lists_what_every_cell_holds(moeperf):
    code, out, err = moeperf("show")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "moe/mini-moe.burst",
        "  vllm 0.32.0 on cpu: 2 cores of AMD EPYC (family 25, model 17)",
        "  1 start, 2026-01-02T03:04:05Z: baselines/cpu/vllm/moe/mini-moe.burst.json",
        "    tpot_ms.p50         31.5 ms  (31.4 to 31.5)  gate: +25.0%",
        "",
        CELL,
        "  vllm 0.32.0 on cpu: 2 cores of AMD EPYC (family 25, model 17)",
        f"  2 starts, 2026-01-02T03:04:05Z: {FILE}",
        "  reason: first figures of this machine",
        # the median of the starts' medians 31.458 and 30.25
        "    tpot_ms.p50         30.9 ms  (30.0 to 31.5)  gate: +25.0%",
    ]


@pytest.mark.parametrize("target", [CELL, "serving/", str(FILE), "baselines/cpu/vllm/serving"])
def test_show_takes_a_cell_the_beginning_of_one_a_file_or_a_folder(moeperf, target):
    code, out, _ = moeperf("show", target)
    assert code == 0
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [CELL]


def test_show_all_adds_the_metrics_without_a_gate(moeperf):
    _, out, _ = moeperf("show", "--all", "moe")
    assert out.endswith("    tpot_ms.p99               –  (– to –)\n")


def test_show_json_has_everything(moeperf):
    code, out, _ = moeperf("show", "--json", CELL)
    (shown,) = json.loads(out)
    assert code == 0
    assert shown["cell"] == CELL
    assert shown["recorded_at"] == ["2026-01-02T03:04:05Z"] * 2
    assert shown["metrics"] == [
        {
            "direction": "lower",
            "maximum": 31.5,
            "median": pytest.approx(30.853975),
            "metric": "tpot_ms.p50",
            "minimum": 30.0,
            "tolerance": 0.25,
            "unit": "ms",
        },
        {
            "direction": None,
            "maximum": None,
            "median": None,
            "metric": "tpot_ms.p99",
            "minimum": None,
            "tolerance": None,
            "unit": "",
        },
    ]


def test_show_of_something_unknown_is_one_line(moeperf):
    code, out, err = moeperf("show", "servng")
    assert (code, out) == (2, "")
    assert err == (
        "moeperf: error: 'servng' is neither a path nor a cell in baselines; "
        "`moeperf baseline show` lists the cells\n"
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


def test_check_counts_what_is_fine(moeperf):
    assert moeperf("check") == (0, "2 checked, 0 bad\n", "")
    code, out, _ = moeperf("check", "baselines", "--json")
    assert (code, json.loads(out)) == (0, {"checked": 2, "problems": []})


def test_check_has_a_line_for_every_bad_file(moeperf):
    text = FILE.read_text()
    bad = {
        FILE: text.replace("31.5]", "NaN]"),
        FILE.with_name("mini-moe.other.json"): text,
        FILE.with_name("no.json"): "<<<<<<< HEAD",
        FILE.with_name("version.json"): text.replace('"schema": 1', '"schema": 7'),
    }
    for path, content in bad.items():
        path.write_text(content)
    code, out, err = moeperf("check")
    *lines, last = out.splitlines()
    assert (code, err) == (1, "")
    assert last == "5 checked, 4 bad"
    assert [line.partition(": ")[0] for line in lines] == [str(path) for path in bad]
    for line, problem in zip(
        lines,
        ("is not a finite number", f"holds the cell {CELL}", "not JSON", "update pytest-moeperf"),
        strict=True,
    ):
        assert problem in line


def test_check_json_lists_the_problems(moeperf):
    FILE.write_text("[]")
    code, out, _ = moeperf("check", "--json")
    report = json.loads(out)
    assert code == 1
    assert report["checked"] == 2
    assert len(report["problems"]) == 1


def test_check_of_a_folder_that_is_not_there_is_one_line(moeperf):
    assert moeperf("check", "nowhere") == (
        2,
        "",
        "moeperf: error: no folder nowhere: give the one that holds baselines\n",
    )
