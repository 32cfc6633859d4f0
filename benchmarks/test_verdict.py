"""From the records of a play to a verdict and to the file that keeps them."""

import functools

import pytest

from pytest_moeperf import SLO, baseline, baseline_format, figures, judge, metrics, store, validity
from pytest_moeperf.baseline import Gate, Recording
from pytest_moeperf.policy import policy_for
from pytest_moeperf.records import Fingerprint, Outcome, RepeatRecord

pytestmark = pytest.mark.benchmark(group="verdict")

GATE = "itl_token_ms.p50"


@pytest.fixture
def stored(make_start):
    """A baseline of ten starts, as many as a file keeps."""
    fingerprint = Fingerprint(
        hardware="cpu",
        cpu_model="AMD EPYC (family 25, model 17)",
        cpu_cores=2,
        engine="vllm",
        model="mini-moe@0123abcd",
        server="4567ef01",
        workload="closed-c64-isl64-osl128-n256@1",
    )

    def recording(index):
        return Recording(
            cell="serving/mini-moe.closed-c64-isl64-osl128-n256",
            fingerprint=fingerprint,
            start=make_start(index),
            gates={GATE: Gate(direction="lower", tolerance=0.25, unit="ms")},
            tool="0.1.0",
        )

    kept = baseline.Baseline.begun(recording(0))
    for index in range(1, 10):
        kept = kept.extended(recording(index), source="baseline")
    return kept


def test_compute_metrics_of_256_streams(benchmark, requests):
    slo = SLO(ttft_ms=200, tpot_ms=20)
    values = benchmark(figures.compute, requests, slo=slo)
    assert set(values) <= set(metrics.KEYS)


def test_find_reasons_not_to_judge_256_streams(benchmark, requests):
    repeat = RepeatRecord(
        requests=requests,
        started_ns=0,
        ended_ns=2 * 10**9,
        log=("INFO 01-02 03:04:05 loggers.py:123 Engine 000: Running: 64 reqs",) * 200,
    )
    patterns = (r"JIT compil", r"torch\.compile takes", r"Capturing CUDA graph")
    assert benchmark(validity.find, repeat, compile_patterns=patterns) == ()


def test_judge_one_metric_against_ten_starts(benchmark, stored):
    policy = policy_for("cpu", GATE)
    evidence = judge.Evidence(
        metric=GATE,
        today=((31.0, 31.2, 31.1),),
        stored=tuple(
            judge.StoredStart(f"session-{index}", values)
            for index, values in enumerate(stored.repeats(GATE))
        ),
    )
    judged = functools.partial(
        judge.assess, evidence, policy, prior=judge.default_prior(policy), p_limit=0.001
    )
    judged()  # The first one loads scipy.
    assert benchmark(judged).verdict.outcome is Outcome.PASS


def test_encode_baseline_of_ten_starts(benchmark, stored):
    assert benchmark(baseline_format.encode, stored).endswith("\n")


def test_decode_baseline_of_ten_starts(benchmark, stored):
    """Parsing, schema and all checks."""
    text = baseline_format.encode(stored)
    read = benchmark(store.decoded, text, source="baseline")
    assert len(read.starts) == len(stored.starts)
