"""`moeperf baseline prune` and `anchor` as they are typed."""

import dataclasses
import errno
import io
import json
import os
from pathlib import Path

import pytest

from pytest_moeperf import store
from pytest_moeperf.baseline import Baseline, KnownRegression
from pytest_moeperf.cli import main
from pytest_moeperf.report.json import to_json
from pytest_moeperf.waiver import Waiver

CELL = "serving/mini-moe.closed-c1-isl32-osl48-n8"
ROOT = Path("baselines")
FILE = ROOT / "cpu" / "vllm" / f"{CELL}.json"
OTHER = ROOT / "cpu" / "vllm" / "moe" / "mini-moe.burst.json"


@pytest.fixture(autouse=True)
def stored(tmp_path, monkeypatch, make_recording, make_start):
    """Two cells, and a day before anything expires."""
    monkeypatch.chdir(tmp_path)
    on(monkeypatch, "2026-02-01")
    first = Baseline.begun(make_recording())
    store.write_baselines(ROOT, [first, dataclasses.replace(first, cell="moe/mini-moe.burst")])


def on(monkeypatch, day):
    monkeypatch.setattr("pytest_moeperf.cli.baseline_options.today", lambda: day)


@pytest.fixture
def moeperf(capsys):
    def run(*arguments):
        code = main(["baseline", *arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def answer(monkeypatch):
    """Types an answer at a terminal."""

    def give(text):
        terminal = io.StringIO(text)
        terminal.isatty = lambda: True
        monkeypatch.setattr("sys.stdin", terminal)

    return give


# prune


def test_nothing_to_prune_is_said(moeperf):
    assert moeperf("prune", "--yes") == (0, "nothing to prune\n", "")


def test_expired_baselines_known_regressions_and_waivers_go(moeperf, monkeypatch):
    known = KnownRegression(
        metric="tpot_ms.p50",
        reason="r",
        issue="https://example.org/1",
        expires="2026-03-01",
        extent=0.08,
    )
    waiver = Waiver(
        baseline=f"cpu/vllm/{CELL}",
        metric=None,
        rule="removed",
        reason="r",
        owner="@somebody",
        issue="https://example.org/1",
        expires="2026-03-31",
    )
    fresh = dataclasses.replace(store.read(FILE), known=(known,), expires="2026-05-01")
    store.write_baselines(ROOT, [fresh])
    store.write_waivers(ROOT, [waiver])
    on(monkeypatch, "2026-04-03")
    code, out, _ = moeperf("prune", "--yes")
    assert code == 0
    assert out.splitlines() == [
        f"remove {OTHER}: expired on 2026-04-02",
        f"forget the known regression of tpot_ms.p50 in {FILE}: expired on 2026-03-01",
        f"forget the waiver of @somebody for cpu/vllm/{CELL}: expired on 2026-03-31",
        "pruned 3",
    ]
    assert store.find(ROOT) == (FILE,)
    assert store.read(FILE).known == ()
    assert [path.name for path in ROOT.iterdir()] == ["cpu"]


@pytest.fixture
def run_json(session_report, fingerprint, tmp_path):
    """A run that measured the first cell, with a workload that may be newer."""

    def write(workload):
        [cell, *_] = session_report.cells
        measured = dataclasses.replace(
            cell, fingerprint=dataclasses.replace(fingerprint, workload=workload)
        )
        path = tmp_path / "run.json"
        path.write_text(to_json(dataclasses.replace(session_report, cells=(measured,))))
        return path

    return write


def test_what_no_test_measures_goes_with_a_run_of_the_whole_suite(
    moeperf, run_json, fingerprint, make_recording
):
    gpu = dataclasses.replace(fingerprint, hardware="h200")
    elsewhere = Baseline.begun(make_recording(fingerprint=gpu))
    store.write_baselines(ROOT, [elsewhere])
    code, out, _ = moeperf("prune", "--run", str(run_json(fingerprint.workload)), "--yes")
    assert (code, out) == (0, f"remove {OTHER}: no test measures it any more\npruned 1\n")
    assert len(store.find(ROOT)) == 2


def test_figures_of_an_older_workload_go(moeperf, run_json, fingerprint):
    code, out, _ = moeperf("prune", "--run", str(run_json("closed@2")), "--yes")
    assert code == 0
    assert out.splitlines()[1] == (
        f"remove {FILE}: of the workload {fingerprint.workload}; it is closed@2 now"
    )


def test_a_run_that_is_not_there_is_one_line(moeperf):
    code, _, err = moeperf("prune", "--run", "nowhere.json", "--yes")
    assert code == 2
    assert err.startswith("moeperf: error: --run nowhere.json: cannot be read: ")


def test_a_run_that_was_not_finished_removes_nothing(moeperf, session_report, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(to_json(dataclasses.replace(session_report, finished=False)))
    code, _, err = moeperf("prune", "--run", str(path), "--yes")
    told = "this run was not finished, so it does not tell which cells are measured no more; "
    assert (code, err) == (1, f"moeperf: error: {path}: {told}give that of a whole run\n")


def test_a_run_that_measured_nothing_removes_nothing(moeperf, session_report, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(to_json(dataclasses.replace(session_report, cells=())))
    code, _, err = moeperf("prune", "--run", str(path), "--yes")
    assert (code, err) == (1, f"moeperf: error: {path}: this run measured nothing\n")
    assert len(store.find(ROOT)) == 2


@pytest.mark.parametrize(("content", "message"), [("{", "not JSON"), ("{}", "is a required")])
def test_a_run_that_is_none_is_one_line(moeperf, tmp_path, content, message):
    path = tmp_path / "run.json"
    path.write_text(content)
    code, out, err = moeperf("prune", "--run", str(path), "--yes")
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_without_a_terminal_nothing_is_pruned_unless_told_so(moeperf, monkeypatch):
    on(monkeypatch, "2026-04-03")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    code, out, _ = moeperf("prune")
    assert code == 1
    assert out.splitlines()[-1] == (
        "Prune these 2? Nothing was written: there is no terminal to ask on; add --yes"
    )
    assert len(store.find(ROOT)) == 2


@pytest.mark.parametrize(("text", "left"), [("n\n", 2), ("\n", 2), ("", 2), ("y\n", 0)])
def test_at_a_terminal_it_asks(moeperf, monkeypatch, answer, text, left):
    on(monkeypatch, "2026-04-03")
    answer(text)
    code, _, _ = moeperf("prune")
    assert code == (0 if left == 0 else 1)
    assert len(store.find(ROOT)) == left


# anchor


def test_anchor_keeps_the_present_figures(moeperf):
    code, out, _ = moeperf("anchor", CELL, "--reason", "release 0.32", "--yes")
    assert code == 0
    assert "  anchor: none → vllm 0.32.0\n" in out
    anchored = store.read(FILE)
    assert anchored.anchor.starts == anchored.starts
    assert anchored.anchor.reason == "release 0.32"
    assert json.loads(FILE.read_text())["anchor"]["reason"] == "release 0.32"
    assert store.read(OTHER).anchor is None


def test_anchor_needs_a_reason(moeperf, capsys):
    with pytest.raises(SystemExit) as caught:
        moeperf("anchor", "--yes")
    assert caught.value.code == 2
    assert "--reason" in capsys.readouterr().err


def test_a_reason_of_blanks_is_none(moeperf):
    before = FILE.read_text()
    assert moeperf("anchor", CELL, "--reason", " ", "--yes") == (
        2,
        "",
        "moeperf: error: --reason is empty: say what the figures are, for who reads the diff\n",
    )
    assert FILE.read_text() == before


def test_an_anchor_that_cannot_be_written_is_no_failed_check(moeperf, monkeypatch):
    # Root may write everywhere, so the kernel's answer is given here.
    def denied(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "replace", denied)
    code, _, err = moeperf("anchor", CELL, "--reason", "release", "--yes")
    assert (code, err) == (
        2,
        f"moeperf: error: cannot write {FILE}: the file system is read-only\n",
    )


def test_anchor_of_what_is_anchored_already_writes_nothing(moeperf):
    moeperf("anchor", "--reason", "release", "--yes")
    assert moeperf("anchor", "--reason", "release") == (0, "2 unchanged\n", "")


def test_a_file_elsewhere_is_not_anchored(moeperf, tmp_path):
    elsewhere = tmp_path / "b.json"
    elsewhere.write_text("{}")
    code, _, err = moeperf("anchor", str(elsewhere), "--reason", "r", "--yes")
    assert (code, err) == (2, f"moeperf: error: {elsewhere} is not below baselines\n")
