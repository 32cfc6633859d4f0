"""The whole screen of a run that passes and of one that fails, letter by letter."""

import json
import re
from dataclasses import replace
from urllib.request import urlopen

import pytest

from pytest_moeperf import driver
from pytest_moeperf.testing import make_fake_interpreter

OLD_VERSION = "0.31.0"

SUITE = """\
import pytest

from pytest_moeperf import Burst, ClosedLoop

SINGLE = ClosedLoop(concurrency=1, isl=4, osl=8, requests=2)


def test_single_stream(measure, moe):
    measure(moe, SINGLE).gate("itl_token_ms.p50", "ttft_ms.p50")


def test_burst(measure, moe):
    measure(moe, Burst(requests=4, isl=4, osl=8)).gate("output_throughput")


def test_step_grows_with_the_batch(measure, moe):
    pair = ClosedLoop(concurrency=2, isl=4, osl=8, requests=2)
    growth = measure(moe, pair).over(measure(moe, SINGLE), "itl_token_ms.p50")
    growth.expect(1.2, factor=1.5, why="two tokens choose more experts than one")


def test_absent(measure, absent):
    measure(absent, SINGLE)
"""


@pytest.fixture
def exact(monkeypatch):
    """Sets what every request takes, to the nanosecond; the requests themselves are real.

    `old_itl_ms` is for servers of the old engine.
    """
    play = driver.play

    def take(*, ttft_ms, itl_ms, old_itl_ms=None):
        def exactly(target, *arguments, **options):
            repeat = play(target, *arguments, **options)
            step_ms = itl_ms if old_itl_ms is None or is_new(target) else old_itl_ms
            requests = tuple(
                _retimed(request, ttft_ms=ttft_ms, itl_ms=step_ms) for request in repeat.requests
            )
            ended_ns = max(request.ended_ns for request in requests)
            return replace(repeat, requests=requests, started_ns=0, ended_ns=ended_ns, client=None)

        monkeypatch.setattr(driver, "play", exactly)

    return take


def is_new(target):
    with urlopen(f"{target.url}/version") as answer:  # noqa: S310 - of this test
        return json.load(answer)["version"] != OLD_VERSION


def _retimed(request, *, ttft_ms, itl_ms):
    """The request as if all were sent at once."""
    chunk_ns = tuple(
        round((ttft_ms + itl_ms * number) * 1e6) for number in range(len(request.chunk_ns))
    )
    scheduled_ns = None if request.scheduled_ns is None else 0
    return replace(
        request, sent_ns=0, scheduled_ns=scheduled_ns, chunk_ns=chunk_ns, ended_ns=chunk_ns[-1]
    )


@pytest.fixture(scope="session")
def old_python(tmp_path_factory):
    return make_fake_interpreter(tmp_path_factory.mktemp("old") / "venv", version=OLD_VERSION)


@pytest.fixture
def looks_like(suite, server, old_python, golden):
    """Compares what was shown, from the plugin's header on, with a file.

    What differs from run to run is left out.
    """

    def compare(outcome, name):
        text = outcome.text[outcome.text.index("moeperf: ") :]
        names = {
            server.url: "URL",
            str(suite.model): "MODEL",
            str(suite.python): "PYTHON",
            str(old_python): "OLD_PYTHON",
            str(outcome.root): "ROOT",
        }
        for found, shown in names.items():
            text = text.replace(found, shown)
        text = re.sub(r"cpu \(.*\)", "cpu (MACHINE)", text)
        text = re.sub(r"(?m)^time: .*$", lambda line: re.sub(r"\d+ (%|s )", r"N \1", line[0]), text)
        golden(name, re.sub(r"=+ (.*) in [\d.]+s =+", r"=== \1 in SECONDS ===\n", text))

    return compare


@pytest.fixture
def standard(suite, exact, monkeypatch):
    """The suite with 5 ms to the first token and 1 ms for each further one."""
    monkeypatch.setenv("COLUMNS", "100")
    suite.write(SUITE)
    exact(ttft_ms=5, itl_ms=1)
    return suite


@pytest.fixture
def recorded(standard, record):
    """The same with the baselines of that, of an engine that was started."""
    record(passed=3, skipped=1)
    return standard


def test_a_recording_run(standard, server, looks_like):
    outcome = standard.run("--engine", f"vllm={server.url}", "--baseline", "record")
    outcome.counts(passed=3, skipped=1)
    looks_like(outcome, "terminal-recording.txt")


def test_a_passing_run(standard, record, server, exact, looks_like):
    attached = ("--engine", f"vllm={server.url}")
    record(*attached, passed=3, skipped=1)
    exact(ttft_ms=5.1, itl_ms=1.02)
    looks_like(standard.run(*attached, "--repeats", "2"), "terminal-passing.txt")


def test_a_failing_run(recorded, exact, looks_like):
    exact(ttft_ms=5.1, itl_ms=2)
    looks_like(recorded.run("--repeats", "2"), "terminal-failing.txt")


def test_a_run_without_time_for_further_starts(recorded, exact, looks_like):
    exact(ttft_ms=5.1, itl_ms=2)
    outcome = recorded.run("--repeats", "2", "--max-minutes", "0")
    looks_like(outcome, "terminal-inconclusive.txt")


def test_a_run_against_an_old_engine(recorded, exact, looks_like, old_python):
    exact(ttft_ms=5.1, itl_ms=2, old_itl_ms=1.01)
    outcome = recorded.run("--repeats", "2", "--against", f"vllm@{old_python}", "-k", "single")
    looks_like(outcome, "terminal-against.txt")
