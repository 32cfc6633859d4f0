from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import psutil
import pytest

from pytest_moeperf.client import Target
from pytest_moeperf.driver import play, workers_for
from pytest_moeperf.errors import LoadError, ServerDiedError, ServerHungError, UsageError
from pytest_moeperf.loadgen.crew import release_idle
from pytest_moeperf.records import RequestSpec
from pytest_moeperf.testing import FakeEngine, Script
from pytest_moeperf.validity import find
from pytest_moeperf.workload import Plan

NS_PER_MS = 10**6


def closed(requests, concurrency, output_tokens=4, think_ms=0):
    specs = (
        RequestSpec(
            index=index,
            prompt=(1, 2),
            output_tokens=output_tokens,
            think_ns=think_ms * NS_PER_MS,
        )
        for index in range(requests)
    )
    return Plan(requests=tuple(specs), concurrency=concurrency)


def open_loop(*offsets_ms, output_tokens=2):
    specs = (
        RequestSpec(
            index=index,
            prompt=(1, 2),
            output_tokens=output_tokens,
            offset_ns=offset * NS_PER_MS,
        )
        for index, offset in enumerate(offsets_ms)
    )
    return Plan(requests=tuple(specs), concurrency=None)


def target(engine):
    return Target(engine.url, engine.model)


def load_workers():
    """Worker processes of this test."""
    return [
        child
        for child in psutil.Process().children()
        if "pytest_moeperf.loadgen.worker" in child.cmdline()
    ]


