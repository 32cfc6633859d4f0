"""`moeperf baseline refresh`: from measured starts to stored figures, in a repository."""

import dataclasses
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_moeperf import store
from pytest_moeperf.cli import main
from pytest_moeperf.revision import read_folder
from pytest_moeperf.testing import SCRIPT_VARIABLE

RECORDINGS = Path(__file__).parents[1] / "data" / "nvml"
PLACE = "cpu/vllm/serving.load/tiny-moe.closed-c1-isl4-osl4-n1"
CLIENT_TOO_SLOW = ("client_cpu", "client_reads", "client_turnaround")
"""On a machine that runs the rest of the tests."""
SUITE = """\
from pytest_moeperf import ClosedLoop

def test_single_stream(measure, moe):
    cell = measure(moe, ClosedLoop(concurrency=1, isl=4, osl=4, requests=1))
    cell.gate("itl_token_ms.p50", "output_throughput")
"""


def git(*words):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "gc.auto=0")
    return subprocess.run(
        ["git", *identity, *words], check=True, capture_output=True, text=True, timeout=30
    ).stdout


@pytest.fixture
def repository(suite, monkeypatch):
    """The suite in a repository, with an engine slow enough that a busy machine does not matter."""
    monkeypatch.chdir(suite.root)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    suite.write(SUITE)
    suite.script(ttft_ms=20, itl_ms=20)
    (suite.root / ".gitignore").write_text(".moeperf/\n__pycache__/\n.pytest_cache/\n")
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "a suite")
    return suite


@pytest.fixture
def refresh(repository, capfd):
    """Runs the command; gives exit code, output and error output, pytest's included."""

    def run(*arguments, to_pytest=()):
        words = repository._process_arguments(to_pytest)
        for code in CLIENT_TOO_SLOW:
            words += ["--ignore-finding", code]
        typed = ["baseline", "refresh", "--reason", "the first figures", *arguments]
        code = main([*typed, f"--pytest-args={' '.join(words)}", "serving"])
        return code, *capfd.readouterr()

    return run


def stored(root):
    return store.read(root / "baselines" / f"{PLACE}.json")


def test_a_reference_from_the_first_figures_to_the_last(refresh, repository, capfd):
    code, out, err = refresh("--starts", "2", "--yes")
    assert (code, err) == (0, ""), out
    for line in (
        "refresh: start 1 of 2",
        "refresh: start 2 of 2",
        PLACE,
        "  new: vllm 0.32.0, 2 starts of 1 session, expires 20*",
        "  reason: the first figures",
        "1 new",
        "for the pull request: .moeperf/refresh.md",
    ):
        assert any(
            line == each or (line.endswith("*") and each.startswith(line[:-1]))
            for each in out.splitlines()
        ), line
    first = stored(repository.root)
    assert first.engine.python_version
    assert not (repository.root / ".moeperf" / "candidate").exists()
    git("add", ".")
    git("commit", "-q", "-m", "figures")
    assert main(["baseline", "check", "--against", "git:HEAD"]) == 0

    # the engine gets slower: the suite fails, and a refresh shows what it would accept
    repository.script(ttft_ms=20, itl_ms=60)
    slower = repository.run_process("--max-starts", "2")
    assert slower.code == pytest.ExitCode.TESTS_FAILED
    capfd.readouterr()
    code, out, _ = refresh("--starts", "2", "--yes", "--reason", "the new sampler")
    assert code == 0
    assert "! lowered (worse): itl_token_ms.p50: " in out
    assert "let baselines/waivers.json in the same change be:" in out
    changed = [
        line
        for line in git("diff", "--unified=0", "baselines").splitlines()
        if line[:1] in {"+", "-"} and line[:3] not in {"+++", "---"}
    ]
    begun = [line[1:].lstrip()[:16] for line in changed if line.startswith("+")]
    assert begun.count('{"recorded_at": ') == 2  # two starts, a line each
    assert '"reason": "the n' in begun
    assert len(changed) < 20
    capfd.readouterr()
    assert main(["baseline", "check", "--against", "git:HEAD"]) == 1
    assert "lowered (worse)" in capfd.readouterr().out
    assert repository.run_process().code == 0

    # the test goes, and its figures with a run of the whole suite
    repository.write(SUITE.replace("requests=1", "requests=2"))
    repository.run_process("--baseline", "record")
    capfd.readouterr()
    assert main(["baseline", "prune", "--run", ".moeperf/run.json", "--yes"]) == 0
    assert capfd.readouterr().out == (
        f"remove baselines/{PLACE}.json: no test measures it any more\npruned 1\n"
    )
    assert [path.name for path in store.find(repository.root / "baselines")] == [
        "tiny-moe.closed-c1-isl4-osl4-n2.json"
    ]


