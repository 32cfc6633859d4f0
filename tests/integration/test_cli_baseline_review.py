"""`moeperf baseline check` and `diff`, in a repository as CI has it."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_moeperf import store
from pytest_moeperf.baseline import Baseline, KnownRegression
from pytest_moeperf.baseline_format import encode
from pytest_moeperf.cli import main

CELL = "serving/mini-moe.closed-c1-isl32-osl48-n8"
PLACE = f"cpu/vllm/{CELL}"
ROOT = Path("baselines")
FILE = ROOT / f"{PLACE}.json"
MOVED = "cpu/vllm/moe/mini-moe.burst"
WAIVERS = ROOT / "waivers.json"


def git(*words):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "gc.auto=0")
    ran = subprocess.run(
        ["git", *identity, *words], check=True, capture_output=True, text=True, timeout=30
    )
    return ran.stdout


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch, make_recording, make_start):
    """A repository with two cells on `main`, and a branch for a change."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setattr("pytest_moeperf.cli.baseline_options.today", lambda: "2026-02-01")
    git("init", "-q", "-b", "main")
    writer = store.BaselineWriter(ROOT)
    writer.add(make_recording())
    writer.add(make_recording(cell="moe/mini-moe.burst"))
    writer.flush()
    git("add", ".")
    git("commit", "-q", "-m", "figures")
    git("checkout", "-q", "-b", "change")


@pytest.fixture
def moeperf(capsys):
    """Runs the command; gives exit code, output and error output."""

    def run(*arguments):
        code = main(["baseline", *arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refreshed(make_recording, make_start):
    """Builds a baseline of the first cell with other figures."""

    def make(tpot, **changes):
        start = make_start("new", tpot=(tpot,), version="0.33.0")
        baseline = Baseline.begun(make_recording(start=start, reason="upgrade"))
        return dataclasses.replace(baseline, **changes)

    return make


def write(*baselines):
    store.write_baselines(ROOT, baselines)


# check


def test_check_counts_what_is_fine(moeperf):
    assert moeperf("check") == (0, "2 checked, 0 bad\n", "")
    code, out, _ = moeperf("check", "baselines", "--json")
    assert (code, json.loads(out)) == (
        0,
        {"checked": 2, "due": [], "lowered": [], "problems": []},
    )


def test_check_has_a_line_for_every_bad_file(moeperf):
    text = FILE.read_text()
    bad = {
        FILE: text.replace("31.5]", "NaN]"),
        FILE.with_name("mini-moe.other.json"): text,
        FILE.with_name("no.json"): "<<<<<<< HEAD",
        FILE.with_name("truncated.json"): text[:-40],
        FILE.with_name("version.json"): text.replace('"schema": 2', '"schema": 7'),
    }
    for path, content in bad.items():
        path.write_text(content)
    code, out, err = moeperf("check")
    *lines, last = out.splitlines()
    assert (code, err) == (1, "")
    assert last == "6 checked, 5 bad"
    assert [line.partition(": ")[0] for line in lines] == [str(path) for path in bad]
    for line, problem in zip(
        lines,
        (
            "is not a finite number",
            f"holds the cell {CELL}",
            "not JSON",
            "it ends in the middle, so restore the file",
            "update pytest-moeperf",
        ),
        strict=True,
    ):
        assert problem in line


def test_check_reads_the_waivers_too(moeperf):
    WAIVERS.write_text('{"schema": 1}')
    code, out, _ = moeperf("check")
    assert code == 1
    assert out.splitlines()[0] == f"{WAIVERS}: $: 'waivers' is a required property"


def test_check_of_a_folder_that_is_not_there_is_one_line(moeperf):
    assert moeperf("check", "nowhere") == (
        2,
        "",
        "moeperf: error: no folder nowhere: give the one that holds baselines\n",
    )


@pytest.mark.parametrize("typed", ["", " "])
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["check", "--against"], "--against"),
        (["check", "--baseline-dir"], "--baseline-dir"),
        (["check"], "DIR"),
        (["show"], "PATH|CELL"),
        (["anchor", "--reason", "r"], "PATH|CELL"),
        (["diff"], "OLD"),
        (["diff", "git:main"], "NEW"),
    ],
)
def test_a_variable_that_is_not_set_guards_nothing_and_is_misuse(
    moeperf, capsys, words, name, typed
):
    with pytest.raises(SystemExit, match="2"):
        moeperf(*words, typed)
    error = capsys.readouterr().err
    assert f"argument {name}: {typed!r} is empty: is a variable not set? (`moeperf" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["check"], ["show"], ["check", "--against", "git:main"], ["check", "--json"]]
)
def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(moeperf, monkeypatch, words):
    # Root may read everything, so the kernel's answer is given here.
    scandir, closed = os.scandir, str(ROOT / "cpu")

    def denied(path):
        if str(path) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert moeperf(*words) == (1, "", f"moeperf: error: cannot read {closed}: no permission\n")


