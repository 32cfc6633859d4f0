"""The `gpu` fixture, on GPUs that a recording stands in for."""

from pathlib import Path

import pytest

RECORDINGS = Path(__file__).parents[1] / "data" / "nvml"
TELLS = """\
def test_what_is_here(gpu):
    print(gpu.name, gpu.count, gpu.gpu_memory_gib, gpu.memory_gb_per_s, len(gpu.links))
"""


@pytest.fixture
def host(monkeypatch):
    """Makes the next session believe in the GPUs of a recording; what it must be given for that."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def make(recording):
        monkeypatch.setenv("MOEPERF_TEST_NVML", str(RECORDINGS / recording))
        return ("-p", "pytest_moeperf.testing.gpuhost", "-s")

    return make


def test_it_tells_the_gpus_of_the_session(suite, host):
    suite.write(TELLS)
    outcome = suite.run(*host("2x-h200.json"), "--gpu", "auto")
    outcome.counts(passed=1)
    outcome.shows("*h200 2 140.4* 4800 1")


def test_it_tells_that_there_are_none_on_a_cpu(suite, host):
    suite.write(TELLS)
    outcome = suite.run(*host("2x-h200.json"), "--gpu", "cpu")
    outcome.counts(passed=1)
    outcome.shows("*cpu 0 None None 0")


def test_a_class_that_is_not_here_is_an_error_for_it_as_well(suite, host):
    suite.write(TELLS)
    outcome = suite.run(*host("1x-h200.json"), "--gpu", "h100")
    assert "--gpu h100: this machine has 1x NVIDIA H200" in outcome.text + outcome.errors
    outcome.counts(errors=1)


def test_a_server_gets_gpus_of_its_own_and_gives_them_back(suite, host):
    suite.write(
        "from pytest_moeperf import ServerSpec\n\n"
        "def test_one(serve, moe, gpu):\n"
        "    server = serve(moe)\n"
        "    assert server.gpu_ids == (gpu.gpus[0].uuid,)\n"
        "    assert server.gpu_pids == {server.pid}\n"
        "    print('pid', server.pid)\n"
    )
    outcome = suite.run(*host("2x-h200.json"), "--gpu", "h200")
    outcome.counts(passed=1)
    # The driver lists the server until it has ended, and the next session finds the GPUs free.
    outcome = suite.run(*host("2x-h200.json"), "--gpu", "h200")
    outcome.counts(passed=1)


def test_two_sessions_of_a_host_use_a_gpu_each(suite, host, monkeypatch):
    monkeypatch.setenv("MOEPERF_TEST_HOST", suite.root.name)
    monkeypatch.setenv("TMPDIR", str(suite.root))
    suite.write(
        "import os, pathlib, time\n\n"
        "def test_one(serve, moe):\n"
        "    server = serve(moe)\n"
        "    here = pathlib.Path('taken')\n"
        "    here.mkdir(exist_ok=True)\n"
        "    (here / str(os.getpid())).write_text(server.gpu_ids[0])\n"
        "    while len(list(here.iterdir())) < 2:\n"
        "        time.sleep(0.05)\n"
    )
    arguments = (*host("2x-h200.json"), "--gpu", "h200")
    sessions = [suite.start(*arguments) for _ in range(2)]
    for session in sessions:
        output, _ = session.communicate(timeout=60)
        assert session.returncode == 0, output
    taken = [path.read_text() for path in (suite.root / "taken").iterdir()]
    assert len(set(taken)) == 2
