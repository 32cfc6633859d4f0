"""Which cores are chosen, and what is said of the loads that were played."""

import json
from argparse import Namespace

import pytest

from pytest_moeperf import selftest
from pytest_moeperf.cli.selftest import run_selftest, summary
from pytest_moeperf.probe import BusyWatch, Bystanders
from pytest_moeperf.records import ClientRecord
from pytest_moeperf.selftest import Cores, Step, choose_cores
from pytest_moeperf.truth import Accuracy, Figure

APART = Cores(0, 1)
QUIET = Bystanders(cores=0.0, names=())
ALONE = {core: frozenset({core}) for core in range(8)}
PAIRED = {core: frozenset({core, core ^ 1}) for core in range(8)}


@pytest.mark.parametrize(
    ("usable", "siblings", "cores"),
    [
        ([0, 1], ALONE, Cores(0, 1)),
        ([3, 5, 7], ALONE, Cores(3, 7)),
        ([0, 1, 2, 3], PAIRED, Cores(0, 3)),
        ([0, 1], PAIRED, Cores(0, 1)),
        ([4], ALONE, Cores(4, 4)),
        ([0, 1], {}, Cores(0, 1)),
    ],
)
def test_the_server_gets_a_core_apart_from_the_clients(usable, siblings, cores):
    assert choose_cores(usable, siblings) == cores


def test_one_core_is_shared():
    assert Cores(4, 4).shared
    assert not Cores(0, 1).shared


@pytest.fixture
def make_step():
    def make(rate, mode="spread", *, itl_p99=10.0, late_ms=0.1, findings=()):
        return Step(
            mode=mode,
            rate=rate,
            accuracy=Accuracy(
                chunks_sent=8000,
                chunks_seen=8000,
                chunks_per_s=Figure(8000, 8008),
                ttft_ms_p50=Figure(50, 50.125),
                ttft_ms_p99=Figure(50, 50.25),
                itl_ms_p50=Figure(10, 10),
                itl_ms_p99=Figure(10, itl_p99),
                stamp_delay_ms_p50=0.01,
                stamp_delay_ms_p99=0.02,
                lateness_ms_p99=late_ms,
            ),
            client=ClientRecord(
                workers=1,
                timestamps="kernel",
                cpu_s=0.08,
                cpu_share=0.25,
                read_lag_ms_p50=0.01,
                read_lag_ms_p99=0.04,
                reads=8000,
                merged_reads=0,
                lost_arrivals=0,
                clock_step_ms=0.0,
            ),
            findings=findings,
        )

    return make


def test_verdicts(make_step):
    assert make_step(10_000).verdict == "ok"
    assert make_step(10_000, itl_p99=12.5).verdict == "client limited: ITL p99 +2.50 ms"
    assert make_step(10_000, findings=("client_cpu",)).verdict == "client limited: client_cpu"
    late = make_step(10_000, late_ms=3.25)
    assert late.verdict == "server could not hold the schedule (p99 3.2 ms late)"
    assert not late.ok
    # What the client saw wrong is its own fault however late the server was.
    assert make_step(10_000, late_ms=3.25, itl_p99=12.5).verdict.startswith("client limited")


def test_the_limit_is_the_highest_rate_that_all_modes_carry(make_step):
    steps = [
        make_step(10_000),
        make_step(10_000, "step"),
        make_step(25_000),
        make_step(25_000, "step", findings=("client_reads",)),
    ]
    assert summary(steps) == (
        "This host measures up to 10,000 chunks/s with one worker "
        "(at 25,000 the client is the limit)"
    )


def test_a_limit_of_the_server_is_told_apart(make_step):
    steps = [make_step(10_000), make_step(25_000, late_ms=9.0)]
    assert summary(steps).endswith(
        "(at 25,000 the scripted server is the limit, so it may be more)"
    )


def test_no_limit_was_found(make_step):
    assert summary([make_step(10_000)]).endswith("(more was not tried)")


def test_a_host_that_carries_nothing(make_step):
    bad = make_step(10_000, itl_p99=20.0)
    assert summary([bad]) == (
        "This host measures less than 10,000 chunks/s: one worker could not keep up"
    )
    late = make_step(10_000, late_ms=5.0)
    assert summary([late]).endswith(": the scripted server could not keep up")


@pytest.fixture
def played(monkeypatch, make_step):
    """Has `run_selftest` find these steps."""

    def play(*steps, cores=APART, others=QUIET):
        monkeypatch.setattr(selftest, "run", lambda *_args, **_named: (step for step in steps))
        monkeypatch.setattr(selftest, "cores_here", lambda: cores)
        monkeypatch.setattr(BusyWatch, "bystanders", lambda _: others)

    return play


def test_the_table(played, make_step, capsys):
    played(make_step(10_000), make_step(25_000, "step", itl_p99=12.5))
    assert run_selftest(Namespace(json=False)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Client on core 0, scripted server on core 1"
    # 80 ms for 8,000 chunks are 10 for 1,000.
    assert lines[3].split() == [
        *("10,000", "spread", "+0.10%", "+0.12", "ms", "+0.00%", "+0.00%"),
        *("10.0", "25%", "0.04", "ms", "ok"),
    ]
    assert "+25.00%" in lines[4]
    assert lines[4].endswith("client limited: ITL p99 +2.50 ms")
    assert lines[5].startswith("This host measures up to 10,000 chunks/s with one worker")
    assert len(lines) == 6


def test_higher_rates_are_not_played_after_one_that_failed(played, make_step, capsys):
    played(
        make_step(10_000, findings=("client_cpu",)),
        make_step(10_000, "step"),
        make_step(25_000),
        make_step(25_000, "step"),
    )
    assert run_selftest(Namespace(json=True)) == 1
    assert len(json.loads(capsys.readouterr().out)["steps"]) == 2


def test_columns_stand_below_their_titles(played, make_step, capsys):
    played(make_step(10_000))
    run_selftest(Namespace(json=False))
    _, above, titles, figures, _ = capsys.readouterr().out.splitlines()
    pairs = (("chunks/s", "10,000"), ("sent", "spread"), ("core", "25%"))
    for title, figure in pairs:
        assert titles.index(title) + len(title) == figures.index(figure) + len(figure)
    assert titles.index("verdict") == figures.index("ok")
    assert above.index("throughput") + len("throughput") == figures.index("+0.10%") + len("+0.10%")


def test_a_single_core_is_explained(played, make_step, capsys):
    played(make_step(10_000), cores=Cores(0, 0))
    run_selftest(Namespace(json=False))
    assert capsys.readouterr().out.startswith("One core only: the client shares it")


def test_others_on_the_machine_are_named(played, make_step, capsys, monkeypatch):
    monkeypatch.setattr("pytest_moeperf.cli.selftest.usable_cores", lambda: 2)
    played(make_step(10_000), others=Bystanders(cores=1.2, names=("make",)))
    run_selftest(Namespace(json=False))
    assert capsys.readouterr().out.splitlines()[-2] == (
        "Not a quiet machine: others kept 1.2 of 2 usable cores busy (make)"
    )


def test_a_host_that_carries_nothing_fails_the_command(played, make_step, capsys):
    played(make_step(10_000, findings=("client_cpu",)))
    assert run_selftest(Namespace(json=True)) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["chunks_per_s_limit"] is None
    assert document["steps"][0]["findings"] == ["client_cpu"]
    assert document["steps"][0]["cpu_ms_per_1000_chunks"] == pytest.approx(10.0)
    assert document["steps"][0]["accuracy"]["ttft_ms_p50"] == {"true": 50, "seen": 50.125}
