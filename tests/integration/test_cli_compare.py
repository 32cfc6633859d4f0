"""`moeperf compare`: two runs in files."""

import dataclasses
import json
from pathlib import Path

import pytest

from pytest_moeperf import cli
from pytest_moeperf.records import CellResult, Outcome, Verdict
from pytest_moeperf.report.json import to_json
from pytest_moeperf.report.model import SessionReport

METRIC = "tpot_ms.p50"
STEADY = (20.0, 20.1, 19.9, 20.05, 19.95)


@pytest.fixture
def write_run(tmp_path, fingerprint, make_start):
    """Writes the run.json of one cell, whose starts are five around 20 ms, times `factor`."""

    def write(name, *, factor=1.0, cells=("serving/c",)):
        here = dataclasses.replace(fingerprint, hardware="h200", gpus=("H200",))
        starts = [
            make_start(f"{name}-{number}", tpot=(value * factor,) * 3)
            for number, value in enumerate(STEADY)
        ]
        results = tuple(
            CellResult(
                cell=cell,
                test="suites/serving/test_c.py::test_c[vllm]",
                server="mixtral",
                engine="vllm==0.32.0",
                workload="8 at once",
                fingerprint=here,
                start=starts[0],
                further=tuple(starts[1:]),
                verdicts=(Verdict(metric=METRIC, outcome=Outcome.PASS, direction="lower"),),
            )
            for cell in cells
        )
        report = SessionReport(
            tool_version="0.1.0",
            started_at="2026-01-02T03:00:00Z",
            duration_s=1.0,
            hardware="h200",
            engines=(),
            cells=results,
        )
        path = tmp_path / name
        path.write_text(to_json(report))
        return str(path)

    return write


def test_a_slower_run_exits_with_1_and_says_by_how_much(write_run, capsys):
    code = cli.main(["compare", write_run("a.json"), write_run("b.json", factor=1.1)])
    out = capsys.readouterr().out
    assert code == 1
    assert "a.json: vllm==0.32.0, 2026-01-02T03:00:00Z" in out
    assert "REGRESSED" in out
    assert "change +10.0 % (" in out
    assert "REGRESSED serving/c: tpot_ms.p50 is " in out
    assert "\x1b" not in out


def test_the_same_run_twice_is_fine(write_run, capsys):
    path = write_run("a.json")
    assert cli.main(["compare", path, path]) == 0
    assert "1 PASS" in capsys.readouterr().out


def test_json_has_the_verdicts_and_what_only_one_run_has(write_run, capsys):
    first = write_run("a.json", cells=("serving/c", "serving/gone"))
    second = write_run("b.json", factor=1.1)
    assert cli.main(["compare", first, second, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["only_in_first"] == ["serving/gone"]
    [cell] = document["cells"]
    [verdict] = cell["verdicts"]
    assert (cell["cell"], verdict["metric"], verdict["outcome"]) == (
        "serving/c",
        METRIC,
        "REGRESSED",
    )
    assert verdict["starts"] == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\xff", "is not text; give the run.json of a session"),
        (b"{}", "give the run.json of a session"),
    ],
)
def test_what_is_no_run_is_misuse_of_one_line(write_run, tmp_path, capsys, content, message):
    odd = tmp_path / "odd.json"
    if content is not None:
        odd.write_bytes(content)
    assert cli.main(["compare", str(odd), write_run("b.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"moeperf: error: {odd}: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_file_cannot_write_to_the_terminal_what_it_likes(write_run, capsys):
    path = Path(write_run("a.json"))
    document = json.loads(path.read_text())
    document["cells"][0]["server"] = "\x1b[2Jmixtral"
    path.write_text(json.dumps(document))
    cli.main(["compare", str(path), str(path)])
    assert "\x1b" not in capsys.readouterr().out
