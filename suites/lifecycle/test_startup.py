import pytest


@pytest.mark.own_server
def test_server_is_ready_in_time(measure, model):
    """A start, from the command to the first answer, takes no longer than the baseline."""
    measure.startup(model).gate("startup_s")
