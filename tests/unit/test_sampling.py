"""What is measured further to settle a verdict, and what is not."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_moeperf import gate
from pytest_moeperf.baseline import Baseline, EngineProvenance
from pytest_moeperf.errors import ServerStartError
from pytest_moeperf.gate import Reference
from pytest_moeperf.measured import MeasuredCell
from pytest_moeperf.patience import Patience
from pytest_moeperf.records import CellResult, EngineInstall, Outcome, ServerSpec
from pytest_moeperf.sampling import Budget, Limits, Sampler

TPOT, ITL = "tpot_ms.p50", "itl_token_ms.p50"
NEW = EngineInstall(engine="vllm", distribution="vllm", version="0.32.0", python=Path("/new"))
OLD = EngineInstall(engine="vllm", distribution="vllm", version="0.31.0", python=Path("/old"))
SPEC = ServerSpec("mini-moe").on(NEW)
USUAL = (20.0, 20.1, 19.9, 20.05, 19.95)
FAILED = ServerStartError("the server ended at once")
MOST_STARTS = 50
"""No verdict takes so many: the buying has no end."""


class ScriptedRun:
    """A run whose servers have the figures that a test gives them; the last one goes on.

    A figure below zero is one of an invalid cell.
    """

    def __init__(self, make_start, fingerprint, *, new, old=(), attached=False):
        self.patience = Patience(sleep=lambda _s: None)
        self.did = []
        self.ended = []
        self.looks = iter(())
        self.resolver = SimpleNamespace(engine=lambda _text: OLD)
        self.unbearable = ()
        """Engines whose servers end under the load of a companion."""
        self.itl_ms = 20.0
        self.takes_s = self.now_s = 0.0
        """What measuring a cell on a fresh server takes, and the time by that."""
        self._make_start = make_start
        self._fingerprint = fingerprint
        self._figures = {NEW.label: list(new), OLD.label: list(old)}
        self._attached = attached
        self._stage = ""
        self._count = 0

    def announce(self, phase, _detail):
        self.did.append(phase)

    @contextmanager
    def stage(self, name):
        self._stage = name
        yield
        self._stage = ""

    def restartable(self, _cell):
        return not self._attached

    def end(self, *specs):
        self.ended += specs

    def measure_anew(self, _cell, spec):
        self.did.append(self._stage)
        assert len(self.did) < MOST_STARTS
        self.now_s += self.takes_s
        return self.result(spec)

    def measure_also(self, cell, spec):
        self.now_s += self.takes_s
        if spec.engine.label in self.unbearable:
            cell.failed_under(FAILED, spec)
            return None
        return self.result(spec)

    def look_again(self, cell):
        value = next(self.looks, None)
        if value is not None:
            start = self._start(abs(value), SPEC)
            cell.result = replace(cell.result, start=start, invalid=value < 0)
        return value is not None

    def measured(self):
        return MeasuredCell(self.result(SPEC), SPEC)

    def result(self, spec):
        figures = self._figures[spec.engine.label]
        value = figures.pop(0) if len(figures) > 1 else figures[0]
        if isinstance(value, Exception):
            raise value
        missing, value = value is None, value or 20.0
        return CellResult(
            cell="c",
            test="",
            server=spec.label,
            engine=spec.engine.label,
            workload="w",
            fingerprint=self._fingerprint,
            start=self._start(None if missing else abs(value), spec),
            invalid=value < 0,
        )

    def _start(self, value, spec):
        self._count += 1
        start = self._make_start(str(self._count), tpot=(value,) * 3, version=spec.engine.version)
        return with_itl(replace(start, session_id="today"), self.itl_ms)


def with_itl(start, itl_ms=20.0):
    """The start with a second metric, which no repeat lacks."""
    repeats = (replace(each, values={**each.values, ITL: itl_ms}) for each in start.repeats)
    return replace(start, repeats=tuple(repeats))


@pytest.fixture
def night(make_start, fingerprint):
    """Builds a sampler over stored starts of 20 ms, and what it judges."""
    there = replace(fingerprint, hardware="h200", gpus=("H200",))

    def build(
        *, new, old=(20.0,), stored=USUAL, hardware="h200", gates=2, attached=False, **limits
    ):
        at = replace(there, hardware=hardware)
        baseline = Baseline(
            cell="suite/c",
            fingerprint=at,
            starts=tuple(
                with_itl(replace(make_start(f"s{n}", tpot=(value,) * 3), session_id=f"s{n}"))
                for n, value in enumerate(stored)
            ),
            created="2026-01-02T03:04:05Z",
            tool="0.1.0",
            engine=EngineProvenance(distribution="vllm", version="0.31.0"),
            expires="2026-12-31",
        )
        reference = Reference(stored=baseline if stored else None, date="2026-01-03")
        references = SimpleNamespace(of=lambda _cell, _metrics: reference)
        run = ScriptedRun(make_start, at, new=new, old=old, attached=attached)
        sampler = Sampler(run, references, Limits(**limits), gates=gates)
        sampler._budget.clock = lambda: run.now_s
        return run, sampler

    return build


def judged(run, sampler):
    result = judge(sampler, run.measured())
    [verdict] = result.verdicts
    return verdict, result


def judge(sampler, cell, *metrics):
    return sampler.settle(sampler.begin(cell, "suite", metrics or [TPOT]))


def test_a_clean_cell_buys_nothing(night):
    run, sampler = night(new=(20.0,), against="vllm==0.31.0")
    verdict, _ = judged(run, sampler)
    assert (verdict.outcome, run.did) == (Outcome.PASS, [])


class Played:
    """The measurement of a cell that waits, as far as it is asked for what it costs."""

    def __init__(self, cost_s):
        self.cost_s = cost_s


class InDoubt:
    """Cells of one server that are all in doubt and wait, and what each costs."""

    def __init__(self, run, sampler, *costs_s, startup_s=60.0):
        self.cells, self.open_cells = [], []
        self._sampler = sampler
        for cost_s in costs_s:
            cell = run.measured()
            start = replace(cell.result.start, startup_s=startup_s)
            cell.result = replace(cell.result, start=start)
            cell.measurement = Played(cost_s)
            self.cells.append(cell)
            self.open_cells.append(sampler.begin(cell, "suite", [TPOT]))
            assert sampler.wants(self.open_cells[-1])
            sampler.wait(self.open_cells[-1])

    def judge(self, number):
        return self._sampler.settle(self.open_cells[number])

    @property
    def further(self):
        return [len(cell.result.further) for cell in self.cells]


def test_a_cell_that_waits_is_measured_no_further_until_it_is_settled(night):
    run, sampler = night(new=(20.7, 20.0))
    tests = InDoubt(run, sampler, 1.0)
    assert (tests.further, run.did) == ([0], [])
    assert tests.judge(0).verdicts[0].outcome is Outcome.PASS
    assert tests.further == [1]


def test_a_clean_cell_wants_nothing(night):
    run, sampler = night(new=(20.0,))
    assert not sampler.wants(sampler.begin(run.measured(), "suite", [TPOT]))


def test_what_no_further_start_is_left_for_wants_none(night):
    run, sampler = night(new=(22.0,), max_starts=1)
    open_cell = sampler.begin(run.measured(), "suite", [TPOT])
    assert not sampler.wants(open_cell)
    [verdict] = sampler.settle(open_cell).verdicts
    assert verdict.reason.endswith("; no further start within --max-starts 1")


def test_one_further_start_serves_all_that_wait(night):
    run, sampler = night(new=(20.7, 20.7, 20.7, 20.0))
    tests = InDoubt(run, sampler, 10.0, 55.0, 5.0)
    outcomes = [tests.judge(number).verdicts[0].outcome for number in range(3)]
    assert outcomes == [Outcome.PASS] * 3
    assert run.did == ["start 2 of up to 5 for suite and 2 more cells"]
    assert tests.further == [1, 1, 1]


def test_what_it_was_enough_for_takes_no_further_one(night):
    """The first is in doubt again after its second start, the other one is not."""
    run, sampler = night(new=(20.7, 20.7, 20.7, 20.0, 20.0))
    tests = InDoubt(run, sampler, 1.0, 1.0)
    tests.judge(0)
    assert tests.further == [2, 1]
    did = list(run.did)
    assert tests.judge(1).verdicts[0].outcome is Outcome.PASS
    assert run.did == did


def test_two_tests_of_one_cell_share_its_starts(night):
    run, sampler = night(new=(20.7, 20.0))
    cell = run.measured()
    open_cells = [sampler.begin(cell, suite, [TPOT]) for suite in ("a", "b")]
    for open_cell in open_cells:
        sampler.wait(open_cell)
    results = [sampler.settle(open_cell) for open_cell in open_cells]
    assert [len(result.further) for result in results] == [1, 1]
    assert run.did == ["start 2 of up to 5 for a"]


def test_what_was_dropped_takes_no_start_of_others(night):
    run, sampler = night(new=(20.7, 20.7, 20.0))
    tests = InDoubt(run, sampler, 1.0, 1.0)
    sampler.drop(tests.open_cells[1])
    tests.judge(0)
    assert tests.further == [1, 0]


def test_what_failed_while_it_was_settled_takes_no_start_of_others(night):
    run, sampler = night(new=(20.7, 20.7, FAILED, 20.0))
    tests = InDoubt(run, sampler, 1.0, 1.0)
    with pytest.raises(ServerStartError):
        tests.judge(0)
    tests.judge(1)
    assert tests.further == [0, 1]


def test_another_server_is_not_theirs(night):
    run, sampler = night(new=(20.7, 20.7, 20.0))
    tests = InDoubt(run, sampler, 1.0, 1.0)
    tests.cells[1].spec = replace(SPEC, max_model_len=64)
    tests.judge(0)
    assert tests.further == [1, 0]


def test_a_cell_that_ended_a_server_takes_no_start_of_others(night):
    run, sampler = night(new=(20.7, 20.7, 20.7, 20.0))
    tests = InDoubt(run, sampler, 1.0, 1.0, 1.0)
    tests.cells[1].alone = True
    tests.judge(0)
    assert tests.further == [1, 0, 1]


def test_both_arms_of_an_ab_serve_all_that_wait(night):
    run, sampler = night(new=(22.0,), against="vllm==0.31.0")
    tests = InDoubt(run, sampler, 1.0, 1.0)
    tests.judge(0)
    did = list(run.did)
    result = tests.judge(1)
    assert (len(result.old), len(result.new)) == (3, 3)
    assert result.against == OLD.label
    [verdict] = result.verdicts
    assert verdict.outcome is Outcome.REGRESSED
    assert run.did == did


def test_a_load_that_ends_the_old_engine_takes_no_pair_from_the_cell_in_doubt(night):
    run, sampler = night(new=(22.0,), against="vllm==0.31.0")
    run.unbearable = (OLD.label,)
    tests = InDoubt(run, sampler, 1.0, 1.0)
    [verdict] = tests.judge(0).verdicts
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.paired
    # A pair of which it has one arm is none.
    assert (len(tests.cells[1].result.starts), tests.cells[1].result.new) == (2, ())


def test_an_old_engine_that_fails_leaves_the_starts_to_be_shared(night):
    run, sampler = night(new=(22.0,), old=(FAILED,), against="vllm==0.31.0")
    tests = InDoubt(run, sampler, 1.0, 1.0, 1.0)
    for number in range(3):
        [verdict] = tests.judge(number).verdicts
        assert verdict.outcome is Outcome.REGRESSED
        assert verdict.reason.endswith(
            "no A/B, because vllm==0.31.0 failed: the server ended at once"
        )
    assert tests.further == [4, 4, 4]
    assert len(run.did) == 1 + 1 + 3


@pytest.mark.parametrize(("max_minutes", "theirs"), [(1, 0), (5, 4)])
def test_others_take_no_time_that_the_cell_in_doubt_may_need(night, max_minutes, theirs):
    """Four further starts of 50 s each."""
    run, sampler = night(new=(22.0,), max_minutes=max_minutes)
    tests = InDoubt(run, sampler, 1.0, 20.0, startup_s=50.0)
    tests.judge(0)
    assert tests.further == [4, theirs]


def test_of_an_a_b_others_take_no_time_that_the_cell_in_doubt_may_need(night):
    """Of 240 s each of the two engines has 120, of which the last start of 10 s leaves 110."""
    run, sampler = night(new=(22.0,), against="vllm==0.31.0", max_minutes=4)
    tests = InDoubt(run, sampler, 1.0, 115.0, startup_s=10.0)
    tests.judge(0)
    assert [len(cell.result.new) for cell in tests.cells] == [3, 0]


def test_what_others_took_on_a_server_is_no_cost_of_the_cell_in_doubt(night):
    # Each start takes 100 s for itself and as much for the other one: 660 s bear three of them.
    run, sampler = night(new=(22.0,), max_minutes=11)
    run.takes_s = 100.0
    tests = InDoubt(run, sampler, 1.0, 100.0, startup_s=10.0)
    tests.judge(0)
    assert tests.further == [3, 3]


def test_on_a_start_that_was_invalid_no_other_cell_is_measured(night):
    run, sampler = night(new=(20.7, 20.7, -20.7, 20.0, 20.1))
    tests = InDoubt(run, sampler, 1.0, 1.0)
    tests.judge(0)
    first, second = (cell.result.further[0].repeats[0].values[TPOT] for cell in tests.cells)
    assert (first, second) == (20.0, 20.1)


def test_a_load_that_ended_the_tested_engine_fails_its_own_test(night):
    run, sampler = night(new=(22.0,))
    run.unbearable = (NEW.label,)
    tests = InDoubt(run, sampler, 1.0, 1.0)
    [verdict] = tests.judge(0).verdicts
    assert verdict.outcome is Outcome.REGRESSED
    with pytest.raises(ServerStartError, match="the server ended at once"):
        tests.judge(1)


def test_a_shared_start_that_was_invalid_counts_for_nothing_and_is_the_last(night):
    run, _ = night(new=(-20.0,))
    cell = run.measured()
    cell.add_start(run.result(SPEC), shared=True)
    assert (cell.alone, cell.invalid) == (True, 0)
    cell.add_start(run.result(SPEC))
    assert cell.invalid == 1


def test_none_takes_a_part_of_the_pairs_that_it_has_no_starts_for(night):
    """The other one has starts for two of the three pairs that a verdict takes."""
    run, sampler = night(new=(22.0,), against="vllm==0.31.0", max_starts=5)
    tests = InDoubt(run, sampler, 1.0, 1.0)
    tests.cells[1].invalid = 1
    tests.judge(0)
    assert [len(cell.result.new) for cell in tests.cells] == [3, 0]


def test_none_takes_more_starts_than_a_cell_may_have(night):
    run, sampler = night(new=(22.0,), max_starts=3)
    tests = InDoubt(run, sampler, 1.0, 1.0)
    tests.cells[1].invalid = 1
    tests.judge(0)
    assert tests.further == [2, 1]


@pytest.mark.parametrize("paired", [False, True])
def test_repeats_on_a_later_start_take_the_place_of_its_own(night, paired):
    run, _ = night(new=(20.0, 21.0, 22.0))
    cell, later = run.measured(), run.result(SPEC)
    if paired:
        cell.add_pair(run.result(SPEC), later)
    else:
        cell.add_start(later)
    first = cell.result.start
    again = replace(later, start=replace(later.start, repeats=later.start.repeats * 2))
    cell.replace_repeats(again)
    assert cell.result.start is first
    assert (cell.result.new if paired else cell.result.further) == (again.start,)
    cell.replace_repeats(replace(again, invalid=True))
    assert cell.result.invalid


def test_a_start_that_was_bad_by_luck_is_outvoted_by_a_second_one(night):
    run, sampler = night(new=(20.7, 20.0), against="vllm==0.31.0")
    verdict, result = judged(run, sampler)
    assert run.did == ["start 2 of up to 2 for suite"]
    assert (verdict.outcome, len(result.further)) == (Outcome.PASS, 1)


def test_what_stays_doubtful_is_measured_on_both_engines_in_turns(night):
    run, sampler = night(new=(24.0,), against="vllm==0.31.0")
    verdict, result = judged(run, sampler)
    assert (verdict.outcome, verdict.paired, verdict.starts) == (Outcome.REGRESSED, True, 3)
    assert run.did[-6:] == [
        "A/B pair 1 of up to 5 for suite, old engine",
        "A/B pair 1 of up to 5 for suite, new engine",
        "A/B pair 2 of up to 5 for suite, new engine",
        "A/B pair 2 of up to 5 for suite, old engine",
        "A/B pair 3 of up to 5 for suite, old engine",
        "A/B pair 3 of up to 5 for suite, new engine",
    ]
    assert [start.engine_version for start in result.old] == ["0.31.0"] * 3
    assert result.against == "vllm==0.31.0"


def test_when_both_engines_are_slow_the_new_one_is_not_blamed(night):
    run, sampler = night(new=(24.0,), old=(24.0,), against="vllm==0.31.0")
    assert judged(run, sampler)[0].outcome is Outcome.ENV_DRIFT


def test_without_an_old_engine_it_takes_five_starts_to_blame_one(night):
    run, sampler = night(new=(22.0,))
    verdict, result = judged(run, sampler)
    assert (verdict.outcome, verdict.paired, len(result.starts)) == (Outcome.REGRESSED, False, 5)
    assert run.did[-1] == "start 5 of up to 5 for suite"


def test_a_gross_loss_is_blamed_after_three(night):
    run, sampler = night(new=(24.0,))
    verdict, result = judged(run, sampler)
    assert (verdict.outcome, verdict.paired, len(result.starts)) == (Outcome.REGRESSED, False, 3)


def test_a_gross_loss_is_blamed_after_two_where_there_will_be_no_third(night):
    run, sampler = night(new=(24.0,), max_starts=2)
    verdict, result = judged(run, sampler)
    assert (verdict.outcome, len(result.starts)) == (Outcome.REGRESSED, 2)
    assert "no further start" not in verdict.reason


def test_the_first_gate_that_fails_raises_the_limit_of_the_next(night):
    run, sampler = night(new=(24.0,), gates=10)
    limits = [judge(sampler, run.measured()).verdicts[0].p_limit for _ in range(2)]
    assert limits == pytest.approx([0.003, 0.006])


@pytest.mark.parametrize(("alone", "second"), [(True, 0.006), (False, 0.003)])
def test_what_was_undecided_meanwhile_has_the_limit_of_when_it_is_settled(night, alone, second):
    """Where the starts of the first one decided on both, the second limit was not needed."""
    run, sampler = night(new=(24.0,), gates=10)
    tests = InDoubt(run, sampler, 1.0, 1.0)
    tests.cells[1].alone = alone
    verdicts = [tests.judge(number).verdicts[0] for number in (0, 1)]
    assert [verdict.outcome for verdict in verdicts] == [Outcome.REGRESSED] * 2
    assert [verdict.p_limit for verdict in verdicts] == pytest.approx([0.003, second])


def test_gates_of_one_cell_have_a_share_of_the_night_each(night):
    run, sampler = night(new=(20.0,), gates=3)
    judge(sampler, run.measured())
    verdicts = judge(sampler, run.measured(), TPOT, ITL).verdicts
    assert [verdict.p_limit for verdict in verdicts] == pytest.approx([0.01, 0.005])
    [verdict] = judge(sampler, run.measured()).verdicts
    assert verdict.p_limit == pytest.approx(0.01 / 6)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_so_many_starts_and_no_more(night, most):
    run, sampler = night(new=(22.0,), max_starts=most)
    verdict, result = judged(run, sampler)
    assert (verdict.outcome, len(result.starts)) == (Outcome.INCONCLUSIVE, most)
    assert verdict.reason.endswith(f"; no further start within --max-starts {most}")


def test_an_a_b_that_could_not_be_finished_is_not_begun(night):
    run, sampler = night(new=(22.0,), against="vllm==0.31.0", max_starts=3)
    verdict, result = judged(run, sampler)
    assert (verdict.outcome, result.old) == (Outcome.INCONCLUSIVE, ())
    assert verdict.reason.endswith("; no A/B of 3 more pairs of starts within --max-starts 3")


@pytest.mark.parametrize(
    ("max_minutes", "outcome"), [(5, Outcome.INCONCLUSIVE), (7, Outcome.REGRESSED)]
)
def test_an_a_b_that_would_take_too_long_is_not_begun(night, max_minutes, outcome):
    """Three pairs are six servers of 60 s."""
    run, sampler = night(new=(22.0,), against="vllm==0.31.0", max_minutes=max_minutes)
    [verdict] = InDoubt(run, sampler, 1.0).judge(0).verdicts
    assert verdict.outcome is outcome
    refusal = f"; no A/B of 3 more pairs of starts within --max-minutes {max_minutes}"
    assert verdict.reason.endswith(refusal) is (outcome is Outcome.INCONCLUSIVE)


def test_a_pair_costs_two_servers_and_each_of_them_a_half(night):
    # 100 s for the second start and 200 s for the first pair leave 600 s; two pairs take 400 s.
    run, sampler = night(new=(22.0,), against="vllm==0.31.0", max_minutes=15)
    run.takes_s = 100.0
    [verdict] = InDoubt(run, sampler, 1.0, startup_s=10.0).judge(0).verdicts
    assert (verdict.outcome, verdict.paired) == (Outcome.REGRESSED, True)


def test_the_checkpoints_of_the_open_metrics_say_how_many_pairs_there_are_to_come(night):
    """A count that allows no loss has earlier ones in a release, but it is not in doubt."""
    run, sampler = night(new=(21.0,), against="vllm==0.31.0", release=True, max_starts=4)
    failed, tpot = judge(sampler, run.measured(), "failed_requests", TPOT).verdicts
    assert failed.outcome is Outcome.INVALID
    assert tpot.reason.endswith("; no A/B of 5 more pairs of starts within --max-starts 4")


def test_a_gross_loss_is_blamed_without_the_a_b_that_no_limit_allows(night):
    run, sampler = night(new=(24.0,), against="vllm==0.31.0", max_starts=3)
    verdict, result = judged(run, sampler)
    assert (verdict.outcome, verdict.paired, result.old) == (Outcome.REGRESSED, False, ())
    assert verdict.reason.endswith(
        ", unpaired: 2 starts today against 5 stored starts; no A/B of 3 more pairs of starts "
        "within --max-starts 3"
    )


def test_without_minutes_nothing_is_bought(night):
    run, sampler = night(new=(24.0,), max_minutes=0)
    verdict, _ = judged(run, sampler)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason.endswith("; no further start within --max-minutes 0")
    assert run.did == []


def test_an_attached_server_is_judged_by_its_one_start(night):
    run, sampler = night(new=(24.0,), attached=True, against="vllm==0.31.0")
    verdict, _ = judged(run, sampler)
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.starts == 1
    assert run.did == []


def test_an_invalid_start_counts_for_nothing_but_as_a_start(night):
    run, sampler = night(new=(24.0, -24.0, 24.0), max_starts=3)
    _, result = judged(run, sampler)
    assert len(run.did) == 2
    assert len(result.starts) == 2


def test_three_invalid_starts_are_enough(night):
    run, sampler = night(new=(24.0, -24.0))
    verdict, _ = judged(run, sampler)
    assert verdict.reason.endswith("; 3 further starts were invalid")
    assert len(run.did) == 3


def test_starts_that_lack_the_metric_end_the_buying(night):
    run, sampler = night(new=(22.0, None))
    verdict, result = judged(run, sampler)
    assert (verdict.outcome, len(result.starts)) == (Outcome.INCONCLUSIVE, 4)
    assert verdict.reason.endswith("; tpot_ms.p50 could not be measured in 3 starts")


@pytest.mark.parametrize(
    ("new", "old", "whose"),
    [
        ((22.0, 22.0, None), (20.0,), "starts"),
        ((22.0,), (None,), "starts of the old engine"),
    ],
)
@pytest.mark.parametrize("stored", [USUAL, ()])
def test_pairs_that_lack_the_metric_in_an_arm_end_the_a_b(night, new, old, whose, stored):
    # Without a baseline there is no second start before the A/B.
    new = new if stored else new[-2:]
    run, sampler = night(new=new, old=old, stored=stored, against="vllm==0.31.0")
    verdict, result = judged(run, sampler)
    expected = Outcome.INCONCLUSIVE if stored else Outcome.NO_BASELINE
    assert (verdict.outcome, len(result.new)) == (expected, 3)
    assert verdict.reason.endswith(f"; tpot_ms.p50 could not be measured in 3 {whose}")


def test_an_old_engine_that_always_starts_cold_ends_the_a_b(night, monkeypatch):
    """Its caches may be where no start finds them; a cold start-up time is held against none."""
    monkeypatch.setattr(gate, "STARTUP", TPOT)
    run, sampler = night(new=(22.0,), old=(20.0,), against="vllm==0.31.0")
    warm = run._start

    def start(value, spec):
        caches = gate.COLD if spec.engine == OLD else "warm"
        return replace(warm(value, spec), environment={gate.ENGINE_CACHES: caches})

    monkeypatch.setattr(run, "_start", start)
    verdict, result = judged(run, sampler)
    assert (verdict.outcome, len(result.new)) == (Outcome.INCONCLUSIVE, 3)
    assert verdict.reason.endswith("could not be measured in 3 starts of the old engine")


def test_a_start_without_the_metric_is_made_up_for(night):
    run, sampler = night(new=(22.0, None, 22.0))
    verdict, result = judged(run, sampler)
    assert (verdict.outcome, verdict.starts, len(result.starts)) == (Outcome.REGRESSED, 5, 6)
    assert run.did[-1] == "start 6 of up to 6 for suite"


def test_a_pair_without_the_metric_is_made_up_for(night):
    run, sampler = night(new=(20.9,), old=(20.0, None, 20.6, 20.0), against="vllm==0.31.0")
    verdict, result = judged(run, sampler)
    assert (verdict.paired, verdict.starts, len(result.new)) == (True, 5, 6)
    assert run.did[-1] == "A/B pair 6 of up to 6 for suite, old engine"


def test_the_old_engine_is_ended_with_the_a_b(night):
    run, sampler = night(new=(22.0,), old=(20.0, None, 20.0), against="vllm==0.31.0")
    judged(run, sampler)
    # The fourth pair, which makes up for the second, ends with the old engine.
    assert run.did[-1] == "A/B pair 4 of up to 5 for suite, old engine"
    assert run.ended[-1] == SPEC.on(OLD)


def test_a_metric_that_is_missing_leaves_the_others_their_starts(night):
    """The loss of one is seen in five starts, though another is in the first start alone."""
    run, sampler = night(new=(22.0, None))
    run.itl_ms = 22.0
    tpot, itl = judge(sampler, run.measured(), TPOT, ITL).verdicts
    assert tpot.reason.endswith("; tpot_ms.p50 could not be measured in 3 starts")
    assert (itl.outcome, itl.starts) == (Outcome.REGRESSED, 5)


def test_an_old_engine_that_fails_is_tried_once(night):
    run, sampler = night(new=(24.0,), old=(FAILED,), against="vllm==0.31.0")
    verdict, _ = judged(run, sampler)
    assert (verdict.outcome, verdict.paired) == (Outcome.REGRESSED, False)
    assert "no A/B, because vllm==0.31.0 failed: the server ended at once" in verdict.reason
    judged(run, sampler)
    assert sum("old engine" in each for each in run.did) == 1


def test_an_old_engine_that_fails_after_a_pair_leaves_the_verdict_to_the_baseline(night):
    run, sampler = night(new=(22.0,), old=(20.0, FAILED), against="vllm==0.31.0")
    verdict, result = judged(run, sampler)
    assert run.did[1:] == [
        "A/B pair 1 of up to 5 for suite, old engine",
        "A/B pair 1 of up to 5 for suite, new engine",
        "A/B pair 2 of up to 5 for suite, new engine",
        "A/B pair 2 of up to 5 for suite, old engine",
        "start 4 of up to 5 for suite",
        "start 5 of up to 5 for suite",
    ]
    assert (verdict.outcome, verdict.paired, verdict.starts) == (Outcome.REGRESSED, False, 5)
    assert verdict.reason.endswith("no A/B, because vllm==0.31.0 failed: the server ended at once")
    assert (len(result.old), len(result.new)) == (1, 1)


def test_the_new_engines_start_without_its_old_one_is_a_start_among_the_most(night):
    run, sampler = night(new=(22.0,), old=(20.0, FAILED), against="vllm==0.31.0", max_starts=5)
    verdict, result = judged(run, sampler)
    # The first start and the second, one of a pair, one left alone, one without the old engine.
    assert (len(result.starts), len(result.new)) == (4, 1)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "; no further start within --max-starts 5; no A/B, because" in verdict.reason


def test_an_a_b_that_breaks_off_after_its_first_look_is_judged_by_that(night):
    run, sampler = night(new=(20.9,), old=(20.0, 20.6, 20.0, FAILED), against="vllm==0.31.0")
    verdict, result = judged(run, sampler)
    assert (verdict.outcome, verdict.paired, verdict.starts) == (Outcome.INCONCLUSIVE, True, 3)
    assert verdict.reason.endswith(
        "; no A/B of 2 more pairs of starts, because vllm==0.31.0 failed: the server ended at once"
    )
    assert len(result.old) == 3


def test_without_a_baseline_and_after_one_pair_there_is_nothing_to_judge_by(night):
    run, sampler = night(new=(22.0,), old=(20.0, FAILED), stored=(), against="vllm==0.31.0")
    verdict, _ = judged(run, sampler)
    assert verdict.outcome is Outcome.NO_BASELINE
    assert verdict.reason.count("failed: the server ended at once") == 1


def test_a_new_engine_that_fails_fails_the_test(night):
    run, sampler = night(new=(24.0, FAILED))
    with pytest.raises(ServerStartError):
        judged(run, sampler)


def test_on_a_cpu_the_same_server_is_looked_at_again_before_another_is_started(night):
    run, sampler = night(hardware="cpu", new=(60.0,))
    run.looks = iter([60.0, 20.0])
    verdict, _ = judged(run, sampler)
    assert verdict.outcome is Outcome.PASS
    assert not any("start 2" in each for each in run.did)


def test_a_gpu_is_quiet_and_is_not_looked_at_again(night):
    run, sampler = night(new=(24.0,))
    run.looks = iter([20.0])
    assert judged(run, sampler)[0].outcome is Outcome.REGRESSED


def test_an_attached_server_is_looked_at_again_on_a_gpu_as_well(night):
    run, sampler = night(new=(24.0,), attached=True)
    run.looks = iter([24.0, 20.0])
    assert judged(run, sampler)[0].outcome is Outcome.PASS


def test_a_look_that_was_invalid_leaves_what_was_measured_before(night):
    run, sampler = night(hardware="cpu", new=(60.0,), max_starts=1)
    run.looks = iter([-20.0])
    cell = run.measured()
    first = cell.result
    result = judge(sampler, cell)
    assert cell.result is first
    assert (result.verdicts[0].outcome, result.invalid) == (Outcome.INCONCLUSIVE, False)


def test_a_second_gate_of_a_cell_uses_what_the_first_one_bought(night):
    run, sampler = night(new=(24.0,))
    cell = run.measured()
    judge(sampler, cell)
    bought = len(run.did)
    assert judge(sampler, cell).verdicts[0].outcome is Outcome.REGRESSED
    assert len(run.did) == bought


def test_a_budget_is_spent_by_the_clock_even_when_the_block_fails():
    clock = iter([0.0, 10.0]).__next__
    budget = Budget(60.0, clock)
    with pytest.raises(ServerStartError), budget.spend():
        raise ServerStartError("failed")
    assert budget.left_s == 50.0
