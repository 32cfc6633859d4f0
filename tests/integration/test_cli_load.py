from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys

import pytest

from pytest_moeperf import driver
from pytest_moeperf.cli import main
from pytest_moeperf.records import ClientRecord
from pytest_moeperf.testing import FakeEngine, Script


@pytest.fixture(scope="module")
def engine():
    with FakeEngine(Script(max_model_len=256)) as engine:
        yield engine


@pytest.fixture
def load(engine, capsys):
    """Run `moeperf load` against the fake engine; gives exit code, output and errors."""

    def run(*args, url=engine.url):
        sizes = {"--isl": "8", "--osl": "4", "--requests": "6"}
        wanted = {} if {"--trace", "--selftest"} & set(args) else sizes
        given = [word for pair in wanted.items() if pair[0] not in args for word in pair]
        code = main(["load", *(["--url", url] if url else []), *given, *args])
        return code, *capsys.readouterr()

    return run


CLIENT = ClientRecord(
    workers=1,
    timestamps="kernel",
    cpu_s=0.01,
    cpu_share=0.03,
    read_lag_ms_p50=0.01,
    read_lag_ms_p99=0.0234,
    reads=24,
    merged_reads=0,
    lost_arrivals=0,
    clock_step_ms=0.0,
)


@pytest.fixture
def client(monkeypatch):
    """Replaces what the client says of itself; gives what it was asked to do."""
    asked = {}
    play = driver.play

    def use(**changes):
        def played(target, plan, **settings):
            asked.update(target=target, plan=plan, **settings)
            repeat = play(target, plan, **settings)
            return dataclasses.replace(repeat, client=dataclasses.replace(CLIENT, **changes))

        monkeypatch.setattr(driver, "play", played)
        return asked

    return use


@pytest.fixture(autouse=True)
def quiet(client):
    """What a busy machine does to the client is no matter of these tests."""
    client()


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "calls.csv"
    path.write_text("time_s,input_tokens,output_tokens\n10,5,3\n10.1,7,2\n10.05,6,1\n")
    return str(path)


def test_the_table_has_a_row_for_every_metric_that_was_measured(load):
    code, out, err = load("--closed", "2")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].endswith(": 2 at a time, 8 in, 4 out")
    assert lines[1].startswith("6 of 6 requests completed in ")
    assert lines[3].split() == ["mean", "p50", "p90", "p99"]
    labels = [line[:20].strip() for line in lines[4:]]
    assert labels[:3] == ["TTFT", "TPOT", "ITL per token"]
    assert "Output throughput" in labels
    assert "Goodput" not in labels
    assert err == ""


TIMED_BY_THE_KERNEL = (
    "Arrivals by receive time stamps of the kernel; 1 worker on 3 % of a core, "
    "read lag p99 0.0234 ms"
)


def test_the_table_ends_with_how_arrivals_were_timed(load, client):
    assert load()[1].splitlines()[-2:] == [
        "",
        TIMED_BY_THE_KERNEL,
    ]
    client(timestamps="read", workers=3, cpu_share=0.5, read_lag_ms_p99=None)
    assert load()[1].splitlines()[-1] == (
        "Arrivals by the clock when data was read; 3 workers, the busiest on 50 % of a core"
    )
    client(timestamps="mixed", read_lag_ms_p99=None)
    assert load()[1].splitlines()[-1] == (
        "Arrivals by receive time stamps of the kernel, some by the clock when data was read; "
        "1 worker on 3 % of a core"
    )


def test_a_play_that_cannot_be_trusted_says_why_and_fails_the_command(load, client):
    client(clock_step_ms=500.0)
    code, out, _ = load()
    assert code == 1
    invalid, *others = [line for line in out.splitlines() if line.startswith("INVALID: ")]
    assert "500" in invalid
    assert others == []
    assert out.splitlines()[-1] == invalid
    code, out, _ = load("--json")
    document = json.loads(out)
    assert code == 1
    assert document["valid"] is False
    (finding,) = document["findings"]
    assert f"INVALID: {finding['message']}; {finding['advice']}" == invalid


