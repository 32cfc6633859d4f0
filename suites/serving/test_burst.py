import pytest


@pytest.fixture
def gates(gpu):
    """On GPUs not the TTFT: how a burst is cut into steps is luck, and moves it by a third."""
    return ("output_throughput", "ttft_ms.p50") if gpu.name == "cpu" else ("output_throughput",)


def test_as_many_as_published(measure, plain, chats):
    """The load of published figures of dense models is taken in no slower than the baseline.

    By its slowest first tokens: the burst is too short for a steady throughput.
    """
    measure(plain, chats).gate("ttft_ms.p90")


def test_all_requests_at_once(measure, model, burst, gates):
    """A burst of requests is worked off no slower than the baseline."""
    measure(model, burst).gate(*gates)
