import pytest


@pytest.mark.own_server
@pytest.mark.stops_server
def test_server_leaves_nothing_behind(serve, model):
    """SIGTERM ends every process of the server and frees its port and its shared memory."""
    shutdown = serve.stop(model)
    assert shutdown.clean, shutdown
