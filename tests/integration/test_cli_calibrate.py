"""`moeperf calibrate` as it is typed."""

import dataclasses
import json
from pathlib import Path

import pytest

from pytest_moeperf import store
from pytest_moeperf.cli import main

CELL = "serving/mini-moe.closed-c1-isl32-osl48-n8"
TPOT_MS = ((30.0, 30.5, 30.2), (31.0, 30.6, 30.4), (30.1, 30.9, 30.7), (30.3, 30.2, 30.8))


@pytest.fixture(autouse=True)
def stored(tmp_path, monkeypatch, make_recording, make_start):
    """A working directory with a cell of four starts, and one of a single start."""
    monkeypatch.chdir(tmp_path)
    writer = store.BaselineWriter(Path("baselines"))
    for number, tpot in enumerate(TPOT_MS):
        writer.add(make_recording(start=make_start(f"start-{number}", tpot=tpot)))
    writer.add(make_recording(cell="moe/mini-moe.burst"))
    writer.flush()


@pytest.fixture
def calibrate(capsys):
    """Runs the command; gives exit code, output and error output."""

    def run(*arguments):
        code = main(["calibrate", "--nights", "20", "--replays", "10", *arguments])
        return code, *capsys.readouterr()

    return run


def test_it_says_how_often_it_would_be_wrong_and_what_it_sees(calibrate):
    code, out, err = calibrate()
    assert (code, err) == (0, "")
    first, second, *_, last = lines = out.splitlines()
    assert first == (
        "vllm on cpu, with an A/B against the old engine: 1 gate, 20 nights without a change"
    )
    assert second == "false-alarm nights a month: 0 (95 %: at most 4.2)"
    assert any(line.startswith(f"{CELL} tpot_ms.p50") and line.endswith(" %") for line in lines)
    assert lines[-2] == "not replayed, as 3 stored starts are needed (1):"
    assert last == "  moe/mini-moe.burst tpot_ms.p50: 1"


def test_json_has_every_figure(calibrate):
    code, out, _ = calibrate("--json", "--unpaired", "--gpu", "cpu")
    (group,) = json.loads(out)["groups"]
    (gate,) = group["gates"]
    assert code == 0
    assert not group["paired"]
    assert (gate["cell"], gate["metric"], gate["starts"]) == (CELL, "tpot_ms.p50", 4)
    assert 0.4 < gate["smallest_change_caught"] < 2.0
    assert group["red_nights_a_month"] == 0


def test_the_same_seed_gives_the_same_figures(calibrate):
    assert calibrate("--seed", "3") == calibrate("--seed", "3")


@pytest.fixture
def alone(tmp_path, monkeypatch, make_recording, make_start):
    """Stores one cell of so many starts in a folder of its own; gives the folder's name."""

    def store_starts(number, **changes):
        writer = store.BaselineWriter(Path("alone"))
        for name in "abc"[:number]:
            writer.add(make_recording(start=make_start(name), **changes))
        writer.flush()
        return "alone"

    return store_starts


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_where_nothing_can_be_replayed_there_is_no_rate(calibrate, alone, form):
    assert calibrate("--baseline-dir", alone(2), *form) == (
        2,
        "",
        (
            "moeperf: error: nothing can be replayed: of 1 gate in alone none has the 3 stored "
            "starts that are needed (most: 2); add starts with `pytest --baseline record` or "
            "`moeperf baseline refresh`\n"
        ),
    )


def test_where_no_baseline_has_a_gate_that_is_said(calibrate, alone):
    code, _, err = calibrate("--baseline-dir", alone(3, gates={}))
    assert (code, err) == (
        2,
        "moeperf: error: nothing can be replayed: no baseline in alone has a gate\n",
    )


def test_one_kind_of_engine_without_a_gate_to_replay_has_no_rate(calibrate, make_recording):
    writer = store.BaselineWriter(Path("baselines"))
    recorded = make_recording()
    gpu = dataclasses.replace(recorded.fingerprint, hardware="h200")
    writer.add(dataclasses.replace(recorded, fingerprint=gpu))
    writer.flush()
    code, out, _ = calibrate()
    assert code == 0
    cpu, gpu = out.split("\n\n")
    assert "false-alarm nights a month" in cpu
    assert gpu.splitlines()[1:3] == [
        "nothing can be replayed",
        "not replayed, as 3 stored starts are needed (1):",
    ]
    groups = json.loads(calibrate("--json")[1])["groups"]
    assert [each["red_nights_a_month"] for each in groups] == [0, None]


def test_hardware_without_baselines_is_named(calibrate):
    code, _, err = calibrate("--gpu", "h100")
    assert code == 2
    assert err == ("moeperf: error: no baselines of 'h100' in baselines: there are some of cpu\n")


@pytest.mark.parametrize(
    ("option", "typed", "message"),
    [
        ("--nights", "0", "'0' is not a whole number from 1 on"),
        ("--replays", "many", "'many' is not a whole number from 1 on"),
        ("--seed", "1.5", "'1.5' is not a whole number"),
    ],
)
def test_a_bad_number_is_quoted(calibrate, capsys, option, typed, message):
    with pytest.raises(SystemExit, match="2"):
        calibrate(option, typed)
    assert capsys.readouterr().err == (
        f"moeperf calibrate: error: argument {option}: {message} "
        "(`moeperf calibrate --help` lists what is valid)\n"
    )
