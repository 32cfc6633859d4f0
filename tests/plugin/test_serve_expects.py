"""serve.expect, serve.at_most, serve.expect_recorded: what a server tells of itself."""

import re
from pathlib import Path

import pytest

from pytest_moeperf.engines import EngineFacts, engine_named

SUITES = Path(__file__).parents[2] / "suites"
RECORDING = Path(__file__).parents[1] / "data" / "nvml" / "1x-h200.json"


@pytest.fixture
def on_gpu(suite, monkeypatch):
    """Runs the suite on one H200, where an engine tells its kernels."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("MOEPERF_TEST_NVML", str(RECORDING))
    ignored = [word for code in ("busy_machine", "stall") for word in ("--ignore-finding", code)]
    hosted = ("-p", "pytest_moeperf.testing.gpuhost", "--gpu", "h200", *ignored)
    return lambda *arguments: suite.run(*hosted, "-rs", *arguments)


@pytest.mark.parametrize(
    ("figure", "outcome", "text"),
    [
        ("100.4, equal_to=100.0, within=0.005", "passed", "figure *100* PASS"),
        ("99.4, equal_to=100.0, within=0.005", "failed", "*REGRESSED figure: 99.4, expected 100*"),
        ("100.1, equal_to=100.0", "failed", "*REGRESSED figure: 100*, expected 100*"),
        ("None, equal_to=100.0, within=0.005", "failed", "*figure could not be measured"),
    ],
)
def test_a_figure_is_held_against_a_calculated_one(suite, server, figure, outcome, text):
    suite.write(f"def test_it(serve, moe):\n    serve.expect(moe, 'figure', {figure}, why='so')\n")
    session = suite.run("--engine", f"vllm={server.url}")
    session.counts(**{outcome: 1})
    session.shows(f"*{text}*")


@pytest.mark.parametrize(
    ("figure", "outcome"), [("2.0, 2.0", "passed"), ("2.1, 2.0", "failed"), ("None, 2.0", "failed")]
)
def test_a_figure_is_held_against_a_limit(suite, server, figure, outcome):
    suite.write(f"def test_it(serve, moe):\n    serve.at_most(moe, 'figure', {figure}, why='so')\n")
    suite.run("--engine", f"vllm={server.url}").counts(**{outcome: 1})


def test_a_kv_cache_of_unknown_size_fails_in_one_line(suite, monkeypatch):
    """The test of the suites that turns a figure of the log into another one."""
    source = SUITES / "memory" / "test_kv_cache.py"
    suite.write(re.sub(r"\bmodel\b", "moe", source.read_text()))
    silent = EngineFacts(kv_cache_tokens=131_072)
    engine = type(engine_named("vllm"))
    monkeypatch.setattr(engine, "parse_facts", lambda _engine, _lines: silent)
    outcome = suite.run()
    outcome.counts(failed=1)
    outcome.shows("*kv_cache_gib could not be measured")
    assert "Traceback" not in outcome.text
    assert "TypeError" not in outcome.text
    (cell,) = outcome.judged
    assert [each["outcome"] for each in cell["verdicts"]] == ["INVALID"]


GUARD = """
@pytest.mark.parametrize("name", ["moe_backend", "moe_config", "nothing"])
def test_guard(serve, moe, name):
    serve.expect_recorded(moe, name)
"""


@pytest.fixture
def guarded(suite, on_gpu):
    """A suite whose baseline has a start of this server."""
    load = "ClosedLoop(concurrency=1, isl=4, osl=8, requests=2)"
    suite.write(
        "import pytest\nfrom pytest_moeperf import ClosedLoop\n\n"
        f"def test_load(measure, moe):\n    measure(moe, {load}).gate('output_throughput')\n{GUARD}"
    )
    # What it does not tell is skipped when recorded, too.
    on_gpu("--baseline", "record").counts(passed=3, skipped=1)
    return on_gpu


def test_what_was_told_in_the_baseline_is_told_again(guarded):
    outcome = guarded("-k", "guard")
    outcome.counts(passed=2, skipped=1)
    outcome.shows("SKIPPED *INCOMPARABLE: this server does not tell its nothing")


def test_another_backend_than_in_the_baseline_fails_with_both(guarded, suite):
    suite.script(moe_backend="FlashInfer CUTLASS Unquantized")
    outcome = guarded("-k", "moe_backend")
    outcome.counts(failed=1)
    outcome.shows(
        "*moe_backend is 'FlashInfer CUTLASS Unquantized'; it was 'TRITON Unquantized'",
    )


def test_a_configuration_that_is_no_longer_found_fails(guarded, suite):
    suite.script(moe_config="default")
    outcome = guarded("-k", "moe_config")
    outcome.counts(failed=1)
    outcome.shows("*moe_config is 'default'; it was 'E=*.json'")


def test_without_a_stored_start_there_is_no_baseline(suite, on_gpu):
    suite.write(f"import pytest\n{GUARD}")
    outcome = on_gpu("-k", "moe_backend")
    outcome.counts(failed=1)
    outcome.shows(
        "*NO_BASELINE moe_backend",
        "*no stored start tells it; looked below baselines/h200/vllm",
        "*next: pytest * --baseline record",
    )


def test_other_servers_do_not_count(guarded, suite):
    """`dense` has another context in this suite, so it has no stored start."""
    suite.write(GUARD.replace("moe,", "dense,").replace("(moe", "(dense"), name="test_dense")
    path = suite.root / "serving" / "test_dense.py"
    path.write_text("import pytest\n" + path.read_text())
    outcome = guarded("-k", "test_dense and moe_backend")
    outcome.counts(failed=1)
    outcome.shows("*NO_BASELINE moe_backend")