def test_json_is_one_object_with_every_metric(load):
    code, out, _ = load("--closed", "3", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["model"] == "mini-moe"
    assert document["workload"] == "closed-c3-isl8-osl4-n6"
    assert document["requests"] == 6
    assert document["errors"] == {}
    assert document["metrics"]["failed_requests"] == 0
    assert document["metrics"]["goodput"] is None
    assert document["metrics"]["tokens_per_chunk.mean"] == 1.0
    assert document["valid"] is True
    assert document["findings"] == []
    assert document["client"] == dataclasses.asdict(CLIENT)


def test_a_burst_with_objectives_gives_goodput(load):
    _, out, _ = load("--burst", "--slo", "ttft_ms=10000", "--slo", "e2el_ms=20000", "--json")
    assert json.loads(out)["metrics"]["goodput_share"] == 1.0


@pytest.mark.parametrize(
    ("args", "slug"),
    [
        ([], "closed-c1-isl8-osl4-n6"),
        (["--closed", "3", "--think", "0.01"], "closed-c3-isl8-osl4-n6-think0.01"),
        (
            ["--think", "0.01", "--think-kind", "exponential", "--seed", "4"],
            "closed-c1-isl8-osl4-n6-think-exp0.01-s4",
        ),
        (["--rate", "200", "--arrivals", "constant"], "constant-r200-isl8-osl4-n6"),
        (["--rate", "100", "--ramp-to", "300"], "poisson-r100to300-isl8-osl4-n6"),
        (
            ["--rate", "300", "--arrivals", "gamma", "--burstiness", "2", "--seed", "1"],
            "gamma2-r300-isl8-osl4-n6-s1",
        ),
        (["--shared-prefix", "2x5"], "closed-c1-isl8-osl4-n6-prefix2x5"),
    ],
)
def test_options_make_the_workload_that_they_say(load, args, slug):
    _, out, _ = load(*args, "--json")
    assert json.loads(out)["workload"] == slug


def test_a_closed_loop_rests_between_its_requests(load, client):
    asked = client()
    load("--closed", "4", "--think", "0.01")
    assert [each.think_ns for each in asked["plan"].requests] == [0] * 4 + [10_000_000] * 2


def test_a_trace_is_replayed(load, client, trace):
    asked = client()
    _, out, _ = load("--trace", trace, "--speed", "2", "--json")
    assert json.loads(out)["workload"] == "trace-calls-x2"
    assert [
        (each.offset_ns, len(each.prompt), each.output_tokens) for each in asked["plan"].requests
    ] == [(0, 5, 3), (25_000_000, 6, 1), (50_000_000, 7, 2)]


def test_a_trace_may_be_cut_short(load, trace):
    _, out, _ = load("--trace", trace, "--requests", "2", "--json")
    assert json.loads(out)["requests"] == 2


def test_prompts_of_a_group_share_their_prefix(load, client):
    asked = client()
    load("--shared-prefix", "2x5")
    prompts = [tuple(each.prompt) for each in asked["plan"].requests]
    assert len({prompt[:5] for prompt in prompts}) == 2
    assert len(set(prompts)) == 6


@pytest.mark.parametrize(
    ("args", "workers"),
    [([], None), (["--client-workers", "auto"], None), (["--client-workers", "2"], 2)],
)
def test_workers_are_as_many_as_asked(load, client, args, workers):
    asked = client()
    load(*args)
    assert asked["workers"] == workers


def test_connection_set_up_counts_when_asked(load, client):
    asked = client()
    load()
    assert asked["target"].include_connect is False
    load("--include-connect")
    assert asked["target"].include_connect is True


def test_a_result_is_exported_in_the_form_of_others(load, tmp_path):
    ours, theirs = tmp_path / "new" / "vllm.json", tmp_path / "sglang.json"
    code, _, _ = load("--export", f"vllm={ours}", "--export", f"sglang={theirs}")
    assert code == 0
    assert json.loads(ours.read_text())["completed"] == 6
    assert json.loads(theirs.read_text())["completed"] == 6


def test_the_self_test_needs_no_server(load, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "pytest_moeperf.cli.selftest.run_selftest", lambda args: calls.append(args.json) or 7
    )
    assert load("--selftest", "--json", url=None) == (7, "", "")
    assert calls == [True]


@pytest.fixture
def placed(trace, tmp_path):
    """Puts paths in the place of TRACE and FOLDER."""
    (tmp_path / "wrong.csv").write_text("time_s,input_tokens,output_tokens\n1,2,\n")
    return lambda word: word.replace("TRACE", trace).replace("FOLDER", str(tmp_path))


HEAVY = ("jsonschema", "numpy", "platformdirs", "psutil", "rich", "scipy", "uv")


def test_nothing_heavy_is_loaded_before_the_first_request(engine):
    code = f"""
import sys
from pytest_moeperf import cli, driver

def play(*args, **settings):
    print("playing", *set({HEAVY!r}) & sys.modules.keys())
    raise KeyboardInterrupt

driver.play = play
cli.main(["load", "--url", {engine.url!r}])
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.split() == ["playing"]


def test_the_v1_of_a_pasted_url_is_dropped(load, engine):
    code, out, _ = load("--json", url=f"{engine.url}/v1/")
    assert code == 0
    assert json.loads(out)["url"] == engine.url


def test_prompts_come_from_a_sharegpt_file(load, tmp_path):
    path = tmp_path / "chats.json"
    turns = [{"from": "human", "value": "How far is it?"}, {"from": "gpt", "value": "Not far."}]
    path.write_text(json.dumps([{"conversations": turns}]))
    code, out, _ = load("--sharegpt", str(path), "--json")
    assert code == 0
    assert json.loads(out)["workload"].endswith("-sharegpt-chats")


def test_failed_requests_are_counted_by_reason_and_fail_the_command(load):
    with FakeEngine(Script(error_status=500, error_every=2)) as failing:
        code, out, _ = load(url=failing.url)
    assert code == 1
    assert "3 of 6 requests completed" in out
    assert "  3 failed: HTTP 500: scripted failure\n" in out


def test_the_key_of_the_environment_is_used(load, monkeypatch):
    monkeypatch.setenv("MOEPERF_API_KEY", "secret")
    with FakeEngine(Script(api_key="secret")) as locked:
        code, out, err = load(url=locked.url)
    assert code == 0
    assert "secret" not in out + err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "other"], "--model other: {url} serves mini-moe"),
        # What means nothing without another option.
        (["--arrivals", "gamma"], "--arrivals shapes an open loop: add --rate R"),
        (["--burst", "--burstiness", "2"], "--burstiness shapes an open loop: add --rate R"),
        (["--ramp-to", "9"], "--ramp-to changes the rate of an open loop: add --rate R"),
        (["--think-kind", "constant"], "--think-kind says how rests vary: add --think S"),
        (["--rate", "5", "--speed", "2"], "--speed speeds up a trace: add --trace FILE"),
        (
            ["--rate", "5", "--burstiness", "2"],
            "--burstiness 2 shapes gamma arrivals: add --arrivals gamma",
        ),
        # What contradicts another option.
        (["--rate", "5", "--think", "1"], "--think rests between the requests of a closed loop"),
        (["--burst", "--think", "1"], "of a closed loop: drop --burst"),
        (["--trace", "TRACE", "--think", "1"], "of a closed loop: drop --trace"),
        (["--trace", "TRACE", "--isl", "8"], "--trace brings lengths of its own and takes ran"),
        (["--trace", "TRACE", "--osl", "8"], "takes random prompts: drop --osl"),
        (["--trace", "TRACE", "--sharegpt", "a"], "random prompts: drop --sharegpt"),
        (["--trace", "TRACE", "--shared-prefix", "2x2"], "prompts: drop --shared-prefix"),
        (
            ["--sharegpt", "a", "--shared-prefix", "2x2"],
            "--sharegpt brings prompts of its own: drop --shared-prefix",
        ),
        (["--sharegpt", "a", "--vocab-size", "99"], "of its own: drop --vocab-size"),
        # Values that cannot be.
        (["--osl", "300"], "needs 8 + 300 = 308 tokens, the model's context has 256"),
        (
            ["--shared-prefix", "8"],
            "--shared-prefix 8: give groups and tokens, both above 0, e.g. 4x512",
        ),
        (["--shared-prefix", "0x5"], "--shared-prefix 0x5: give groups and tokens, both above 0"),
        (["--shared-prefix", "2x9"], "prefix = 9 in a workload: prompts have only isl = 8"),
        (["--shared-prefix", "6x2"], "groups = 6 in a workload: with requests = 6 no two share"),
        (["--vocab-size", "10"], "--vocab-size 10: prompts take ids from 10 up, so give more"),
        (["--client-workers", "0"], "--client-workers 0: give a number from 1 up, or auto"),
        (["--client-workers", "many"], "--client-workers many: give a number"),
        (["--slo", "ttft=5"], "--slo ttft=5: give NAME=MS with one of ttft_ms, tpot_ms, e2el_ms"),
        (["--slo", "ttft_ms=soon"], "--slo ttft_ms=soon: give NAME=MS"),
        (["--slo", "ttft_ms=5", "--slo", "ttft_ms=6"], "--slo ttft_ms=6: ttft_ms is given twice"),
        (["--slo", "ttft_ms=0"], "--slo ttft_ms=0: give a number of milliseconds above 0"),
        (["--slo", "ttft_ms=nan"], "--slo ttft_ms=nan: give a number of milliseconds above 0"),
        (["--export", "csv=a"], "--export csv=a: give FORMAT=FILE with one of vllm, sglang"),
        (["--export", "vllm="], "--export vllm=: give FORMAT=FILE"),
        (["--export", "vllm=FOLDER"], "is a folder; give a file"),
        (
            ["--export", "vllm=FOLDER/a", "--export", "sglang=FOLDER/a"],
            "each format and each file can be given once",
        ),
        (["--trace", "FOLDER/wrong.csv"], "wrong.csv:2: no output_tokens"),
        (["--trace", "FOLDER/no.csv"], "no.csv: cannot be read, No such file or directory"),
        (["--sharegpt", "FOLDER/no.json"], "no.json: cannot be read, No such file or directory"),
        (["--selftest"], "--selftest plays a load of its own against a server of its own: drop"),
        (["--selftest", "--rate", "4"], "drop --"),
    ],
    ids=" ".join,
)
def test_misuse_is_one_line_and_exit_code_2(load, engine, placed, args, message):
    code, out, err = load(*map(placed, args))
    assert (code, out) == (2, "")
    assert message.format(url=engine.url) in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--closed", "0"], "argument --closed: '0' is not a whole number from 1 on"),
        (["--isl", "x"], "argument --isl: 'x' is not a whole number from 1 on"),
        (["--osl", "-1"], "argument --osl: '-1' is not a whole number from 1 on"),
        (["--requests", "1.5"], "argument --requests: '1.5' is not a whole number from 1 on"),
        (["--vocab-size", "0"], "argument --vocab-size: '0' is not a whole number from 1 on"),
        (["--seed", "one"], "argument --seed: 'one' is not a whole number"),
        (["--rate", "-1"], "argument --rate: '-1' is not a number above 0"),
        (["--rate", "5", "--ramp-to", "0"], "argument --ramp-to: '0' is not a number above 0"),
        (["--burstiness", "inf"], "argument --burstiness: 'inf' is not a number above 0"),
        (["--speed", "fast"], "argument --speed: 'fast' is not a number above 0"),
        (["--think", "nan"], "argument --think: 'nan' is not a number above 0"),
        (["--stall-timeout", "0"], "argument --stall-timeout: '0' is not a number above 0"),
        (["--rate", "5", "--arrivals", "weekly"], "argument --arrivals: invalid choice: 'weekly'"),
        (["--think-kind", "deep"], "argument --think-kind: invalid choice: 'deep'"),
    ],
    ids=" ".join,
)
def test_a_bad_value_is_quoted_as_it_was_typed(load, capsys, args, message):
    with pytest.raises(SystemExit, match="2"):
        load(*args)
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--shared-prefix", "2x9"], "prefix = 9 in a workload: prompts have only isl = 8"),
        (["--trace", "nowhere.csv"], "nowhere.csv: cannot be read, No such file or directory"),
        (["--sharegpt", "nowhere.json"], "nowhere.json: cannot be read, No such file"),
    ],
    ids=" ".join,
)
def test_a_workload_that_cannot_be_is_told_before_a_server_is_asked(
    load, monkeypatch, args, message
):
    def ask(*_, **__):
        raise AssertionError("the server was asked")

    monkeypatch.setattr("pytest_moeperf.client.served_models", ask)
    assert message in load(*args)[2]


def test_a_load_without_a_server_is_misuse(load):
    code, out, err = load(url=None)
    assert (code, out) == (2, "")
    assert "--url is missing: give the server's, e.g. --url http://127.0.0.1:8000\n" in err


@pytest.mark.parametrize(
    ("args", "beside"),
    [
        (["--json"], None),
        (["--seed", "3"], "--seed"),
        (["--burst"], "--burst"),
        (["--isl", "4"], "--isl"),
        (["--stall-timeout", "3"], "--stall-timeout"),
        (["--include-connect"], "--include-connect"),
        (["--slo", "ttft_ms=1"], "--slo"),
    ],
)
def test_the_self_test_takes_no_other_option(load, monkeypatch, args, beside):
    monkeypatch.setattr("pytest_moeperf.cli.selftest.run_selftest", lambda _args: 0)
    code, _, err = load("--selftest", *args, url=None)
    assert (code, err.endswith(f"drop {beside}\n")) == ((0, False) if beside is None else (2, True))


def test_kinds_of_load_exclude_each_other(load, capsys):
    with pytest.raises(SystemExit, match="2"):
        load("--rate", "3", "--burst")
    err = capsys.readouterr().err
    assert "argument --burst: not allowed with argument --rate" in err
    assert err.count("\n") == 1


def test_a_file_that_cannot_be_written_is_told_before_the_load(load, tmp_path, client):
    asked = client()
    (tmp_path / "file").write_text("")
    code, _, err = load("--export", f"vllm={tmp_path}/file/result.json")
    assert code == 2
    assert "a file is in the place of one of its folders" in err
    assert asked == {}


def test_an_export_goes_into_a_pipe(load, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        code, _, err = load("--export", f"vllm={tmp_path}/pipe")
        assert (code, err) == (0, "")
        assert json.loads(os.read(reader, 100_000))["completed"] == 6
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("typed", ["http://", "nowhere:8000", "http://h:0/"])
def test_a_url_is_quoted_as_it_was_typed(load, typed):
    assert load(url=typed) == (
        2,
        "",
        (
            f"moeperf: error: --url {typed!r} is not a server's URL; give one such as "
            "http://127.0.0.1:8000\n"
        ),
    )


def test_a_url_without_a_server_is_one_line_and_exit_code_2(load):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        code, _, err = load(url=url)
    assert code == 2
    assert err.startswith(f"moeperf: error: no server at {url}: cannot connect to 127.0.0.1:")
    assert err.count("\n") == 1


def test_a_hanging_server_ends_the_command(load):
    with FakeEngine(Script(hang_after_requests=2)) as hanging:
        code, _, err = load("--stall-timeout", "0.3", url=hanging.url)
    assert code == 1
    assert "sent no token for" in err
