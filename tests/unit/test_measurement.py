"""Which plays of a cell count, and what is played before them."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from pytest_moeperf import measurement
from pytest_moeperf.measurement import CellMeasurement, Rules, interleave
from pytest_moeperf.patience import Patience
from pytest_moeperf.probe import Bystanders
from pytest_moeperf.records import GpuReading, RepeatRecord, RequestRecord
from pytest_moeperf.timeline import Timeline
from pytest_moeperf.warmup import Met
from pytest_moeperf.workload import ClosedLoop

MS = 1_000_000
LOAD = ClosedLoop(concurrency=2, isl=8, osl=41, requests=2)
"""Its shapes: single prompts of 8 and of 16 tokens, and two prompts at once, twice."""
DRILLS = 3


def play_of(silence_ms=10):
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

    compile_patterns = ("compiled",)
    kv_block_tokens = 16
    context_tokens = 128
    engine = SimpleNamespace(continuous_usage=True)
    gpu_pids = frozenset({4711})
    url, model, api_key, start_id = "http://x", "m", None, "4711"

    def __init__(self, gpu_ids, *, warm, met, attached=False):
        self.gpu_ids = gpu_ids
        self.attached = attached
        self.warm = warm
        self.met = met

    def reset_prefix_cache(self):
        return True

    def check_alive(self):
        pass

    @contextmanager
    def observe(self):
        yield SimpleNamespace(complete=lambda played: played)


class Watch:
    """Tells the same of every play."""

    reading = GpuReading(uuid="GPU-0", samples=3, memory_used_gib=131.0)

    def __init__(self, uuids, *, own_pids):
        assert uuids == ("GPU-0",)
        assert own_pids == {4711}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.readings = (self.reading,)


@pytest.fixture
def measured(monkeypatch):
    """Measures plays with these silences in ms, on a quiet machine and a server that is warm."""
    monkeypatch.setattr(measurement.probe.BusyWatch, "bystanders", lambda _: Bystanders())
    monkeypatch.setattr("pytest_moeperf.measurement.GpuWatch", Watch)
    monkeypatch.setattr(measurement.validity, "find", lambda *_, **__: ())
    sent = []

    def measure(
        *plays, gpu_ids=("GPU-0",), warm=True, met=None, attached=False, neighbours=tuple, **rules
    ):
        left = iter(play_of(each) if isinstance(each, int) else each for each in plays)

        def play(target, requests, **_):
            assert target.continuous_usage
            sent.append(requests)
            return next(left)

        monkeypatch.setattr(measurement.driver, "play", play)
        known = Met(batches={2}, steps={8, 16}) if warm and met is None else Met()
        model = SimpleNamespace(name="m", vocab_size=64, first_id=0)
        cell = CellMeasurement(
            *(Server(gpu_ids, warm=warm, met=known, attached=attached), model, LOAD),
            *(Rules(**rules), lambda *_: None, Patience(sleep=lambda _: None)),
            neighbours=neighbours,
            timeline=Timeline(clock=iter(range(1000)).__next__),
        )
        interleave([cell])
        return cell

    measure.sent = sent
    return measure


def seeds(samples):
    return [sample.seed for sample in samples]


def codes(sample):
    return [finding.code for finding in sample.findings]


def test_a_play_that_stalled_is_played_again(measured):
    cell = measured(10, 10, 500, 10)
    assert seeds(cell.samples) == [0, 1, 3]
    [discarded] = cell.discarded
    assert codes(discarded) == ["stall"]


def test_a_first_play_that_stalled_shows_when_a_later_one_does_not(measured):
    cell = measured(500, 500, 10, 10, 10)
    assert seeds(cell.samples) == [2, 3, 4]
    assert seeds(cell.discarded) == [0, 1]


def test_too_many_make_the_cell_invalid(measured):
    cell = measured(10, 10, 500, 500, 500)
    assert cell.exhausted


def test_one_lucky_play_of_many_makes_no_stall_of_the_others(measured):
    cell = measured(10, 500, 500, 500)
    assert not cell.discarded


def test_a_play_that_failed_at_once_makes_no_other_a_stall(measured, monkeypatch):
    failed = RequestRecord(index=0, sent_ns=0, asked_output_tokens=41, ended_ns=1, error="HTTP 500")
    found = SimpleNamespace(code="failed_requests")
    monkeypatch.setattr(
        measurement.validity, "find", lambda played, **_: (found,) * (played.ended_ns == 1)
    )
    at_once = RepeatRecord(requests=(failed,), started_ns=0, ended_ns=1)
    cell = measured(at_once, 10, 10, 10)
    assert seeds(cell.samples) == [1, 2, 3]


def test_on_a_cpu_a_neighbour_may_have_done_it(measured):
    cell = measured(10, 500, 10, gpu_ids=())
    assert seeds(cell.samples) == [0, 1, 2]


def test_the_finding_can_be_ignored(measured):
    cell = measured(10, 500, 10, ignored_findings=frozenset({"stall"}))
    assert seeds(cell.samples) == [0, 1, 2]


def test_what_the_gpus_did_is_kept_with_each_repeat(measured):
    cell = measured(10, 10, 10)
    assert [sample.gpus for sample in cell.samples] == [(Watch.reading,)] * 3
    # 41 tokens in 410 ms, on 131 GiB.
    value = cell.samples[0].values["output_throughput_per_gpu_gib"]
    assert value == pytest.approx(100 / 131)


def test_what_disturbed_the_gpus_makes_a_repeat_invalid(measured, monkeypatch):
    taken = GpuReading(uuid="GPU-0", samples=3, foreign=("815 python3",))
    readings = iter([taken])
    monkeypatch.setattr(
        Watch,
        "__exit__",
        lambda self, *_: setattr(self, "readings", (next(readings, Watch.reading),)),
    )
    cell = measured(10, 10, 10, 10)
    assert seeds(cell.discarded) == [0]
    assert codes(cell.discarded[0]) == ["foreign_process"]
    assert cell.discarded[0].gpus == (taken,)


def test_a_cold_gpu_is_played_cold_meets_its_shapes_and_proves_that_it_is_warm(measured):
    # The first play is cold, the one after the shapes is the first warm one, the next proves it.
    cell = measured(500, *[10] * DRILLS, 10, 10, 10, 10, 10, warm=False)
    assert len(cell.samples) == 3
    assert not cell.discarded
    cold, *warm = [sample.values["ttft_ms.p50"] for sample in cell.warm_up_samples]
    assert cold == 10
    assert len(warm) == 2
    assert cell.warm_up_samples[0].values["output_throughput"] == pytest.approx(41 / 0.9)
    assert cell.warmup_reason == (
        "the last play's latency was +0.0 % from the best one's, without a compilation or a stall"
    )
    shapes = [[len(request.prompt) for request in plan.requests] for plan in measured.sent[1:4]]
    assert shapes == [[8, 9, 12, 16, 17, 20, 24], [8, 8], [8, 7]]
    assert cell.server.warm
    assert cell.server.met == Met(batches={1, 2}, steps={8, 16})


def test_a_cold_cpu_is_played_until_it_is_steady(measured):
    cell = measured(500, 10, 10, 10, 10, 10, gpu_ids=(), warm=False)
    assert len(cell.warm_up_samples) == 3
    assert len(cell.samples) == 3


def test_a_warm_cpu_is_measured_at_once(measured):
    cell = measured(10, 10, 10, gpu_ids=())
    assert cell.warm_up_samples == []
    assert cell.warmup_reason == "the server has been steady before"


def test_an_attached_server_may_have_a_gpu_and_meets_each_further_workload_once(measured):
    cell = measured(10, 10, 10, 10, gpu_ids=(), attached=True)
    assert len(cell.warm_up_samples) == 1
    assert cell.warmup_reason == "the server was warm before"


def test_a_warm_gpu_that_has_met_all_shapes_is_measured_at_once(measured):
    cell = measured(10, 10, 10)
    assert cell.warm_up_samples == []
    assert cell.warmup_reason == "the server has met all shapes of the workload"


def test_a_warm_gpu_plays_a_new_workload_once_and_then_its_shapes(measured):
    cell = measured(10, *[10] * DRILLS, 10, 10, 10, warm=True, met=Met())
    assert len(cell.warm_up_samples) == 1
    assert len(cell.samples) == 3
    sizes = [len(plan.requests) for plan in measured.sent]
    assert sizes == [2, 7, 2, 2, 2, 2, 2]
    assert cell.warmup_reason == "the server was warm before"
    assert cell.server.met == Met(batches={1, 2}, steps={8, 16})


def test_another_look_at_the_start_keeps_its_cold_play(measured):
    cell = measured(500, *[10] * DRILLS, *[10] * 6, warm=False, repeats=2)
    again = cell.anew()
    assert seeds(again.warm_up_samples) == [1_000_001, 1_000_002, 1_000_003]
    assert not again.samples
    interleave([again])
    assert len(again.samples) == 2
    assert again.warm_up_samples == cell.warm_up_samples
    assert again.warmup_reason == "the server has met all shapes of the workload"


def test_the_time_is_shared_between_warm_up_and_measuring(measured):
    # The clock goes on by a second each time it is asked.
    spent = measured(10, 10, 10, 10, gpu_ids=(), attached=True).timeline.spent([])
    assert (spent.warmup_s, spent.measuring_s) == (1, 3)


class Turn:
    """A cell that notes when it is played."""

    def __init__(self, server, notes, *, repeats=3):
        self.server, self.notes, self.left = SimpleNamespace(start_id=server), notes, repeats
        self.warmup_reason = ""

    @property
    def finished(self):
        return not self.left

    def warm_up(self):
        self.notes.append(f"warm up {self.server.start_id}")

    def repeat(self, turn):
        self.left -= 1
        self.notes.append(f"{turn} {self.server.start_id}")


def test_rounds_go_back_and_forth_and_each_has_its_number():
    notes = []
    cells = [Turn("moe", notes), Turn("dense", notes), Turn("moe", notes, repeats=1)]
    assert interleave(cells, turn=7) == 10
    assert notes == [
        *("warm up moe", "warm up moe", "warm up dense"),
        *("7 dense", "7 moe", "7 moe"),
        *("8 moe", "8 dense"),
        *("9 dense", "9 moe"),
    ]


def test_a_repeat_that_is_measured_again_has_its_turn_all_the_same(measured, monkeypatch):
    found = SimpleNamespace(code="failed_requests")
    answers = iter([(), (found,), (), ()])
    monkeypatch.setattr(measurement.validity, "find", lambda *_, **__: next(answers))
    cell = measured(10, 10, 10, 10)
    assert {turn: sample.seed for turn, sample in cell.by_turn.items()} == {0: 0, 1: 2, 2: 3}


def test_before_each_play_the_other_servers_rest_and_their_work_is_foreign(measured, monkeypatch):
    rests, watched = [], []
    neighbour = SimpleNamespace(pid=815, await_rest=lambda: rests.append(True))
    monkeypatch.setattr(
        measurement.probe,
        "BusyWatch",
        lambda strangers: watched.append(strangers) or SimpleNamespace(bystanders=Bystanders),
    )
    measured(10, 10, 10, gpu_ids=(), neighbours=lambda: (neighbour,))
    assert len(rests) == 3
    assert watched == [[815]] * 3


def test_a_server_that_never_got_steady_is_not_taken_for_warm(measured):
    faster = [2000, 1500, 1000, 500, 100]
    cell = measured(*faster, 10, 10, 10, gpu_ids=(), warm=False)
    assert cell.warmup_reason == "not steady after 5 plays, the most there may be"
    assert not cell.server.warm


def test_after_a_busy_repeat_the_machine_is_watched_at_work(measured, monkeypatch):
    at_work = []
    others = iter([0.0, 1.5, 1.5, 0.0, 0.0, 0.0])

    @contextmanager
    def full_load():
        at_work.append(True)
        yield

    monkeypatch.setattr(measurement.probe, "full_load", full_load)
    monkeypatch.setattr(measurement.probe, "usable_cores", lambda: 2)
    monkeypatch.setattr(measurement.time, "sleep", lambda _: None)
    monkeypatch.setattr(
        measurement.probe.BusyWatch,
        "bystanders",
        lambda _: Bystanders(cores=next(others), stolen_cores=1.5),
    )
    cell = measured(10, 10, 10, 10, gpu_ids=())
    assert seeds(cell.discarded) == [1]
    assert len(at_work) == 2
    # Its clock goes on by one whenever it is read.
    assert cell.timeline.spent([]).waiting_s == 2
    assert cell.discarded[0].findings[0].message == (
        "others kept 1.5 of 2 usable cores busy (withheld by the hypervisor)"
    )
