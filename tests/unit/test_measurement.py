"""Which plays of a cell count."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from pytest_moeperf import measurement
from pytest_moeperf.measurement import CellMeasurement, Rules, interleave
from pytest_moeperf.patience import Patience
from pytest_moeperf.records import RepeatRecord, RequestRecord

MS = 1_000_000


def play_of(silence_ms):
    """A play of one request with a chunk every 10 ms and one silence."""
    gaps = [10] * 20 + [silence_ms] + [10] * 20
    arrivals = [sum(gaps[: count + 1]) * MS for count in range(len(gaps))]
    request = RequestRecord(
        index=0,
        sent_ns=0,
        chunk_ns=arrivals,
        chunk_tokens=[1] * len(gaps),
        output_tokens=len(gaps),
        asked_output_tokens=len(gaps),
        ended_ns=arrivals[-1],
    )
    return RepeatRecord(requests=(request,), started_ns=0, ended_ns=arrivals[-1])


class Server:
    """Plays what it was given, in turn."""

    warm = True
    compile_patterns = ()
    kv_block_tokens = 16
    context_tokens = 128
    url, model, api_key, process = "http://x", "m", None, None

    def __init__(self, gpu_ids):
        self.gpu_ids = gpu_ids

    def reset_prefix_cache(self):
        return True

    def check_alive(self):
        pass

    @contextmanager
    def observe(self):
        yield SimpleNamespace(complete=lambda played: played)


@pytest.fixture
def measured(monkeypatch):
    """Measures plays with these silences, after one of warm-up."""

    def measure(*silences_ms, gpu_ids=("GPU-0",), **rules):
        plays = iter([play_of(10), *map(play_of, silences_ms)])
        monkeypatch.setattr(measurement.driver, "play", lambda *_, **__: next(plays))
        monkeypatch.setattr(measurement, "plan", lambda *_, **__: ())
        monkeypatch.setattr(measurement.validity, "find", lambda *_, **__: ())
        workload = SimpleNamespace(label="load", prefix_hit_rate=lambda _tokens: 0.0)
        model = SimpleNamespace(name="m", vocab_size=64, first_id=0)
        cell = CellMeasurement(
            Server(gpu_ids), model, workload, Rules(**rules), lambda *_: None, Patience()
        )
        interleave([cell])
        return cell

    return measure


def seeds(samples):
    return [sample.seed for sample in samples]


def test_a_play_that_stalled_is_played_again(measured):
    cell = measured(10, 10, 500, 10)
    assert seeds(cell.samples) == [0, 1, 3]
    [discarded] = cell.discarded
    assert [finding.code for finding in discarded.findings] == ["stall"]


def test_a_first_play_that_stalled_shows_when_a_later_one_does_not(measured):
    cell = measured(500, 500, 10, 10, 10)
    assert seeds(cell.samples) == [2, 3, 4]
    assert seeds(cell.discarded) == [0, 1]


def test_too_many_make_the_cell_invalid(measured):
    cell = measured(10, 500, 500, 500)
    assert cell.exhausted


def test_on_a_cpu_a_neighbour_may_have_done_it(measured):
    assert seeds(measured(10, 500, 10, gpu_ids=()).samples) == [0, 1, 2]


def test_the_finding_can_be_ignored(measured):
    cell = measured(10, 500, 10, ignored_findings=frozenset({"stall"}))
    assert seeds(cell.samples) == [0, 1, 2]