def test_check_takes_the_folder_as_the_other_actions_do(moeperf):
    ROOT.rename("figures")
    assert moeperf("check", "--baseline-dir", "figures") == moeperf("check", "figures")
    assert moeperf("check", "figures")[0] == 0


def test_check_takes_one_folder(moeperf, capsys):
    with pytest.raises(SystemExit, match="2"):
        moeperf("check", "figures", "--baseline-dir", "baselines")
    assert "not allowed with argument" in capsys.readouterr().err


def test_check_tells_what_is_due_without_failing(moeperf, refreshed):
    write(refreshed(31.0, expires="2026-01-31"))
    code, out, _ = moeperf("check")
    assert code == 0
    assert out.splitlines()[0] == (
        f"due: {PLACE}: expired on 2026-01-31 and is compared with nothing: "
        "`moeperf baseline refresh`"
    )


def test_a_change_that_lowers_no_bar_passes_the_guard(moeperf, refreshed):
    write(refreshed(31.0))
    assert moeperf("check", "--against", "git:main") == (0, "2 checked, 0 bad, 0 lowered\n", "")


def test_who_lowers_a_bar_reads_what_and_how_to_say_that_it_is_meant(moeperf, refreshed):
    write(refreshed(36.0))
    code, out, err = moeperf("check", "--against", "git:main")
    first, advice, *waivers, last = out.splitlines()
    assert (code, err) == (1, "")
    assert first == (
        f"{PLACE}: lowered (worse): tpot_ms.p50: 31.5 → 36.0 ms (+14.4 %) is worse by more than "
        "half of the tolerance of 25 %"
    )
    assert advice == (
        "1 bar is lower than in git:main. If that is meant, let baselines/waivers.json in the "
        "same change be:"
    )
    assert last == "2 checked, 0 bad, 1 lowered"
    WAIVERS.write_text("\n".join(waivers))
    code, out, err = moeperf("check", "--against", "git:main")
    assert (code, err) == (1, "")
    assert f'{WAIVERS}: $.waivers[0].issue: "(its URL)" must match ^https?://' in out


def test_a_waiver_in_the_same_change_lets_it_pass_and_a_later_change_not(moeperf, refreshed):
    write(refreshed(36.0))
    waiver = {
        "baseline": PLACE,
        "metric": "tpot_ms.p50",
        "rule": "worse",
        "reason": "safety checks cost 14 %",
        "owner": "@somebody",
        "issue": "https://example.org/1",
        "expires": "2026-03-01",
    }
    WAIVERS.write_text(json.dumps({"schema": 1, "waivers": [waiver]}))
    assert moeperf("check", "--against", "git:main") == (0, "2 checked, 0 bad, 0 lowered\n", "")
    git("add", ".")
    git("commit", "-q", "-m", "slower, on purpose")
    git("checkout", "-q", "-b", "next")
    write(refreshed(41.0))
    code, out, _ = moeperf("check", "--against", "git:change")
    assert code == 1
    assert "36.0 → 41.0 ms" in out


