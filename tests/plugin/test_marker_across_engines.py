"""@pytest.mark.across_engines: one test that has the servers of several engines."""

import pytest

from pytest_moeperf.testing import make_fake_interpreter

SOURCE = """\
import pytest
from pytest_moeperf import ClosedLoop

LOADS = {n: ClosedLoop(concurrency=n, isl=4, osl=8, requests=2) for n in (1, 2)}

@pytest.mark.across_engines("sglang", "vllm")
def test_both(measure, moe):
    sglang, vllm = measure.together(moe["sglang"], moe["vllm"], LOADS)
    for count in LOADS:
        ratio = sglang[count].over(vllm[count], "output_throughput")
        ratio.within(0.05, 20.0, why="both are fakes")

def test_each(measure, moe):
    measure(moe, LOADS[1])
"""


@pytest.fixture(scope="module")
def sglang(tmp_path_factory):
    return make_fake_interpreter(
        tmp_path_factory.mktemp("engine") / "venv", distribution="sglang", version="0.5.16"
    )


@pytest.fixture
def compared(suite, sglang):
    suite.write(SOURCE)
    return ["--engine", f"vllm@{suite.python}", "--engine", f"sglang@{sglang}"]


def test_the_servers_of_both_are_compared_and_each_starts_once(suite, compared):
    outcome = suite.run(*compared, "-v")
    outcome.counts(passed=3)
    outcome.shows("*::test_both[[]sglang-vllm] PASSED*")
    ratios = {verdict["metric"] for cell in outcome.judged for verdict in cell["verdicts"]}
    assert ratios == {"output_throughput ÷ vllm==0.32.0"}
    assert len(outcome.logs) == 2


def test_with_one_engine_it_is_skipped_and_says_which_is_missing(suite, compared):
    outcome = suite.run(*compared[:2], "-rs", "-k", "both")
    outcome.counts(skipped=1)
    outcome.shows("SKIPPED * compares sglang and vllm; no --engine sglang")
    assert outcome.logs == []


@pytest.mark.parametrize("arguments", ["", "'vllm'", "'vllm', 'vllm'", "'vllm', 1", "a='b'"])
def test_names_that_are_none_are_an_error_in_one_line(suite, arguments):
    suite.write(
        f"import pytest\n\n@pytest.mark.across_engines({arguments})\n"
        "def test_two(measure, moe):\n    pass\n"
    )
    assert suite.run().usage_error == (
        "ERROR: serving/test_load.py::test_two: across_engines takes the names of two engines or "
        'more, as in @pytest.mark.across_engines("vllm", "sglang")'
    )