def test_without_a_terminal_nothing_is_stored_and_nothing_is_measured_twice(
    refresh, repository, monkeypatch
):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, out, _ = refresh("--starts", "1")
    assert code == 1
    assert out.splitlines()[-2:] == [
        "Store 1 baseline? Nothing was written: there is no terminal to ask on; add --yes",
        "what was measured stays in .moeperf/candidate; the same command asks again",
    ]
    assert stored(repository.root) is None
    code, out, _ = refresh("--starts", "1", "--yes")
    assert code == 0
    assert "refresh: start" not in out
    assert len(stored(repository.root).starts) == 1


def test_starts_are_spread_over_sessions(refresh, repository):
    code, out, _ = refresh("--starts", "2", "--sessions", "2", "--yes")
    assert code == 0
    assert out.splitlines()[-1] == (
        "refresh: 1 of 2 starts are measured and kept in .moeperf/candidate; type the same "
        "command again, best on another day"
    )
    assert stored(repository.root) is None
    code, out, _ = refresh("--starts", "2", "--sessions", "2", "--yes")
    assert code == 0
    assert "2 starts of 2 sessions" in out
    assert len({start.session_id for start in stored(repository.root).starts}) == 2


LONG = """
from pathlib import Path

def test_that_takes_long(measure, moe):
    Path("begun").touch()
    measure(moe, ClosedLoop(concurrency=1, isl=4, osl=100, requests=100)).gate("output_throughput")
"""


