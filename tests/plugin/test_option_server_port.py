"""--server-port: where the first server listens."""

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
    outcome = suite.run("--server-port", free)
    outcome.counts(passed=1)
    assert f"Uvicorn running on http://127.0.0.1:{free} " in outcome.logs[0].read_text()


def test_a_port_that_is_taken_fails_the_test_in_one_line(suite, taken):
    outcome = suite.run("--server-port", taken)
    outcome.counts(failed=1)
    outcome.shows(
        f"--server-port {taken}: cannot be used on 127.0.0.1: Address already in use; "
        "choose another, or leave the option out for a free one"
    )
    assert "Traceback" not in outcome.text
    assert outcome.logs == []


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_a_number_that_is_no_port_is_an_error(suite, port):
    assert (
        suite.run(f"--server-port={port}").usage_error
        == f"ERROR: --server-port {port}: must be from 1 to 65535"
    )


def test_another_plugin_may_have_a_port_of_its_own(suite):
    (suite.root / "web_server.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--port', type=int)\n"
    )
    suite.write(
        "def test_port(pytestconfig):\n    assert pytestconfig.getoption('--port') == 8080\n"
    )
    suite.pytester.syspathinsert()
    suite.run("-p", "web_server", "--port", "8080").counts(passed=1)
