import pytest


@pytest.mark.own_server
@pytest.mark.stops_server
def test_server_leaves_nothing_behind(serve, model):
    """SIGTERM ends every process and frees the port and, but for known leaks, shared memory."""
    shutdown = serve.stop(model)
    assert shutdown.clean, shutdown
