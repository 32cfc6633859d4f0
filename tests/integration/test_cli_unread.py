"""Output that does not arrive: it is closed, or its reader goes away, as in `moeperf … | head`."""

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


CLOSED = "moeperf: error: standard output is closed: send it to a file, a pipe or /dev/null\n"
FULL = (
    "moeperf: error: cannot write standard output: the disk is full; "
    "free some space and run again\n"
)


def ended(words, streams, environment):
    """Exit code and standard error of a command whose streams are redirected by the shell."""
    done = subprocess.run(
        ["bash", "-c", f'"$@" {words} {streams}', "bash", *COMMAND],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(("streams", "message"), [(">&-", CLOSED), (">/dev/full", FULL)])
@pytest.mark.parametrize(
    "words",
    [
        "fit mixtral-8x7b --gpu 2xh200",
        # It does not fit, which alone is 1.
        "fit mixtral-8x7b --gpu h100 --json",
        "baseline show",
        "fit --help",
    ],
)
def test_output_that_cannot_be_written_is_misuse(words, streams, message, environment):
    assert ended(words, streams, environment) == (2, message)


def test_what_was_typed_wrong_is_said_where_there_is_nothing_to_write(environment):
    code, message = ended("compare none.json none.json", ">/dev/full", environment)
    assert (code, message.count("\n")) == (2, 1)
    assert message.startswith("moeperf: error: none.json: ")


@pytest.mark.parametrize(
    ("words", "streams", "code"),
    [
        ("compare none.json none.json", "2>&-", 2),
        ("compare", "2>/dev/full", 2),
        ("fit mixtral-8x7b --gpu h100", "2>&-", 1),
        ("baseline show", ">/dev/full 2>&1", 2),
        ("baseline show", ">&- 2>&-", 2),
    ],
)
def test_where_messages_go_nowhere_the_exit_code_still_tells(words, streams, code, environment):
    assert ended(words, streams, environment) == (code, "")


FAILING = """\
import sys
from pytest_moeperf.cli import fit, main
from pytest_moeperf.errors import MoeperfError

def run(_args):
    print("what it found")
    raise {error}

fit.run = run
sys.exit(main(["fit", "mixtral-8x7b", "--gpu", "h100"]))
"""


@pytest.fixture(params=["full", "unread"])
def bad_output(request):
    """A file that takes no output, from the moment when it leaves the buffer."""
    if request.param == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    yield descriptor
    os.close(descriptor)


def failing(error, output):
    """Exit code and standard error of a command that prints and then raises `error`."""
    done = subprocess.run(
        [sys.executable, "-c", FAILING.format(error=error)],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("MoeperfError('no such thing')", 1, "moeperf: error: no such thing\n"),
        ("KeyboardInterrupt", 130, "moeperf: interrupted\n"),
    ],
)
def test_what_ended_a_command_is_told_and_not_what_became_of_its_output(
    error, code, message, bad_output
):
    assert failing(error, bad_output) == (code, message)


def test_another_file_that_nobody_reads_is_not_taken_for_the_output():
    code, message = failing("BrokenPipeError(32, 'Broken pipe', 'other')", subprocess.DEVNULL)
    assert code == 1
    assert message.endswith("BrokenPipeError: [Errno 32] Broken pipe: 'other'\n")


@pytest.mark.parametrize(
    "setting",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""},
    ],
    ids=["strict", "C locale"],
)
def test_what_an_encoding_lacks_is_a_question_mark(setting):
    done = subprocess.run(
        [*COMMAND, "fit", "mixtral-8x7b", "--gpu", "2xh200"],
        cwd=ROOT,
        env=os.environ | setting,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert "?" in done.stdout.decode("ascii")


@pytest.mark.parametrize("command", ["fit mixtral-8x7b --gpu h200", "baseline check", "load"])
def test_an_unknown_option_points_at_the_help_of_its_command(command, environment):
    name = " ".join(["moeperf", *command.partition(" mixtral")[0].split()])
    code, message = ended(f"{command} --unknown", "", environment)
    assert code == 2
    assert message.endswith(
        f"error: unrecognized arguments: --unknown (`{name} --help` lists what is valid)\n"
    )