def test_json_has_what_was_lowered(moeperf, refreshed):
    write(refreshed(36.0))
    code, out, _ = moeperf("check", "--against", "git:main", "--json")
    [lowered] = json.loads(out)["lowered"]
    assert code == 1
    assert (lowered["baseline"], lowered["metric"], lowered["rule"]) == (
        PLACE,
        "tpot_ms.p50",
        "worse",
    )


def test_a_removed_file_and_a_folder_as_the_other_side(moeperf, tmp_path):
    git("worktree", "add", "-q", str(tmp_path / "before"), "main")
    FILE.unlink()
    code, out, _ = moeperf("check", "--against", str(tmp_path / "before" / "baselines"))
    assert code == 1
    assert out.splitlines()[0] == (
        f"{PLACE}: lowered (removed): the baseline is gone: nothing is judged"
    )


def test_what_others_merged_meanwhile_is_not_held_against_a_change(moeperf, refreshed):
    git("checkout", "-q", "main")
    write(refreshed(20.0))
    git("commit", "-q", "-a", "-m", "much better")
    git("checkout", "-q", "change")
    assert moeperf("check", "--against", "git:main") == (0, "2 checked, 0 bad, 0 lowered\n", "")


def test_a_base_of_version_1_is_read(moeperf, refreshed):
    FILE.write_text((Path(__file__).parents[1] / "data" / "baseline-1.json").read_text())
    git("commit", "-q", "-a", "-m", "old format")
    write(refreshed(31.0))
    code, out, _ = moeperf("check", "--against", "git:HEAD")
    assert code == 1  # two starts there, one here
    assert "lowered (thinned): 1 starts, were 2" in out


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("git:nowhere", "git:nowhere: no such commit here; fetch it first (`git fetch origin`)"),
        ("git:", "'git:' names no folder or commit; give one, such as git:origin/main"),
        ("git:--help", "git:--help: no such commit here; fetch it first (`git fetch origin`)"),
        (
            "origin/main",
            (
                "'origin/main' is no folder of baselines; give one, or a commit such as "
                "git:origin/main"
            ),
        ),
    ],
)
def test_a_base_that_is_not_there_is_one_line(moeperf, where, message):
    assert moeperf("check", "--against", where) == (2, "", f"moeperf: error: {message}\n")


def test_outside_of_a_repository_git_says_why(moeperf, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("plain"))
    ROOT.mkdir()
    code, _, err = moeperf("check", "--against", "git:main")
    assert code == 2
    assert err.startswith("moeperf: error: git:main: fatal: not a git repository")
    assert err.count("\n") == 1


def test_links_in_a_commit_are_not_followed(moeperf):
    link = FILE.with_name("link.json")
    link.symlink_to("/etc/passwd")
    git("add", ".")
    git("commit", "-q", "-m", "a link")
    link.unlink()
    assert moeperf("check", "--against", "git:HEAD") == (0, "2 checked, 0 bad, 0 lowered\n", "")


def test_a_base_that_is_damaged_is_told_and_guards_nothing(moeperf, refreshed):
    FILE.write_bytes(b"\xff")
    (ROOT / "cpu/vllm/moved.json").write_text(
        (ROOT / "cpu/vllm/moe/mini-moe.burst.json").read_text()
    )
    (ROOT / "notes.txt").write_text("no baseline")
    WAIVERS.write_text("{}")
    git("add", ".")
    git("commit", "-q", "-m", "damage")
    for path in (WAIVERS, ROOT / "cpu/vllm/moved.json"):
        path.unlink()
    write(refreshed(50.0))
    assert moeperf("check", "--against", "git:HEAD") == (0, "2 checked, 0 bad, 0 lowered\n", "")
    _, out, _ = moeperf("diff")
    assert [line for line in out.splitlines() if line.startswith("not compared: ")] == [
        (
            f"not compared: git:HEAD:baselines/cpu/vllm/moved.json: holds {MOVED}; its path must "
            "say the same"
        ),
        f"not compared: git:HEAD:{FILE}: byte 0 is not UTF-8",
        "not compared: git:HEAD:baselines/waivers.json: $: 'schema' is a required property",
    ]


