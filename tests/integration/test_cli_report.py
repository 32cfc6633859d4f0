"""`moeperf report`: the page of a stored run."""

import subprocess
import sys

import pytest

from pytest_moeperf import cli
from pytest_moeperf.outputs import SoFar
from pytest_moeperf.report.html import to_html
from pytest_moeperf.report.json import to_json


@pytest.fixture
def stored(session_report, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(to_json(session_report))
    return path


def test_the_page_goes_beside_the_run(stored, session_report, capsys):
    assert cli.main(["report", str(stored)]) == 0
    page = stored.with_name("report.html")
    assert capsys.readouterr().out == f"report: {page}\n"
    assert page.read_text() == to_html(session_report)


def test_a_run_that_was_killed_has_a_page(session_report, tmp_path):
    path = tmp_path / "run.json"
    SoFar(tmp_path).write(session_report)
    assert cli.main(["report", str(path)]) == 0
    page = path.with_name("report.html").read_text()
    assert "Not finished, tests were still to run." in page
    assert "<p>time: 245 s until this was written</p>" in page


def test_the_page_goes_where_it_is_asked_to(stored, tmp_path, capsys):
    page = tmp_path / "deep" / "night.html"
    assert cli.main(["report", str(stored), "--html", str(page)]) == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert not stored.with_name("report.html").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\xff", "is not text; give the run.json of a session"),
        (b"{}", "give the run.json of a session"),
        (b"[", "give the run.json of a session"),
    ],
)
def test_what_is_no_run_is_an_error_of_one_line(tmp_path, content, reason, capsys):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["report", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"moeperf: error: {path}: ")
    assert error.rstrip().endswith(reason)
    assert error.count("\n") == 1
    assert not path.with_name("report.html").exists()


def test_a_run_of_a_later_version_asks_for_that_version(stored, capsys):
    stored.write_text(stored.read_text().replace('"schema": 2', '"schema": 3'))
    for words in (["report", str(stored)], ["compare", str(stored), str(stored)]):
        assert cli.main(words) == 2
        assert capsys.readouterr().err == (
            f"moeperf: error: {stored}: its format is version 3, this tool reads up to 2: "
            "update pytest-moeperf\n"
        )


def test_the_page_goes_into_a_pipe_and_nothing_else_does(stored, session_report, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from pytest_moeperf.cli import main; sys.exit(main())",
            *("report", str(stored), "--html", "/proc/self/fd/1"),
        ],
        capture_output=True,
        check=True,
    )
    assert (done.stdout.decode(), done.stderr) == (to_html(session_report), b"")


def test_a_page_that_cannot_be_written_is_misuse(stored, tmp_path, capsys):
    page = tmp_path / "run.json" / "page.html"
    assert cli.main(["report", str(stored), "--html", str(page)]) == 2
    assert capsys.readouterr().err == (
        f"moeperf: error: cannot write {page}: a file is in the place of one of its folders\n"
    )
