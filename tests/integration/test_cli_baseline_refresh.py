"""`moeperf baseline refresh` once it has measured; `tests/plugin` has it measure."""

import dataclasses
import subprocess
from pathlib import Path

import pytest

from pytest_moeperf import store
from pytest_moeperf.baseline import Baseline, EngineProvenance, KnownRegression
from pytest_moeperf.cli import main

CELL = "serving/mini-moe.closed-c1-isl32-osl48-n8"
PLACE = f"cpu/vllm/{CELL}"
ROOT = Path("baselines")
CANDIDATE = Path(".moeperf/candidate/baselines")


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
def pytest_ends(monkeypatch):
    """Lets pytest end with an exit code at once, after it did something."""
    commands = []

    def end(code, work=lambda: None):
        def run(command, **_):
            commands.append(command)
            work()
            return subprocess.CompletedProcess(command, code)

        monkeypatch.setattr("pytest_moeperf.refresh.subprocess.run", run)
        return commands

    return end


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
    assert command[1:] == [
        *("-m", "pytest", "suites/serving", *words, "--repeats", "5"),
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
    assert err.endswith("; begin anew with --restart\n")
    assert err.count("\n") == 1


def test_a_candidate_of_an_engine_that_is_not_known_is_data(refresh, measured):
    engine = EngineProvenance(distribution="evil; rm -rf /", version="1")
    starts = measured(20.0, 20.0)
    odd = tuple(dataclasses.replace(start, engine_version="1") for start in starts.starts)
    store.write_baselines(CANDIDATE, [dataclasses.replace(starts, engine=engine, starts=odd)])
    assert refresh("--yes")[0] == 0
    assert store.read(ROOT / f"{PLACE}.json").engine.spec is None