def test_a_folder_that_the_change_removed_is_still_compared(moeperf):
    shutil.rmtree(ROOT)
    code, _, err = moeperf("check", "--against", "git:main")
    assert (code, err) == (
        2,
        "moeperf: error: no folder baselines: give the one that holds baselines\n",
    )
    empty = Path("empty")
    empty.mkdir()
    code, out, _ = moeperf("diff", "git:main", "empty")
    assert code == 0
    assert out.endswith("2 gone; 2 lowered bars\n")


def test_without_git_it_says_so(moeperf, monkeypatch):
    monkeypatch.setenv("PATH", "")
    code, _, err = moeperf("check", "--against", "git:main")
    assert code == 2
    assert err.startswith("moeperf: error: git cannot be run: ")


# diff


def test_diff_shows_nothing_where_nothing_changed(moeperf):
    assert moeperf("diff") == (0, "2 unchanged\n", "")


def test_diff_is_a_table_of_what_changed(moeperf, refreshed):
    known = KnownRegression(
        metric="tpot_ms.p50",
        reason="the new sampler",
        issue="https://example.org/1",
        expires="2026-03-01",
        extent=0.08,
    )
    write(refreshed(36.0, known=(known,)))
    assert moeperf("diff")[1].splitlines() == [
        PLACE,
        "  vllm 0.32.0 → vllm 0.33.0, 1 start of 1 session, expires 2026-04-02",
        "  reason: upgrade",
        (
            "  accepts tpot_ms.p50 worse by up to 8 % until 2026-03-01: the new sampler "
            "(https://example.org/1)"
        ),
        "    metric        before    after         change  tolerance",
        "    tpot_ms.p50  31.5 ms  36.0 ms  +14.4 % worse       25 %",
        (
            "  ! lowered (worse): tpot_ms.p50: 31.5 → 36.0 ms (+14.4 %) is worse by more than "
            "half of the tolerance of 25 %"
        ),
        "",
        "1 changed, 1 unchanged; 1 lowered bar",
    ]


def test_diff_as_markdown_for_a_pull_request(moeperf, refreshed, golden):
    (ROOT / "cpu/vllm/moe/mini-moe.burst.json").unlink()
    write(
        refreshed(30.0, reason="upgrade <b>|</b>"),
        dataclasses.replace(refreshed(31.0), cell="moe/new"),
    )
    code, out, _ = moeperf("diff", "git:main", "baselines", "--markdown")
    assert code == 0
    golden("baselines.md", out)


def test_diff_tells_what_it_could_not_compare(moeperf):
    FILE.write_text("{")
    code, out, _ = moeperf("diff")
    assert code == 0
    assert out.splitlines()[-1].startswith(f"not compared: {FILE}: line 1 column 2: not JSON")


def test_a_refreshed_start_is_one_line_of_git_diff(refreshed):
    start = dataclasses.replace(refreshed(31.2).starts[0], engine_version="0.32.0")
    stored = store.read(FILE)
    FILE.write_text(encode(dataclasses.replace(stored, starts=(*stored.starts, start))))
    changed = [
        line
        for line in git("diff", "--unified=0").splitlines()
        if line[:1] in {"+", "-"} and line[:3] not in {"+++", "---"}
    ]
    removed = [line for line in changed if line.startswith("-")]
    added = [line for line in changed if line.startswith("+")]
    # the figure of the gate, and the comma behind what was the last start
    assert len(removed) == 2
    assert [line[:60] for line in added] == [
        '+    "tpot_ms.p50": {"direction": "lower", "expected": 31.32',
        removed[1].replace("-", "+", 1)[:60],
        '+    {"recorded_at": "2026-01-02T03:04:05Z", "session_id": "',
    ]


def test_a_repository_without_a_commit_has_nothing_to_compare_with(moeperf, tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    git("init", "-q")
    ROOT.mkdir()
    assert moeperf("diff") == (
        2,
        "",
        (
            "moeperf: error: git:HEAD: this repository has no commit yet; commit first, or give a "
            "folder\n"
        ),
    )
