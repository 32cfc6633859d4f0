"""`moeperf … | head -1`: whoever reads the output goes away before its end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = (
    sys.executable,
    "-c",
    "import sys\nfrom pytest_moeperf.cli import main\nsys.exit(main())",
)


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def environment(request):
    """With a buffer, a short output is written at the very end; without, piece by piece."""
    return os.environ | {"PYTHONUNBUFFERED": request.param}


@pytest.mark.parametrize(
    "words", ["fit mixtral-8x7b --gpu 2xh200", "fit mixtral-8x7b --gpu h100 --json"]
)
def test_output_that_nobody_reads_ends_the_command_quietly(words, environment):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [*COMMAND, *words.split()],
            cwd=ROOT,
            env=environment,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_reader_that_has_enough_ends_the_command_quietly():
    words = ["baseline", "show", "--json"]  # more than a pipe holds
    # Without a buffer Python itself drops the rest.
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    with subprocess.Popen(
        [*COMMAND, *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as command:
        assert command.stdout.readline() == b"[\n"
        command.stdout.close()
        assert command.stderr.read() == b""
    assert command.returncode == 141


def test_help_that_nobody_reads_is_quiet_too(environment):
    done = subprocess.run(
        ["bash", "-c", '"$@" --help | true', "bash", *COMMAND],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_output_that_goes_nowhere_is_no_error():
    done = subprocess.run(
        ["bash", "-c", '"$@" baseline show >&-', "bash", *COMMAND],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
