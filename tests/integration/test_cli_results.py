"""`moeperf results` as it is typed."""

import json
from pathlib import Path

import pytest

from pytest_moeperf.cli import main
from pytest_moeperf.metrics import KEYS
from pytest_moeperf.testing import FakeEngine, Script

DATA = Path(__file__).parents[1] / "data" / "results"

OURS = {
    "url": "http://host:8000",
    "model": "mini-moe",
    "workload": "closed-c1-isl32-osl4-n3",
    "metrics": {"ttft_ms.p50": 40.0, "output_throughput": 80.0, "failed_requests": 0},
}
VLLM = {
    "model_id": "mini-moe",
    "tokenizer_id": "mini-moe",
    "request_rate": "inf",
    "max_concurrency": 1,
    "duration": 10.0,
    "completed": 1000,
    "failed": 0,
    "median_ttft_ms": 50.0,
    "p99_ttft_ms": 61.5,
    "output_throughput": 60.0,
}


@pytest.fixture(autouse=True)
def stored(tmp_path, monkeypatch):
    """A working directory with a result of ours, one of vLLM and three of SGLang."""
    monkeypatch.chdir(tmp_path)
    Path("ours.json").write_text(json.dumps(OURS, indent=1))
    Path("vllm.json").write_text(json.dumps(VLLM))
    runs = [
        {
            "completed": 5,
            "duration": 1.0,
            "total_output_tokens_retokenized": 40,
            "backend": "sglang-oai",
            "request_rate": float("inf"),
            "max_concurrency": 1,
            "median_ttft_ms": median,
        }
        for median in (10.0, 20.0, 30.0)
    ]
    Path("sglang.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))


@pytest.fixture
def results(capsys):
    """Runs the command; gives exit code, output and error output."""

    def run(*arguments):
        code = main(["results", *arguments])
        return code, *capsys.readouterr()

    return run


def test_the_table_has_a_column_a_file_and_its_ratio_to_the_first(results):
    code, out, err = results("ours.json", "vllm.json")
    assert (code, err) == (0, "")
    assert out.splitlines()[:8] == [
        "1  ours.json (moeperf, mini-moe)",
        "2  vllm.json (vllm, mini-moe)",
        "",
        "                                            1        2    2 ÷ 1",
        "TTFT p50                  ms             40.0     50.0    1.250",
        "TTFT p99                  ms                –     61.5        –",
        "Output throughput         tok/s          80.0     60.0    0.750",
        "Failed requests           requests          0        0        –",
    ]


def test_each_note_stands_once_with_the_files_that_it_concerns(results):
    _, out, _ = results("ours.json", "sglang.jsonl", "vllm.json", "sglang.jsonl:1")
    notes = out.partition("\n\n")[2].partition("\n\n")[2].splitlines()
    assert notes[0].startswith("2, 4: its E2EL and TPOT count to the closing message")
    assert any(note.startswith("3: a request whose tokens all came in one chunk") for note in notes)
    assert not any(note.startswith("1") for note in notes)
    assert out.endswith(notes[-1] + "\n")


def test_one_file_needs_no_ratio(results):
    code, out, _ = results("ours.json")
    assert code == 0
    assert out.splitlines()[2:] == [
        "                                            1",
        "TTFT p50                  ms             40.0",
        "Output throughput         tok/s          80.0",
        "Failed requests           requests          0",
    ]


@pytest.mark.parametrize(
    ("file", "name", "median"),
    [
        ("sglang.jsonl", "sglang.jsonl:3", 30.0),
        ("sglang.jsonl:1", "sglang.jsonl:1", 10.0),
        ("sglang.jsonl:2", "sglang.jsonl:2", 20.0),
        ("ours.json:1", "ours.json:1", 40.0),
    ],
)
def test_of_several_results_in_a_file_the_last_counts_or_the_one_asked_for(
    results, file, name, median
):
    _, out, _ = results(file, "--json")
    (result,) = json.loads(out)["results"]
    assert result["name"] == name
    assert result["values"]["ttft_ms.p50"] == median


def test_a_file_may_be_called_like_a_numbered_one(results):
    Path("ours.json").rename("run:2")
    code, out, _ = results("run:2")
    assert code == 0
    assert out.startswith("1  run:2 (moeperf, mini-moe)")


def test_json_has_every_metric_of_every_file(results):
    code, out, _ = results("ours.json", "vllm.json", "--json")
    assert code == 0
    ours, vllm = json.loads(out)["results"]
    assert set(ours["values"]) == set(vllm["ratios"]) == set(KEYS)
    assert (ours["tool"], vllm["tool"]) == ("moeperf", "vllm")
    assert vllm["ratios"]["ttft_ms.p50"] == 1.25
    assert vllm["ratios"]["failed_requests"] is None  # 0 of 0
    assert vllm["ratios"]["ttft_ms.p99"] is None
    assert ours["notes"] == []
    assert vllm["notes"]


def test_recorded_results_of_all_tools_stand_beside_each_other(results):
    files = (DATA / "vllm-0.32.0.json", DATA / "vllm-0.32.0-summary.json")
    lines = (f"{DATA / 'sglang-0.5.23.jsonl'}:{number}" for number in (1, 2))
    code, out, err = results(*map(str, files), *lines)
    assert (code, err) == (0, "")
    rows = {line[:26].strip(): line[36:].split() for line in out.splitlines()}
    assert rows["ITL per chunk mean"][:4] == ["8.11", "7.99", "7.94", "–"]
    assert rows["ITL per token mean"][:4] == ["8.11", "–", "7.94", "4.83"]


@pytest.mark.parametrize("tool", ["vllm", "sglang"])
def test_what_load_exports_reads_as_what_load_says(results, capsys, tool):
    with FakeEngine(Script(ttft_ms=0, itl_ms=0), model="mini-moe") as engine:
        words = f"--url {engine.url} --closed 2 --isl 8 --osl 4 --requests 6 --json"
        main(["load", *words.split(), "--export", f"{tool}=theirs.json"])
    Path("load.json").write_text(capsys.readouterr().out)
    code, out, _ = results("load.json", "theirs.json", "--json")
    assert code == 0
    ours, theirs = (result["values"] for result in json.loads(out)["results"])
    for key in ("ttft_ms.mean", "tpot_ms.p50", "itl_chunk_ms.mean", "e2el_ms.p50"):
        assert theirs[key] == pytest.approx(ours[key], rel=1e-6)
    assert theirs["failed_requests"] == ours["failed_requests"] == 0


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("missing.json", "missing.json: cannot be read: No such file or directory"),
        ("missing.json:2", "missing.json:2: cannot be read: No such file or directory"),
        (".", ".: cannot be read: Is a directory"),
        ("sglang.jsonl:4", "sglang.jsonl:4: sglang.jsonl holds 3 results: give a number from 1 on"),
        ("sglang.jsonl:0", "sglang.jsonl:0: sglang.jsonl holds 3 results: give a number from 1 on"),
        ("binary", "binary: is not text, and a result is a JSON object"),
        ("broken.json", "broken.json: line 1 column 1: not JSON: Expecting value"),
        (
            "other.json",
            "other.json: not a result of a known kind; known are: `moeperf load --json`",
        ),
        ("negative.json", "negative.json: median_ttft_ms has -1: a figure is a number from 0"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(results, file, message):
    Path("binary").write_bytes(b"\xff\xfe\x00")
    Path("broken.json").write_text("TTFT 40 ms")
    Path("other.json").write_text('{"latency": 3}')
    Path("negative.json").write_text(json.dumps(VLLM | {"median_ttft_ms": -1}))
    code, out, err = results("ours.json", file)
    assert (code, out) == (2, "")
    assert err.startswith(f"moeperf: error: {message}")
    assert err.count("\n") == 1


def test_no_file_is_misuse(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["results"])
    assert "the following arguments are required: FILE[:N]" in capsys.readouterr().err


def test_control_characters_of_a_file_do_not_reach_the_terminal(results):
    Path("evil\x1b.json").write_text(json.dumps(OURS | {"model": "a\x1b[2Jb"}))
    _, out, _ = results("evil\x1b.json")
    assert out.splitlines()[0] == "1  evil\\x1b.json (moeperf, a\\x1b[2Jb)"
