"""--port: where the first server listens."""

import socket

import pytest


@pytest.fixture
def taken():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.fixture
def free():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def test_the_server_listens_there(suite, free):
    suite.write_ratio((0.9, 1.1))
    outcome = suite.run("--port", free)
    outcome.counts(passed=1)
    assert f"Uvicorn running on http://127.0.0.1:{free} " in outcome.logs[0].read_text()


def test_a_port_that_is_taken_fails_the_test_in_one_line(suite, taken):
    outcome = suite.run("--port", taken)
    outcome.counts(failed=1)
    outcome.shows(
        f"--port {taken}: cannot be used on 127.0.0.1: Address already in use; choose another, "
        "or leave the option out for a free one"
    )
    assert "Traceback" not in outcome.text
    assert outcome.logs == []


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_a_number_that_is_no_port_is_an_error(suite, port):
    assert (
        suite.run(f"--port={port}").usage_error == f"ERROR: --port {port}: must be from 1 to 65535"
    )