def test_after_a_ctrl_c_pytest_stops_its_servers_and_keeps_what_it_has(repository):
    repository.write(SUITE + LONG)
    words = [*map(str, repository._process_arguments(())), "--ignore-finding", "client_cpu"]
    process = subprocess.Popen(
        [
            *(
                sys.executable,
                "-c",
                "import sys; from pytest_moeperf.cli import main; sys.exit(main())",
            ),
            *("baseline", "refresh", "--reason", "first"),
            *(f"--pytest-args={' '.join(words)}", "serving"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not Path("begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "KeyboardInterrupt" in out
    *_, told, last = out.splitlines()
    assert told.startswith("refresh: what was measured stays in .moeperf/candidate; the same ")
    assert last == "moeperf: interrupted"
    candidate = Path(".moeperf", "candidate")
    report = json.loads((candidate / "out" / "run.json").read_text())
    assert (report["finished"], report["outcomes"]) == (False, {"RECORDED": 2})
    assert len(store.read(candidate / "baselines" / f"{PLACE}.json").starts) == 1


def test_starts_that_vary_too_much_are_refused_and_kept_for_more(refresh, repository):
    refresh("--starts", "2", "--sessions", "2", "--yes")
    repository.script(ttft_ms=20, itl_ms=70)
    code, out, _ = refresh("--starts", "2", "--sessions", "2", "--yes")
    assert code == 1
    assert f"refused: {PLACE}: itl_token_ms.p50 varies by " in out
    assert stored(repository.root) is None
    assert (repository.root / ".moeperf" / "candidate").exists()
    repository.script(ttft_ms=20, itl_ms=20)
    code, out, _ = refresh("--starts", "1", "--restart", "--yes")
    assert code == 0
    assert len(stored(repository.root).starts) == 1


def test_what_somebody_else_stored_meanwhile_is_not_overwritten(refresh, repository, monkeypatch):
    refresh("--starts", "1", "--yes")
    mine = stored(repository.root)
    theirs = dataclasses.replace(mine, reason="theirs")

    def answer_late(_question, *, yes):
        store.write_baselines(Path("baselines"), [theirs])
        return yes

    monkeypatch.setattr("pytest_moeperf.cli.baseline_refresh.confirmed", answer_late)
    code, _, err = refresh("--starts", "1", "--yes")
    assert code == 1
    assert err == (
        f"moeperf: error: {PLACE} was changed by somebody else meanwhile: nothing was written; "
        "the same command shows the difference anew\n"
    )
    assert stored(repository.root) == theirs


def test_a_suite_that_cannot_run_ends_in_one_line(refresh, repository):
    code, _, err = refresh("-k", "nothing_is_called_so", "--yes")
    assert code == 2
    assert err.splitlines()[-1] == (
        "moeperf: error: pytest could not measure: it found no test (exit code 5, see above)"
    )


def test_a_run_that_measures_nothing_does_not_go_on_for_ever(refresh, repository):
    repository.script(start_exit_code=3)
    code, _, err = refresh("--yes")
    assert code == 1
    assert err.splitlines()[-1].startswith(
        "moeperf: error: the run above added no start (pytest ended with 1); what was measured "
    )


CACHES = """
import os
from pathlib import Path

if not Path("cache").exists():
    os.environ[{variable!r}] = {cold!r}

def pytest_unconfigure():
    Path("cache").touch()
"""
"""For a conftest.py: the first session compiles what later ones find."""
FURTHER = """
def test_ratio(measure, moe):
    cell = measure(moe, ClosedLoop(concurrency=1, isl=4, osl=4, requests=1))
    cell.over(cell, "output_throughput").within(1, 1, why="a cell is as fast as itself")

def test_startup(measure, moe):
    measure.startup(moe).gate("startup_s")
"""


def test_a_further_run_starts_only_what_is_lacking(refresh, repository, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("MOEPERF_TEST_NVML", str(RECORDINGS / "1x-h200.json"))
    cold = json.dumps({"ttft_ms": 20, "itl_ms": 20, "cold_caches": True})
    with (repository.root / "conftest.py").open("a") as conftest:
        conftest.write(CACHES.format(variable=SCRIPT_VARIABLE, cold=cold))
    repository.write(SUITE + FURTHER)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    h200 = ("-p", "pytest_moeperf.testing.gpuhost", "--gpu", "h200")
    _, out, err = refresh("--starts", "2", to_pytest=h200)
    assert err == ""
    told = [line for line in out.splitlines() if line.startswith("refresh: ") or " passed" in line]
    assert [line.strip("= ").partition(" in ")[0] for line in told] == [
        "refresh: start 1 of 2",
        "2 passed, 1 skipped",
        "refresh: start 2 of 2",
        "2 passed, 1 deselected",
        "refresh: start 2 of 2, for 1 of 2 baselines",
        "1 passed, 2 deselected",
    ]
    kept = read_folder(repository.root / ".moeperf/candidate/baselines").baselines
    assert {place: len(each.starts) for place, each in kept.items()} == {
        f"h200/vllm/serving.load/{PLACE.rpartition('/')[2]}": 2,
        "h200/vllm/serving.load/tiny-moe.startup": 2,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--starts", "0"], "--starts 0: give 1 to 10"),
        (["--starts", "11"], "--starts 11: give 1 to 10"),
        (["--sessions", "6"], "--sessions 6: give 1 to 5, the starts"),
        (
            ["--reason", " "],
            "--reason is empty: say why the figures change, for who reads the diff",
        ),
    ],
)
def test_misuse_is_one_line(refresh, words, message):
    assert refresh(*words) == (2, "", f"moeperf: error: {message}\n")
