"""experts: counts on a server of their own, and what is judged by them."""

import pytest

from pytest_moeperf.testing import make_fake_interpreter

HEAD = """\
import pytest

from pytest_moeperf import Burst, ClosedLoop
from pytest_moeperf.balance import linear_placement

LOAD = Burst(requests=4, isl=24, osl=5)
OTHER = Burst(requests=2, isl=8, osl=1)
"""

FIXED = ("=", "time: ", "run: ", "report: ")
"""Lines of every session, which others look after."""

COUNTS = (
    HEAD
    + """
def test_counts(experts, moe):
    found = experts(moe, LOAD)
    assert found.prefill.tokens == 4 * 24
    # The last token that comes out is not put in.
    assert found.decode.tokens == 4 * 4
    assert found.total.counts.sum() == 2 * (found.prefill.tokens + found.decode.tokens)
    model = experts.architecture(moe)
    assert (found.total.experts, found.total.top_k, found.total.layers) == (
        model.experts, model.top_k, model.expert_layers
    )


def test_timed(measure, moe):
    assert measure(moe, ClosedLoop(concurrency=1, isl=4, osl=8, requests=2)).value("ttft_ms.p50")


def test_again(experts, moe):
    found = experts(moe, LOAD, OTHER)
    assert found.total.tokens == 4 * 28 + 2 * 8
    assert experts(moe, OTHER).decode is None
    one, other = experts(moe, LOAD).halves()
    assert one.total.tokens == other.total.tokens == 2 * 28
"""
)

CHECKS = (
    HEAD
    + """
def test_balance(experts, moe):
    found = experts(moe, LOAD)
    found.at_most("largest_deviation", 0.5, why="every expert has about its share")
    found.at_least(
        "balancedness", 0.8, placement=linear_placement(experts=4, ranks=2), why="so have ranks"
    )
    found.no_dead_experts()


{mark}def test_collapse(experts, moe):
    experts(moe, LOAD).no_collapse()
"""
)

RECORDED = (
    HEAD
    + """
def test_routing(experts, moe):
    experts(moe, LOAD).as_recorded()
"""
)


COMPUTED = (
    HEAD
    + """
def test_computed(experts, moe):
    experts(moe, LOAD).as_computed()
"""
)


@pytest.fixture
def logs_of(suite):
    """How many servers were started for counting, and for all else."""

    def count():
        names = [path.name for path in (suite.root / ".moeperf" / "logs").glob("*.log")]
        counting = sum("counting" in name for name in names)
        return counting, len(names) - counting

    return count


def test_experts_are_counted_once_on_a_second_server(suite, logs_of):
    suite.write(COUNTS)
    outcome = suite.run("-v")
    outcome.counts(passed=3)
    assert logs_of() == (1, 1)
    assert outcome.text.count("counting experts, 1/4 requests") <= 1
    outcome.shows(
        "tiny-moe counting, burst of 4, 24 in, 5 out on vllm*",
        "*experts × layers  112 tokens, top 2 of 4, uniform is 25 %",
        "*tiny-moe counting, burst of 4, 24 in, 5 out + 2, 8 in, 1 out on vllm*",
    )
    counted = {cell["workload"]: cell["routing"] for cell in outcome.run_json["cells"]}
    told = counted["burst of 4, 24 in, 5 out"]
    assert (told["prefill_tokens"], told["decode_tokens"], told["top_k"]) == (96, 16, 2)
    assert told["route"]


def test_a_balanced_router_passes(suite):
    suite.write(CHECKS.format(mark=""))
    outcome = suite.run()
    outcome.counts(passed=2)
    (cell, other) = outcome.run_json["cells"]
    said = {verdict["metric"]: verdict for verdict in cell["verdicts"] + other["verdicts"]}
    assert {metric: verdict["outcome"] for metric, verdict in said.items()} == dict.fromkeys(
        ("largest_deviation", "balancedness over 2 ranks", "dead_experts", "collapsed_layers"),
        "PASS",
    )
    assert said["largest_deviation"]["certain"] == [0.0, 0.0]
    outcome.shows("*1 layer of 4 experts, top 2, 96 + 16 tokens: peak 1.00× in layer 0")


def test_a_failure_says_what_is_wrong_in_a_picture(suite, golden_text):
    suite.write(CHECKS.format(mark=""))
    suite.script(collapsed_layers=[0])
    outcome = suite.run()
    outcome.counts(failed=2)
    golden_text("experts-collapsed.txt", outcome)


