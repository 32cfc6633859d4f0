"""What is in the place of an output: a link, a pipe, a device, a folder."""

import os
import select
import socket

import pytest

from pytest_moeperf.errors import UnwritableError
from pytest_moeperf.files import ensure_file_writable, write_all, write_text_atomic


@pytest.fixture
def pipe(tmp_path):
    """A named pipe, and a descriptor that reads it."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield path, reader
    os.close(reader)


@pytest.fixture
def terminal():
    """A character device of our own, and a descriptor that reads what is written to it."""
    reader, device = os.openpty()
    yield os.ttyname(device), reader
    os.close(device)
    os.close(reader)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_pipe_gets_the_text_and_stays(pipe, tmp_path):
    path, reader = pipe
    ensure_file_writable(path)
    write_text_atomic(path, "größe")
    assert os.read(reader, 100) == "größe".encode()
    assert path.is_fifo()
    assert names_in(tmp_path) == ["pipe"]


def test_a_link_to_a_pipe_stays_too(pipe, tmp_path):
    path, reader = pipe
    link = tmp_path / "link"
    link.symlink_to("pipe")
    write_text_atomic(link, "text")
    assert os.read(reader, 100) == b"text"
    assert link.is_symlink()
    assert path.is_fifo()


def test_a_device_gets_the_text_through_its_link(terminal, tmp_path):
    device, reader = terminal
    link = tmp_path / "link"
    link.symlink_to(device)
    ensure_file_writable(link)
    write_text_atomic(link, "text")
    assert select.select([reader], [], [], 5)[0]
    assert os.read(reader, 100) == b"text"
    assert link.is_symlink()
    assert names_in(tmp_path) == ["link"]


def test_an_open_file_without_a_name_gets_the_text(tmp_path):
    # What /dev/stdout leads to where output goes to a temporary file.
    with (tmp_path / "gone").open("w+") as file:
        (tmp_path / "gone").unlink()
        link = tmp_path / "link"
        link.symlink_to(f"/proc/self/fd/{file.fileno()}")
        write_text_atomic(link, "text")
        assert file.read() == "text"
    assert names_in(tmp_path) == ["link"]


def test_a_link_to_a_file_stays_and_the_file_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "kept").mkdir()
    target, link = tmp_path / "kept" / "run.json", tmp_path / "run.json"
    target.write_text("old")
    other_name = tmp_path / "old.json"
    other_name.hardlink_to(target)
    link.symlink_to("kept/run.json")
    write_text_atomic(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    # Written in place, it would be the new text as well.
    assert other_name.read_text() == "old"
    assert names_in(tmp_path / "kept") == ["run.json"]


def test_a_link_to_nothing_makes_what_it_names(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("later/run.json")
    write_text_atomic(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "later" / "run.json").read_text() == "new"


def test_below_a_folder_that_others_send_no_pipe_is_waited_for(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)  # with nobody who reads it
    with pytest.raises(UnwritableError, match=r"pipe: it is not a file$"):
        write_all({path: "text"}, below=tmp_path)
    assert path.is_fifo()
    assert names_in(tmp_path) == ["pipe"]


def test_a_socket_and_a_folder_are_refused_and_stay(tmp_path):
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(str(tmp_path / "s"))
        for name, why in (("s", "it is not a file"), (".", "Is a directory")):
            for attempt in (ensure_file_writable, lambda path: write_text_atomic(path, "text")):
                with pytest.raises(UnwritableError, match=f"{why}$"):
                    attempt(tmp_path / name)
    assert (tmp_path / "s").is_socket()
    assert names_in(tmp_path) == ["s"]


def test_links_that_lead_to_each_other_are_one_line(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UnwritableError, match=r"cannot write .*Too many levels of symbolic links"):
        write_text_atomic(tmp_path / "a", "text")
    assert names_in(tmp_path) == ["a", "b"]