def wait_until(met, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def most_at_once(requests):
    edges = sorted(
        edge for record in requests for edge in ((record.sent_ns, 1), (record.ended_ns, -1))
    )
    running = most = 0
    for _, step in edges:
        running += step
        most = max(most, running)
    return most


def test_a_closed_loop_keeps_its_concurrency():
    with FakeEngine(Script(ttft_ms=20)) as engine:
        repeat = play(target(engine), closed(requests=9, concurrency=3))
    assert [record.index for record in repeat.requests] == list(range(9))
    assert all(record.error is None and record.scheduled_ns is None for record in repeat.requests)
    assert most_at_once(repeat.requests) == 3


def test_an_open_loop_sends_on_schedule_however_slow_the_server_is():
    with FakeEngine(Script(ttft_ms=250, max_running=1)) as engine:
        repeat = play(target(engine), open_loop(0, 20, 40))
    scheduled = [record.scheduled_ns - repeat.started_ns for record in repeat.requests]
    assert scheduled == [0, 20 * NS_PER_MS, 40 * NS_PER_MS]
    assert all(record.sent_ns >= record.scheduled_ns for record in repeat.requests)
    # All were sent before the first answer came, so none waited for a slot of the client.
    assert max(record.sent_ns for record in repeat.requests) < repeat.requests[0].chunk_ns[0]
    # The queue on the server is in the latency of the last: three times 250 ms less its offset.
    last = repeat.requests[-1]
    assert last.chunk_ns[0] - last.start_ns >= (750 - 40) * NS_PER_MS


def test_a_burst_sends_all_at_once():
    with FakeEngine(Script(ttft_ms=200)) as engine:
        repeat = play(target(engine), open_loop(0, 0, 0, 0))
    assert most_at_once(repeat.requests) == 4
    assert {record.scheduled_ns for record in repeat.requests} == {repeat.started_ns}


def test_the_record_says_what_the_client_itself_used():
    with FakeEngine() as engine:
        repeat = play(target(engine), closed(requests=4, concurrency=2))
    wall_s = (repeat.ended_ns - repeat.started_ns) / 1e9
    client = repeat.client
    assert client.workers == 1
    assert 0 < client.cpu_s <= wall_s
    assert client.cpu_share == pytest.approx(client.cpu_s / wall_s)
    chunks = sum(len(record.chunk_ns) for record in repeat.requests)
    assert chunks == 16
    # Every chunk is in one read; the ends and the merged ones make the difference.
    assert chunks - client.merged_reads * 4 <= client.reads
    assert 0 <= client.lost_arrivals <= chunks
    assert client.clock_step_ms >= 0


def test_progress_ends_at_the_total():
    calls = []
    with FakeEngine() as engine:
        play(
            target(engine),
            closed(requests=5, concurrency=5),
            on_progress=lambda *counts: calls.append(counts),
        )
    assert calls[-1] == (5, 5, 20)


def test_failed_requests_are_in_the_record_and_the_rest_goes_on():
    with FakeEngine(Script(error_status=500, error_every=3)) as engine:
        repeat = play(target(engine), closed(requests=7, concurrency=1))
    errors = [record.error for record in repeat.requests]
    failed = "HTTP 500: scripted failure"
    assert errors == [None, None, failed, None, None, failed, None]


def test_a_server_that_never_answers_ends_the_load():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = Target(f"http://127.0.0.1:{free.getsockname()[1]}", "m")
        with pytest.raises(LoadError, match=r"does not answer: cannot connect to 127.0.0.1:"):
            play(nobody, closed(requests=1, concurrency=1))


def test_a_hanging_server_is_found_though_its_health_is_fine():
    with (
        FakeEngine(Script(hang_after_requests=2)) as engine,
        pytest.raises(ServerHungError, match=r"no token .* 2 requests in flight, [12] of 6 done"),
    ):
        play(target(engine), closed(requests=6, concurrency=2), stall_timeout_s=1.0)


def test_new_arrivals_do_not_hide_a_hanging_server():
    arrivals = open_loop(*range(0, 5000, 50))
    with (
        FakeEngine(Script(hang_after_requests=0)) as engine,
        pytest.raises(ServerHungError),
    ):
        play(target(engine), arrivals, stall_timeout_s=0.3)


def test_a_slow_stream_is_no_hang():
    with FakeEngine(Script(itl_ms=100)) as engine:
        repeat = play(target(engine), closed(1, 1, output_tokens=8), stall_timeout_s=0.6)
    assert repeat.requests[0].error is None


def test_an_idle_gap_of_the_schedule_is_no_hang():
    with FakeEngine() as engine:
        repeat = play(target(engine), open_loop(0, 600), stall_timeout_s=0.3)
    assert [record.error for record in repeat.requests] == [None, None]


def test_a_dead_server_ends_the_load_promptly():
    def dead():
        raise ServerDiedError("the server ended", exit_code=1)

    with FakeEngine(Script(hang_after_requests=0)) as engine, pytest.raises(ServerDiedError):
        play(target(engine), closed(requests=2, concurrency=1), alive=dead)


def test_a_death_that_shows_only_after_the_last_failure_is_still_told():
    checks = 0

    def dying():
        nonlocal checks
        checks += 1
        if checks > 4:
            raise ServerDiedError("the server ended", exit_code=1)

    with (
        FakeEngine(Script(disconnect_after_tokens=0)) as engine,
        pytest.raises(ServerDiedError),
    ):
        play(target(engine), closed(requests=2, concurrency=1), alive=dying)


def test_a_dead_server_is_told_rather_than_its_closed_port():
    def dead():
        raise ServerDiedError("the server ended", exit_code=1)

    with FakeEngine() as engine:
        gone = target(engine)
    with pytest.raises(ServerDiedError):
        play(gone, closed(requests=1, concurrency=1), alive=dead)


def test_ctrl_c_closes_all_streams_and_is_passed_on():
    with FakeEngine(Script(itl_ms=20)) as engine:

        def interrupt(_done, _total, _tokens):
            if engine.requests_running == 2:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            play(
                target(engine),
                closed(requests=4, concurrency=2, output_tokens=10_000),
                on_progress=interrupt,
            )
        engine.wait_for_running(0)
        assert engine.requests_received == 2


def test_workers_wait_for_the_next_play_with_nothing_open():
    release_idle()
    with FakeEngine() as engine:
        play(target(engine), closed(requests=2, concurrency=2), workers=2)
        waiting = load_workers()
        assert len(waiting) == 2
        assert [worker.net_connections() for worker in waiting] == [[], []]
        play(target(engine), closed(requests=2, concurrency=2), workers=2)
        assert load_workers() == waiting
    assert gc.isenabled()
    release_idle()
    assert load_workers() == []


def test_a_worker_that_died_while_it_waited_is_replaced():
    release_idle()
    with FakeEngine() as engine:
        play(target(engine), closed(requests=1, concurrency=1))
        [waiting] = load_workers()
        waiting.kill()
        psutil.wait_procs([waiting], timeout=10)
        assert play(target(engine), closed(1, 1)).requests[0].error is None
        assert waiting not in load_workers()


def test_a_load_that_broke_off_leaves_no_worker():
    release_idle()

    def stop(_done, _total, _tokens):
        raise KeyboardInterrupt

    with FakeEngine(Script(itl_ms=20)) as engine:
        with pytest.raises(KeyboardInterrupt):
            play(target(engine), closed(2, 2, output_tokens=10_000), on_progress=stop, workers=2)
        assert load_workers() == []
        engine.wait_for_running(0)


@pytest.mark.parametrize("plan", [closed(40, concurrency=6), open_loop(*range(0, 80, 2))])
def test_two_workers_share_the_requests(plan):
    with FakeEngine(Script(ttft_ms=10)) as engine:
        repeat = play(target(engine), plan, workers=2)
        assert engine.requests_received == 40
    assert [record.index for record in repeat.requests] == list(range(40))
    assert all(record.error is None for record in repeat.requests)
    assert repeat.client.workers == 2
    if plan.concurrency:
        assert most_at_once(repeat.requests) <= 6
    else:
        offsets = [record.scheduled_ns - repeat.started_ns for record in repeat.requests]
        assert offsets == [spec.offset_ns for spec in plan.requests]
        assert all(record.sent_ns >= record.scheduled_ns for record in repeat.requests)


def test_a_slot_rests_before_its_next_request():
    with FakeEngine() as engine:
        repeat = play(target(engine), closed(4, concurrency=2, think_ms=80), workers=2)
    assert [record.error for record in repeat.requests] == [None] * 4
    rest_ns = 80 * NS_PER_MS
    assert all(record.sent_ns >= repeat.started_ns + rest_ns for record in repeat.requests)
    # Four requests on two slots: at least one slot has had two rests.
    ends = sorted(record.ended_ns for record in repeat.requests)
    assert max(record.sent_ns for record in repeat.requests) >= ends[0] + rest_ns


def test_more_workers_than_requests_are_not_hired():
    with FakeEngine() as engine:
        repeat = play(target(engine), closed(requests=1, concurrency=3), workers=4)
    assert repeat.client.workers == 1


@pytest.mark.parametrize(("concurrency", "hired"), [(1, 1), (3, 3), (4, 4)])
def test_more_workers_than_streams_are_not_hired(concurrency, hired):
    with FakeEngine(Script(ttft_ms=10, itl_ms=5)) as engine:
        repeat = play(target(engine), closed(requests=12, concurrency=concurrency), workers=4)
    assert [record.error for record in repeat.requests] == [None] * 12
    assert repeat.client.workers == hired
    # Processors have no more to give: a worker without a request divided by no time at all.
    assert repeat.client.cpu_share <= 1.05


def test_no_workers_at_all_is_misuse():
    with pytest.raises(UsageError, match="0 load workers: give at least 1"):
        play(Target("http://127.0.0.1:1", "m"), closed(1, 1), workers=0)


def test_many_streams_at_once_want_more_workers(monkeypatch):
    monkeypatch.setattr("pytest_moeperf.driver.usable_cores", lambda: 8)
    sizes = {1: 1, 512: 1, 513: 2, 1025: 3, 100_000: 7}
    assert {n: workers_for(closed(1, concurrency=n)) for n in sizes} == sizes
    # Of an open loop, the tokens that are asked for within any one second.
    late = [9_000 + index % 1000 for index in range(501)]
    assert workers_for(open_loop(0, *late, output_tokens=100)) == 2
    assert workers_for(open_loop(*range(0, 501_000, 1000), output_tokens=100)) == 1
    monkeypatch.setattr("pytest_moeperf.driver.usable_cores", lambda: 1)
    assert workers_for(closed(1, concurrency=5000)) == 1


def test_arrivals_that_a_stopped_worker_missed_are_counted():
    release_idle()
    stopped = []

    def stop(_done, _total, _tokens):
        if engine.requests_running == 1 and not stopped:
            stopped.append(load_workers()[0])
            stopped[0].suspend()
            time.sleep(0.2)
            stopped[0].resume()

    with FakeEngine(Script(itl_ms=5)) as engine:
        plan = closed(requests=1, concurrency=1, output_tokens=300)
        repeat = play(target(engine), plan, on_progress=stop)
    assert stopped
    # Some 40 chunks came meanwhile, and the kernel keeps the time of the last.
    assert repeat.client.lost_arrivals >= 20
    assert "client_reads" in {finding.code for finding in find(repeat)}


def test_an_open_loop_finds_its_connections_open():
    with FakeEngine(Script(ttft_ms=400)) as engine:
        plan = open_loop(0, *range(1_600, 1_620))
        repeat = play(target(engine), plan, stall_timeout_s=10)
    lags_ns = [record.sent_ns - record.scheduled_ns for record in repeat.requests]
    # All were sent before the first of them was answered: each had a connection of its own.
    last_sent_ns = max(record.sent_ns for record in repeat.requests)
    assert last_sent_ns < min(record.chunk_ns[0] for record in repeat.requests[1:])
    assert min(lags_ns) >= 0


FEW_DESCRIPTORS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
from pytest_moeperf.loadgen import worker
worker.main(int(sys.argv[1]))
"""


def test_more_connections_than_the_system_allows_are_an_error(monkeypatch, tmp_path):
    release_idle()
    (tmp_path / "few_descriptors.py").write_text(FEW_DESCRIPTORS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("pytest_moeperf.loadgen.crew.WORKER", "few_descriptors")
    with FakeEngine() as engine:
        with pytest.raises(LoadError, match=r"no 300 connections: Too many open files"):
            play(target(engine), closed(300, 300))
        # A server that answers has taken all connections before, so it can close them.
        urlopen(f"{engine.url}/health").close()  # noqa: S310 - of this test


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_ends_the_load(workers):
    release_idle()

    def kill(_done, _total, _tokens):
        if engine.requests_running == 2:
            load_workers()[-1].kill()

    with FakeEngine(Script(itl_ms=20)) as engine:
        with pytest.raises(LoadError, match=r"^a load worker ended with exit code -9"):
            play(
                target(engine),
                closed(requests=4, concurrency=2, output_tokens=10_000),
                on_progress=kill,
                workers=workers,
            )
        assert load_workers() == []
        engine.wait_for_running(0)


def test_a_worker_that_cannot_start_is_told(monkeypatch, tmp_path):
    release_idle()
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho cannot start >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with (
        FakeEngine() as engine,
        pytest.raises(LoadError, match=r"^a load worker ended with exit code 3: cannot start$"),
    ):
        play(target(engine), closed(1, 1))


def test_a_module_in_the_current_folder_does_not_stand_in_for_pythons(monkeypatch, tmp_path):
    release_idle()
    (tmp_path / "select.py").write_text("raise RuntimeError('not this one')\n")
    monkeypatch.chdir(tmp_path)
    with FakeEngine() as engine:
        assert play(target(engine), closed(1, 1)).requests[0].error is None


PLAYER = """
import sys
from pytest_moeperf.client import Target
from pytest_moeperf.driver import play
from pytest_moeperf.records import RequestSpec
from pytest_moeperf.workload import Plan

requests = tuple(RequestSpec(index=i, prompt=(1,), output_tokens=100_000) for i in range(2))
play(Target(sys.argv[1], "mini-moe"), Plan(requests=requests, concurrency=2), workers=2)
"""


def test_workers_end_with_the_process_that_asked_for_the_load():
    with FakeEngine(Script(itl_ms=20)) as engine:
        player = subprocess.Popen([sys.executable, "-c", PLAYER, engine.url])
        try:
            wait_until(lambda: engine.requests_running == 2)
            workers = psutil.Process(player.pid).children()
        finally:
            player.kill()
            player.wait()
        assert len(workers) == 2
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert alive == []
        engine.wait_for_running(0)