def test_a_failure_that_is_expected_is_no_regression_of_the_session(suite):
    mark = '@pytest.mark.xfail(strict=True, reason="trained to collapse")\n'
    suite.write(CHECKS.format(mark=mark))
    suite.script(collapsed_layers=[0])
    outcome = suite.run("-k", "collapse", "-rx")
    outcome.counts(xfailed=1)
    (verdict,) = outcome.run_json["cells"][0]["verdicts"]
    assert verdict["outcome"] == "EXPECTED"
    assert verdict["reason"].endswith("; expected: trained to collapse")
    outcome.shows("1 EXPECTED", "XFAIL * - trained to collapse")


def test_prompts_take_the_experts_that_were_recorded(suite, golden_text):
    suite.write(RECORDED)
    suite.run("--baseline", "record").counts(passed=1)
    suite.run().counts(passed=1)
    # A router whose experts 0 and 3 changed places.
    suite.script(expert_weights=[1, 2, 2, 5])
    outcome = suite.run()
    outcome.counts(failed=1)
    golden_text("experts-moved.txt", outcome)
    again = suite.run("--baseline", "record")
    again.counts(failed=1)
    assert "→" not in again.text


def test_without_recorded_experts_there_is_no_baseline(suite):
    suite.write(RECORDED)
    outcome = suite.run()
    outcome.counts(failed=1)
    outcome.shows(
        "  NO_BASELINE routing_shift",
        "    no stored counts say which*; nothing is stored at baselines/cpu/vllm/*.json",
        "  next: * record",
    )


def test_random_weights_are_counted_but_not_judged(suite):
    suite.pytester.makeconftest(
        "from pytest_moeperf import ServerSpec\n\n"
        'def pytest_moeperf_servers(hardware):\n    return {"moe": ServerSpec("mixtral-8x7b")}\n'
    )
    suite.write(CHECKS.format(mark="") + RECORDED.removeprefix(HEAD))
    outcome = suite.run("-rs", "--weights", "dummy")
    outcome.counts(skipped=3)
    outcome.shows(
        "SKIPPED *INCOMPARABLE: mixtral-8x7b has random weights, whose balance says nothing *",
        "SKIPPED *INCOMPARABLE: the engine makes up the weights of mixtral-8x7b: *",
    )


def test_a_model_without_experts_is_refused_in_one_line(suite):
    suite.pytester.makeconftest(
        "from pytest_moeperf import ServerSpec\n\n"
        'def pytest_moeperf_servers(hardware):\n    return {"moe": ServerSpec("llama-3.1-8b")}\n'
    )
    suite.write(RECORDED)
    outcome = suite.run("--weights", "dummy")
    outcome.counts(failed=1)
    outcome.shows("llama-3.1-8b has no experts to count: name a mixture of experts")
    assert outcome.logs == []


def test_an_attached_server_is_skipped(suite, server):
    suite.write(RECORDED)
    outcome = suite.run("-rs", "--engine", f"vllm={server.url}")
    outcome.counts(skipped=1)
    outcome.shows("SKIPPED *needs a server that is started here; * is attached")


def test_an_engine_that_cannot_tell_is_skipped(suite, tmp_path):
    old = make_fake_interpreter(tmp_path / "venv", version="0.20.2")
    suite.write(RECORDED)
    outcome = suite.run("-rs", "--engine", f"vllm@{old}")
    outcome.counts(skipped=1)
    outcome.shows("SKIPPED *tiny-moe counting: experts cannot be counted: *")


def test_a_mistake_in_a_test_is_one_line(suite):
    suite.write(
        HEAD
        + """
def test_nothing(experts, moe):
    experts(moe)


def test_measure(experts, moe):
    experts(moe, LOAD).at_most("evenness", 1, why="so")


def test_halves(experts, moe):
    experts(moe, Burst(requests=1, isl=8, osl=1)).halves()
"""
    )
    outcome = suite.run()
    outcome.counts(failed=3)
    outcome.shows(
        "experts() counts nothing: name a workload after the server",
        "'evenness' is no measure of balance; valid are balancedness, *",
        "one request has no halves: send at least two",
    )


@pytest.fixture
def golden_text(golden, suite, python):
    """Compares the failure texts of a session with `tests/golden/<name>`."""

    def compare(name, outcome):
        shown = outcome.text.partition(" FAILURES ")[2].partition("short test summary info")[0]
        lines = [line for line in shown.splitlines() if not line.startswith(FIXED)]
        golden(name, "\n".join(lines).replace(str(python), "PYTHON").strip() + "\n")

    return compare


def test_a_forward_pass_needs_pytorch_beside_the_engine(suite):
    suite.write(COMPUTED)
    outcome = suite.run()
    outcome.counts(failed=1)
    outcome.shows("*no forward pass: ModuleNotFoundError: No module named 'torch'*")
