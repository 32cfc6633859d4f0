"""--baseline-dir: where baselines are read and written."""

import os

import pytest


def test_baselines_are_written_there_and_read_from_there(suite, server, tmp_path):
    place = tmp_path / "deep" / "bars"
    engine = ("--engine", f"vllm={server.url}", "--baseline-dir", place)
    suite.run(*engine, "--baseline", "record").counts(passed=1)
    assert [path.parent.relative_to(place).as_posix() for path in place.rglob("*.json")] == [
        "cpu/vllm/serving.load"
    ]
    assert not (suite.root / "baselines").exists()
    outcome = suite.run(*engine)
    assert "NO_BASELINE" not in outcome.text


def test_a_check_of_a_folder_that_is_not_there_is_an_error_before_anything_starts(suite, tmp_path):
    place = tmp_path / "bars"
    outcome = suite.run("--baseline-dir", place)
    assert outcome.usage_error == (
        f"ERROR: --baseline-dir {place}: no such folder; correct it, or make it with "
        "--baseline record"
    )
    assert outcome.logs == []
    assert not place.exists()


def test_a_check_of_a_file_is_an_error_before_anything_starts(suite, tmp_path):
    place = tmp_path / "bars"
    place.write_text("")
    outcome = suite.run("--baseline-dir", place)
    assert outcome.usage_error == (
        f"ERROR: --baseline-dir {place}: not a folder; give the one with the baselines"
    )
    assert outcome.logs == []


@pytest.mark.parametrize("text", ["", " "])
def test_nothing_is_not_the_working_directory(suite, text):
    outcome = suite.run(f"--baseline-dir={text}")
    assert outcome.usage_error == (
        f"ERROR: --baseline-dir {text!r}: give a folder, or leave the option out"
    )


def test_a_file_in_its_place_is_an_error_before_anything_starts(suite, tmp_path):
    place = tmp_path / "bars"
    place.write_text("")
    outcome = suite.run("--baseline-dir", place, "--baseline", "record")
    assert outcome.usage_error == (
        f"ERROR: cannot write {place}: a file is in the place of one of its folders"
    )
    assert outcome.logs == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error_before_anything_starts(suite, tmp_path):
    tmp_path.chmod(0o500)
    place = tmp_path / "bars"
    outcome = suite.run("--baseline-dir", place, "--baseline", "record")
    assert outcome.usage_error == f"ERROR: cannot write {place}: no permission"
    assert outcome.logs == []
