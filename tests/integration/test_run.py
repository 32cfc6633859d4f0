import os
import signal
import time
from types import SimpleNamespace

import pytest

from pytest_moeperf.errors import MoeperfError, ServerDiedError, ServerStartError
from pytest_moeperf.measured import MeasuredCell
from pytest_moeperf.measurement import Rules
from pytest_moeperf.pool import MachineLease, ServerPool
from pytest_moeperf.records import CellResult, EngineInstall, ServerSpec
from pytest_moeperf.run import Run, Settings
from pytest_moeperf.timeline import TimeSpent
from pytest_moeperf.workload import ClosedLoop

SPEC = ServerSpec("tiny")
RESULT = CellResult(
    cell="tiny.burst",
    test="",
    server="tiny",
    engine="vllm",
    workload="burst",
    fingerprint=None,
    start=None,
)


@pytest.fixture
def run(tmp_path):
    settings = Settings(
        gpu="cpu",
        rules=Rules(repeats=1),
        server_timeout_s=1.0,
        port=None,
        out_dir=tmp_path,
    )
    made = Run(settings, lambda _phase, _detail: None)
    made.resolver._models["tiny", (), "auto"] = SimpleNamespace(name="tiny", digest="d")
    return made


@pytest.fixture
def serving(run, model, machine, tmp_path):
    """The run with a pool of its own, for servers of `make_spec`."""
    run.resolver._models[model.name, (), "auto"] = model
    vars(run.resolver)["hardware"] = machine
    lease = MachineLease(folder=tmp_path / "lease")
    with ServerPool(machine, log_dir=tmp_path / "logs", lease=lease) as pool:
        vars(run)["pool"] = pool
        yield run


def fingerprint(run, url):
    return run._results._fingerprint(SPEC, EngineInstall(engine="vllm", url=url), "burst")


@pytest.mark.parametrize(
    "url", [None, "http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000/v"]
)
def test_a_server_of_this_machine_has_its_fingerprint(run, url):
    assert fingerprint(run, url).cpu_model == run.resolver.hardware.cpu_model


def test_a_server_elsewhere_is_never_taken_for_this_machine(run):
    far = fingerprint(run, "http://far:8000")
    assert far.cpu_model == "not known, at far"
    assert far == fingerprint(run, "http://far:9000")
    assert far != fingerprint(run, "http://further:8000")


def test_a_server_that_never_became_ready_took_its_time_all_the_same(run):
    def acquire(_spec, _model):
        raise ServerStartError("not ready", elapsed_s=12.5)

    vars(run)["pool"] = SimpleNamespace(acquire=acquire)
    for _ in range(2):  # The second one fails at once.
        with pytest.raises(ServerStartError):
            run.serve(SPEC)
    assert run.time_spent == TimeSpent(starting_s=12.5)


def test_a_pause_before_another_look_is_waiting(run):
    assert run.patience.spend(0.02)
    assert run.time_spent.waiting_s >= 0.02
    assert run.time_spent == TimeSpent(waiting_s=run.time_spent.waiting_s)


class Played:
    """The measurement of a cell on a server that runs, as far as a run asks for it."""

    exhausted = False
    server = SimpleNamespace(alive=True, start_id="s")

    def __init__(self, more=0):
        self.more = more

    def extended(self, repeats):
        return Played(self.more + repeats)

    def anew(self):
        return Played()


@pytest.fixture
def turns(run, monkeypatch):
    """Two cells of a run, and the number of the first round of whatever is played on."""
    began = []

    def interleave(cells, *, turn=0):
        began.append((len(cells), turn))
        return turn + 3

    monkeypatch.setattr("pytest_moeperf.run.interleave", interleave)
    monkeypatch.setattr(run, "_in_turns", lambda specs: [range(len(specs))])
    monkeypatch.setattr(run._results, "of_load", lambda _spec, _played: RESULT)
    run._turn = 6
    cells = [MeasuredCell(RESULT, SPEC, Played()) for _ in range(2)]
    return SimpleNamespace(cells=cells, began=began)


def test_a_ratio_is_confirmed_on_both_its_cells_though_one_was_before(run, turns):
    one, other = turns.cells
    other.confirmed = True
    assert run.confirm([one, other])
    assert turns.began == [(2, 6)]
    assert one.measurement.more == other.measurement.more == 1
    assert one.confirmed
    assert not run.confirm([one, other])
    assert run._turn == 9


def test_cells_stay_as_they_were_judged_where_one_of_them_cannot_be_confirmed(
    run, turns, monkeypatch
):
    def interleave(cells, *, turn=0):
        turns.began.append(cells)
        if len(turns.began) == 2:
            raise ServerDiedError("died")
        return turn + 3

    monkeypatch.setattr("pytest_moeperf.run.interleave", interleave)
    monkeypatch.setattr(run, "_in_turns", lambda _specs: [[0], [1]])
    with pytest.raises(ServerDiedError):
        run.confirm(turns.cells)
    assert [(cell.confirmed, cell.measurement.more) for cell in turns.cells] == [(False, 0)] * 2


def test_a_further_look_leaves_the_repeats_that_had_turns_with_others(run, turns):
    cell = turns.cells[0]
    played = cell.measurement
    assert run.look_again(cell)
    assert cell.measurement is played


def test_a_crash_is_no_stop(serving, make_spec):
    """Another server's start lets go of the dead one; how it is stopped shows a new one."""
    spec, other = make_spec(), make_spec(itl_ms=2)
    crashed = serving.serve(spec)
    crashed.process.kill()
    serving.serve(other)
    assert crashed.shutdown is not None
    assert serving.stop(spec).clean
    spent = serving.time_spent
    assert (spent.starts, spent.specs) == (3, 2)
    assert spent.starting_s > crashed.startup_s


def wait_until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def in_turns(run, *specs):
    load = ClosedLoop(concurrency=1, isl=4, osl=4, requests=1)
    return run.measure_in_turns([(spec, load) for spec in specs])


def test_a_server_that_dies_while_others_start_is_told_with_its_log(
    serving, make_spec, monkeypatch
):
    lost = []

    def serve_and_lose(spec, serve=serving.serve):
        server = serve(spec)
        if not lost:
            lost.append(server)
            os.kill(server.pid, signal.SIGKILL)
            wait_until(lambda: not server.alive)
        return server

    monkeypatch.setattr(serving, "serve", serve_and_lose)
    # The start of the second one lets go of the first.
    with pytest.raises(ServerDiedError, match="mini-moe: the server died while in use") as caught:
        in_turns(serving, make_spec(), make_spec(itl_ms=2))
    assert lost[0].shutdown is not None
    assert caught.value.exit_code == -signal.SIGKILL
    assert "startup complete" in "".join(caught.value.log_tail)


def test_a_server_that_made_room_for_another_one_cannot_take_turns_with_it(
    serving, make_spec, monkeypatch
):
    # The model needs 4.4 GiB with its cache and processes, of 0.9 times what is available.
    available = iter([16.0, 16.0, 4.0, 16.0])
    monkeypatch.setattr("pytest_moeperf.pool._available_gib", lambda: next(available))
    with pytest.raises(MoeperfError) as caught:
        in_turns(serving, make_spec(), make_spec(itl_ms=2), make_spec(itl_ms=3))
    assert str(caught.value) == (
        "mini-moe had to make room for a later server of the comparison: this machine cannot run "
        "all of them at once, which measuring in turns needs"
    )
