"""The whole screen of a run that passes and of one that fails, letter by letter."""

import re
from dataclasses import replace

import pytest

from pytest_moeperf import driver

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
    """Sets what every request takes, to the nanosecond; the requests themselves are real."""
    play = driver.play

    def take(*, ttft_ms, itl_ms):
        def exactly(*arguments, **options):
            repeat = play(*arguments, **options)
            requests = tuple(
                _retimed(request, ttft_ms=ttft_ms, itl_ms=itl_ms) for request in repeat.requests
            )
            ended_ns = max(request.ended_ns for request in requests)
            return replace(repeat, requests=requests, started_ns=0, ended_ns=ended_ns, client=None)

        monkeypatch.setattr(driver, "play", exactly)

    return take


def _retimed(request, *, ttft_ms, itl_ms):
    """The request as if all were sent at once."""
    chunk_ns = tuple(
        round((ttft_ms + itl_ms * number) * 1e6) for number in range(len(request.chunk_ns))
    )
    scheduled_ns = None if request.scheduled_ns is None else 0
    return replace(
        request, sent_ns=0, scheduled_ns=scheduled_ns, chunk_ns=chunk_ns, ended_ns=chunk_ns[-1]
    )


def screen(outcome, suite, server):
    """What was shown from the plugin's header on, without what differs from run to run."""
    text = outcome.text[outcome.text.index("moeperf: ") :]
    text = text.replace(server.url, "URL").replace(str(outcome.root), "ROOT")
    text = re.sub(r"cpu \(.*\)", "cpu (MACHINE)", text)
    text = text.replace(str(suite.model), "MODEL")
    return re.sub(r"=+ (.*) in [\d.]+s =+", r"=== \1 in SECONDS ===\n", text)


@pytest.fixture
def recorded(suite, server, exact, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    suite.write(SUITE)
    exact(ttft_ms=5, itl_ms=1)
    outcome = suite.run("--engine", f"vllm={server.url}", "--baseline", "record")
    outcome.counts(passed=3, skipped=1)
    return outcome


def test_a_passing_run(recorded, suite, server, exact, golden):
    exact(ttft_ms=5.1, itl_ms=1.02)
    outcome = suite.run("--engine", f"vllm={server.url}", "--repeats", "2")
    golden("terminal-passing.txt", screen(outcome, suite, server))


def test_a_failing_run(recorded, suite, server, exact, golden):
    exact(ttft_ms=5.1, itl_ms=2)
    outcome = suite.run("--engine", f"vllm={server.url}", "--repeats", "2")
    golden("terminal-failing.txt", screen(outcome, suite, server))


def test_a_recording_run(recorded, suite, server, golden):
    golden("terminal-recording.txt", screen(recorded, suite, server))
