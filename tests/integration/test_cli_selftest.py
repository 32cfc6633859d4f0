"""The self-test with real processes and loads so small that nothing depends on speed."""

import json
import os
import socket
from argparse import Namespace
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from pytest_moeperf import selftest
from pytest_moeperf.cli.selftest import run_selftest
from pytest_moeperf.errors import LoadError

RATES = (200, 400)
CHUNKS = 6


@pytest.fixture
def check(capsys):
    """Run the self-test; gives exit code and JSON."""

    def run(**changes):
        code = run_selftest(Namespace(json=True), **{"rates": RATES, "chunks": CHUNKS} | changes)
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def servers(monkeypatch):
    """Every scripted server that is started."""
    started = []
    enter = selftest.PacedServer.__enter__

    def note(server):
        started.append(server)
        return enter(server)

    monkeypatch.setattr(selftest.PacedServer, "__enter__", note)
    return started


def is_open(server):
    address = urlsplit(server.url)
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) == 0


def test_every_load_is_compared_with_what_was_sent(servers):
    steps = list(selftest.run(RATES, chunks=CHUNKS))
    assert [(step.rate, step.mode) for step in steps] == [
        (200, "spread"),
        (200, "step"),
        (400, "spread"),
        (400, "step"),
    ]
    # 200 chunks a second are two streams at one chunk in 10 ms.
    assert [step.accuracy.chunks_sent for step in steps] == [12, 12, 24, 24]
    assert [step.accuracy.chunks_seen for step in steps] == [12, 12, 24, 24]
    for step in steps:
        assert step.accuracy.stamp_delay_ms_p50 > 0
        assert step.accuracy.ttft_ms_p50.true >= 50
        assert step.accuracy.ttft_ms_p50.seen >= step.accuracy.ttft_ms_p50.true
        assert step.client.workers == 1
    assert len(servers) == 2
    assert not any(is_open(server) for server in servers)


def test_json_has_every_figure(check):
    code, document = check(rates=(200,))
    assert (code == 0) == (document["chunks_per_s_limit"] == 200)
    assert [step["mode"] for step in document["steps"]] == ["spread", "step"]
    for step in document["steps"]:
        assert step["ok"] == (step["verdict"] == "ok")
        assert step["accuracy"]["chunks_sent"] == step["accuracy"]["chunks_seen"] == 12
        assert step["client"]["timestamps"] in {"kernel", "mixed", "read"}


def test_a_wrong_truth_is_noticed(check, monkeypatch):
    """The server's gaps are made a fifth longer than they were: the client must look wrong."""
    flush = selftest.PacedServer.flush

    def stretched(server):
        truth = flush(server)
        begin = int(truth.arrivals.start_ns.min())
        later = begin + (truth.arrivals.chunk_ns - begin) * 6 // 5
        return replace(truth, arrivals=replace(truth.arrivals, chunk_ns=later))

    monkeypatch.setattr(selftest.PacedServer, "flush", stretched)
    monkeypatch.setattr(selftest, "TRIES", 1)
    code, document = check(rates=(200,))
    assert code == 1
    assert document["chunks_per_s_limit"] is None
    for step in document["steps"]:
        assert step["verdict"].startswith("client limited: ")
        assert "throughput +" in step["verdict"]
        assert "ITL p50 -" in step["verdict"]


def test_an_interrupt_leaves_no_server(monkeypatch, servers):
    def interrupt(*_args, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr(selftest, "play", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_selftest(Namespace(json=True), rates=RATES, chunks=CHUNKS)
    assert len(servers) == 2
    assert not any(is_open(server) for server in servers)


def test_a_load_that_was_not_seen_as_it_was_is_tried_again(monkeypatch):
    played = []
    play = selftest.play

    def note(target, plan, **named):
        played.append(len(plan.requests))
        return play(target, plan, **named)

    monkeypatch.setattr(selftest, "play", note)
    monkeypatch.setattr(selftest.Step, "ok", property(lambda _: len(played) in {2, 5}))
    steps = list(selftest.run(RATES, modes=("step",), chunks=CHUNKS))
    assert played == [2, 2, 4, 4, 4]
    assert [step.rate for step in steps] == [200, 400]


def test_failed_requests_are_one_line(monkeypatch):
    play = selftest.play

    def failing(*args, **named):
        repeat = play(*args, **named)
        broken = replace(repeat.requests[0], error="connection lost")
        return replace(repeat, requests=(broken, *repeat.requests[1:]))

    monkeypatch.setattr(selftest, "play", failing)
    with pytest.raises(
        LoadError, match=r"^1 of 2 requests failed at 200 chunks/s: connection lost$"
    ):
        run_selftest(Namespace(json=True), rates=(200,), chunks=CHUNKS)


def test_the_affinity_of_the_caller_is_restored(check):
    before = os.sched_getaffinity(0)
    check(rates=(200,))
    assert os.sched_getaffinity(0) == before
