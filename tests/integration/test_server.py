"""Servers from start to end, with a fake engine in the engine's place."""

import http.client
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from pytest_moeperf.engines import engine_of_metrics
from pytest_moeperf.errors import (
    ServerDiedError,
    ServerHungError,
    ServerStartError,
    StorageError,
    UsageError,
)
from pytest_moeperf.guardian import process_table
from pytest_moeperf.launch import start_server
from pytest_moeperf.records import EngineInstall, RepeatRecord
from pytest_moeperf.server import attach_server
from pytest_moeperf.testing import FakeEngine, Script

SESSION = """\
import pickle, sys, time
from pathlib import Path
from pytest_moeperf.launch import start_server
spec, model, machine, log_dir = pickle.loads(sys.stdin.buffer.read())
server = start_server(spec, model, machine, log_dir=log_dir)
print(server.pid, server.port, flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(make_spec, model, machine, tmp_path):
    """Starts servers by script, and ends them after the test."""
    started = []

    def start_scripted(*, timeout_s=20.0, port=None, on_progress=None, **script):
        server = start_server(
            make_spec(**script),
            model,
            machine,
            log_dir=tmp_path / "logs",
            timeout_s=timeout_s,
            port=port,
            on_progress=on_progress,
        )
        started.append(server)
        return server

    yield start_scripted
    for server in started:
        server.stop()


def complete(server):
    body = json.dumps({"model": server.model, "prompt": [1, 2, 3], "max_tokens": 4})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        return json.load(connection.getresponse())
    finally:
        connection.close()


def members(pgid):
    return [p.pid for p in process_table().values() if p.group == pgid and not p.zombie]


def wait_for(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def test_a_server_is_ready_with_its_facts_and_ends_without_a_trace(start):
    phases = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = start(port=port, on_progress=phases.append, start_delay_s=0.3)
    assert server.url == f"http://127.0.0.1:{port}"
    assert server.startup_s >= 0.3
    assert server.facts.kv_cache_tokens == 131_072
    assert server.install.label == "vllm==0.32.0"
    assert server.context_tokens == 2048
    assert server.environment["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"
    assert server.environment["kernel"].startswith("Linux")
    assert phases[0] == "loading the engine"
    server.check_alive()
    assert complete(server)["usage"]["completion_tokens"] == 4

    assert server.stop() < 10
    assert server.shutdown.clean
    assert not members(server.pid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", server.port))


def test_workers_that_ignore_sigterm_are_killed_and_reported(start):
    server = start(child_processes=2)
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: not server.alive)
    with pytest.raises(ServerDiedError, match="exit code: -9"):
        server.check_alive()
    server.stop()
    assert server.shutdown.killed == 2
    assert not members(server.pid)


def test_an_observation_has_the_growth_of_counters_and_the_log_of_the_play(start):
    server = start(load_log=("WARNING Triton kernel JIT compilation during inference: k",))
    with server.observe() as observed:
        complete(server)
    repeat = observed.complete(RepeatRecord(requests=(), started_ns=1, ended_ns=2))
    assert repeat.counters["prompt_tokens"] == 3
    assert repeat.counters["generation_tokens"] == 4
    assert any("during inference" in line for line in repeat.log)
    assert server.reset_prefix_cache()


def test_a_server_that_dies_under_load_is_reported_with_its_last_words(start):
    server = start(die_after_requests=0, die_exit_code=3, die_log=("RuntimeError: out of memory",))
    with pytest.raises((OSError, http.client.HTTPException)):
        complete(server)
    wait_for(lambda: not server.alive)
    with pytest.raises(ServerDiedError) as caught:
        server.check_alive()
    assert caught.value.message == (
        "mini-moe: the server died while in use: RuntimeError: out of memory"
    )
    assert caught.value.exit_code == 3
    assert "vllm.entrypoints.openai.api_server" in caught.value.command
    assert caught.value.log_tail[-1] == "RuntimeError: out of memory"
    with pytest.raises(ServerDiedError):
        server.counters()


def test_a_server_that_does_not_answer_any_more_is_hung(start, monkeypatch):
    server = start()
    os.kill(server.pid, signal.SIGSTOP)
    monkeypatch.setattr("pytest_moeperf.server.ANSWER_S", 0.3)
    with pytest.raises(ServerHungError, match="/metrics does not answer: timed out"):
        server.counters()
    os.kill(server.pid, signal.SIGCONT)


def test_an_engine_that_dies_at_start_is_quoted(start):
    with pytest.raises(ServerStartError) as caught:
        start(start_exit_code=1, start_log=("ValueError: no such architecture",))
    message, *evidence = str(caught.value).splitlines()
    assert message == (
        "mini-moe: the engine ended before it was ready: ValueError: no such architecture"
    )
    assert "  exit code: 1" in evidence
    assert "    ValueError: no such architecture" in evidence


def test_an_engine_that_never_gets_ready_is_stopped_after_the_timeout(start):
    with pytest.raises(ServerStartError, match=r"mini-moe: not ready after 1 s \(.*\); it was st"):
        start(start_hang=True, timeout_s=1.0)
    assert not guardians()


def guardians():
    """Guardians that this process has running."""
    return [
        child.pid
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "guardian.py" in " ".join(child.cmdline())
    ]


def test_ctrl_c_during_a_start_leaves_nothing(start):
    seen = []

    def interrupt(phase):
        seen.append(phase)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(start_hang=True, on_progress=interrupt)
    assert seen
    assert not guardians()


def test_a_taken_port_is_named(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError) as caught:
            start(port=port)
    assert str(caught.value) == (
        f"--server-port {port}: cannot be used on 127.0.0.1: Address already in use; "
        "choose another, or leave the option out for a free one"
    )


def test_a_flag_that_the_engine_lacks_is_refused_before_any_start(
    make_spec, model, machine, tmp_path
):
    spec = make_spec(flags=("--moe-backnd", "triton"))
    with pytest.raises(UsageError, match="did you mean --moe-backend"):
        start_server(spec, model, machine, log_dir=tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_an_interpreter_that_is_none_is_an_error(make_spec, model, machine, tmp_path):
    install = EngineInstall(engine="vllm", version="1", python=tmp_path / "python")
    with pytest.raises(ServerStartError, match="not a working Python interpreter"):
        start_server(make_spec().on(install), model, machine, log_dir=tmp_path)


def test_a_log_folder_that_cannot_be_made_is_named(make_spec, model, machine, tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(StorageError, match="no server log can be written"):
        start_server(make_spec(), model, machine, log_dir=tmp_path / "logs")


def test_secrets_are_masked_in_the_log_and_in_errors(make_spec, model, machine, tmp_path):
    spec = make_spec(
        start_exit_code=1,
        start_log=("HTTPError: token hf_abcdef123 refused",),
        env=(("HF_TOKEN", "hf_abcdef123"),),
        flags=("--quantization", "hf_abcdef123"),
    )
    with pytest.raises(ServerStartError) as caught:
        start_server(spec, model, machine, log_dir=tmp_path)
    assert "hf_abcdef123" not in str(caught.value)
    assert "HTTPError: token *** refused" in str(caught.value)


def test_a_killed_session_leaves_no_server(make_spec, model, machine, tmp_path):
    payload = pickle.dumps((make_spec(child_processes=2), model, machine, tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", SESSION], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as session:
        session.stdin.write(payload)
        session.stdin.close()
        pid, port = (int(word) for word in session.stdout.readline().split())
        assert len(members(pid)) == 3
        session.kill()
    wait_for(lambda: not members(pid))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def attach(make_spec, url, model="mini-moe"):
    install = EngineInstall(engine="vllm", url=url)
    return attach_server(make_spec().on(install), install, model=model)


def test_an_attached_server_is_used_as_it_is_and_not_stopped(make_spec):
    with FakeEngine(Script(max_model_len=512)) as engine:
        server = attach(make_spec, engine.url)
        assert server.install.version == "0.32.0"
        assert server.context_tokens == 512
        assert server.startup_s is None
        assert server.log_path is None
        server.check_alive()
        with server.observe() as observed:
            complete(server)
        assert observed.counters["generation_tokens"] == 4
        assert server.stop() == 0
        assert complete(server)


def test_nothing_at_the_attached_url_is_named(make_spec):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(UsageError) as caught:
        attach(make_spec, url)
    assert str(caught.value) == (
        f"--engine vllm={url}: no server answers there ([Errno 111] Connection refused); "
        "start it or correct the URL"
    )


def test_an_attached_server_of_another_model_is_named(make_spec):
    with (
        FakeEngine(model="other") as engine,
        pytest.raises(UsageError, match="serves other, not mini-moe; start it with --served-mod"),
    ):
        attach(make_spec, engine.url)


def test_an_attached_server_of_another_kind_is_refused(make_spec):
    with (
        FakeEngine() as engine,
        pytest.raises(UsageError, match="answers HTTP 404 without a model"),
    ):
        attach(make_spec, engine.url + "/elsewhere")


@pytest.mark.parametrize(("typed", "runs"), [("vllm", "sglang"), ("sglang", "vllm")])
def test_an_attached_server_of_the_other_engine_is_told_by_its_metrics(make_spec, typed, runs):
    with FakeEngine(engine=runs) as engine:
        install = EngineInstall(engine=typed, url=engine.url)
        with pytest.raises(UsageError) as caught:
            attach_server(make_spec().on(install), install, model="mini-moe")
    assert str(caught.value) == (
        f"--engine {typed}={engine.url}: its /metrics are those of {runs}; "
        f"use --engine {runs}={engine.url}"
    )


def test_metrics_of_no_engine_or_of_both_tell_none():
    assert engine_of_metrics("") is None
    assert engine_of_metrics("# HELP vllm:x x\nprocess_cpu_seconds_total 1.0\n") is None
    assert engine_of_metrics('vllm:a{b="c"} 1.0\nsglang:a 1.0\n') is None
    assert engine_of_metrics('# TYPE vllm:a gauge\nvllm:a{b="c"} 1.0\n') == "vllm"


def test_counters_of_an_attached_server_without_metrics_are_empty(make_spec):
    with FakeEngine() as engine:
        server = replace(attach(make_spec, engine.url), url=engine.url + "/elsewhere")
        assert server.counters() == {}
        assert not server.reset_prefix_cache()
