"""`moeperf fit` as it is typed."""

import json
import re
import shlex
from pathlib import Path

import pytest

from pytest_moeperf.cli import main
from pytest_moeperf.models import catalogue

DOCUMENT = Path(__file__).parents[2] / "docs" / "fit.md"
MIXTRAL = dict(catalogue()["mixtral-8x7b"].config)


@pytest.fixture
def moeperf_fit(capsys):
    """Runs the command; its exit code and what it printed."""

    def run(*words):
        code = main(["fit", *words])
        out, err = capsys.readouterr()
        return code, out or err

    return run


@pytest.fixture
def config(tmp_path):
    """Writes a config.json and returns its path."""

    def write(**changes):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(MIXTRAL | changes))
        return path

    return write


def test_what_fits_exits_with_0(moeperf_fit):
    code, out = moeperf_fit("mixtral-8x7b", "--gpu", "2xh200")
    assert code == 0
    assert "mixtral-8x7b on 2 x h200, TP=2, bf16" in out
    assert "FITS: 1 x 32,768 tokens" in out
    assert "\x1b" not in out


def test_what_does_not_exits_with_1_and_says_what_would(moeperf_fit):
    code, out = moeperf_fit("mixtral-8x7b", "--gpu", "h100", "--context", "4096")
    assert code == 1
    assert "would fit: --dtype fp8\n" in out
    assert "would fit: 2 x h100, TP=2\n" in out


def test_all_options_reach_the_plan(moeperf_fit):
    words = "--tp 2 --pp 2 --dp 2 --ep --dtype int4 --kv-dtype fp8 --context 1024 --concurrency 7"
    code, out = moeperf_fit(
        "deepseek-v2-lite", "--gpu", "8xl40s", *words.split(), "--utilization", "0.5", "--json"
    )
    told = json.loads(out)
    assert code == 0
    assert told["parallelism"] == {"tensor": 2, "pipeline": 2, "data": 2, "experts_whole": True}
    assert (told["dtype"], told["kv_dtype"]) == ("int4", "fp8")
    assert (told["context_tokens"], told["concurrency"]) == (1024, 7)
    assert told["utilization"] == 0.5


def test_a_config_or_its_folder_needs_no_weights(moeperf_fit, config):
    path = config()
    for place in (path, path.parent):
        code, out = moeperf_fit(str(place), "--gpu", "h200", "--json")
        assert (code, sum(json.loads(out)["parameters"].values())) == (0, 46_702_792_704)


def test_a_quantized_checkpoint_is_taken_as_it_is(moeperf_fit, config):
    path = config(quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    code, out = moeperf_fit(str(path), "--gpu", "h100", "--json")
    assert (code, json.loads(out)["dtype"]) == (0, "fp8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mixtral --gpu h200", "no model 'mixtral': give one of deepseek-v2-lite, "),
        ("mixtral-8x7b --gpu cpu", "--gpu cpu: give a number and a class, as 2xh200; classes: a1"),
        ("mixtral-8x7b --gpu 0xh200", "--gpu 0xh200: give 1 to 9999 GPUs, as 2xh200"),
        ("mixtral-8x7b --gpu 10000xh200", "--gpu 10000xh200: give 1 to 9999 GPUs, as 2xh200"),
        ("mixtral-8x7b --gpu h200x2", "--gpu h200x2: give a number and a class"),
        ("mixtral-8x7b --gpu 2xh200 --tp 4", "TP=4 takes 4 GPUs and --gpu 2xh200 gives 2: TP × PP"),
        (
            "mixtral-8x7b --gpu 3xh200",
            (
                "mixtral-8x7b with TP=3: TP=3 does not divide the 32 attention heads; TP can be "
                "1, 2, 4, 8, 16, 32\n"
            ),
        ),
        ("llama-3.1-8b --gpu h200 --ep", "llama-3.1-8b with TP=1 EP: a dense model has no experts"),
        ("mixtral-8x7b --gpu h200 --context 99999", "--context 99999: mixtral-8x7b has 32768 tok"),
    ],
)
def test_misuse_exits_with_2_and_one_line(moeperf_fit, words, message):
    code, told = moeperf_fit(*words.split())
    assert code == 2
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tp 0", "'0' is not a whole number from 1 on"),
        ("--concurrency ²", "'²' is not a whole number from 1 on"),
        ("--utilization 92", "'92' is not a share above 0 and at most 1"),
        ("--utilization nan", "'nan' is not a share above 0 and at most 1"),
        ("--utilization much", "'much' is not a share above 0 and at most 1"),
        ("--dtype fp4", "invalid choice: 'fp4'"),
    ],
)
def test_a_bad_value_is_quoted(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "mixtral-8x7b", "--gpu", "h200", *words.split()])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_quantization_that_is_not_known_asks_for_the_dtype(moeperf_fit, config):
    path = config(quantization_config={"quant_method": "quark"})
    code, told = moeperf_fit(str(path), "--gpu", "h200")
    assert code == 2
    assert "quant_method 'quark' of its config is not known; say with --dtype" in told
    assert moeperf_fit(str(path), "--gpu", "h200", "--dtype", "int4")[0] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "model_type None is not one of: deepseek_v2, "),
        ("[]", "not a JSON object"),
        ("{", "not JSON, "),
    ],
)
def test_a_broken_config_is_misuse_in_one_line(
    moeperf_fit, tmp_path, monkeypatch, content, message
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(content)
    for typed, named in [(path, path), (tmp_path, path), (path.name, path.name), (".", path.name)]:
        code, told = moeperf_fit(str(typed), "--gpu", "h200")
        assert code == 2
        assert told.startswith(f"moeperf: error: {named}: {message}")
        assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"torch_dtype": ["x"]}, "dtype ['x'] is not one of: bfloat16, float16, float32"),
        ({"quantization_config": "fp8"}, "quantization_config is 'fp8', not an object"),
        (
            {"quantization_config": {"quant_method": ["a"]}},
            "quant_method of quantization_config is ['a'], not a name",
        ),
        (
            {"sliding_window": 4096, "layer_types": [["x"]] * 32},
            "layer_types must be 32 of: full_attention, sliding_attention",
        ),
        ({"num_hidden_layers": None}, "lacks num_hidden_layers"),
        ({"max_position_embeddings": None}, "lacks max_position_embeddings"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0, not a positive whole num"),
        ({"hidden_size": 10**400}, "hidden_size is above 2147483647"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, more than the 8 of num_local_ex"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, dict) else "",
)
def test_a_config_that_cannot_be_is_misuse_in_one_line(moeperf_fit, config, changes, message):
    path = config(**changes)
    code, told = moeperf_fit(str(path), "--gpu", "2xh200")
    assert code == 2
    assert told.startswith(f"moeperf: error: {path}: {message}")
    assert told.count("\n") == 1


def test_all_experts_may_be_used(moeperf_fit, config):
    assert moeperf_fit(str(config(num_experts_per_tok=8)), "--gpu", "2xh200")[0] == 0


@pytest.mark.parametrize(
    ("typed", "printed"),
    re.findall(
        r"^\$ moeperf fit (.+)\n((?:.*\n)*?)```$", DOCUMENT.read_text("utf-8"), re.MULTILINE
    ),
)
def test_the_document_shows_what_is_printed(moeperf_fit, monkeypatch, typed, printed):
    monkeypatch.setenv("COLUMNS", "80")
    assert moeperf_fit(*shlex.split(typed))[1] == printed
