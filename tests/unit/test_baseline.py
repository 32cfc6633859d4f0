"""What a baseline holds and how a recording extends it."""

import dataclasses
import json

import pytest

from pytest_moeperf.baseline import MAX_STARTS, Baseline, Gate, decode, encode
from pytest_moeperf.document import stored_form
from pytest_moeperf.errors import BaselineError, UsageError
from pytest_moeperf.records import Fingerprint, Outcome, StartRecord
from pytest_moeperf.store import schema


@pytest.fixture
def baseline(make_recording, make_start):
    first = Baseline.begun(make_recording())
    return first.extended(
        make_recording(start=make_start("start-2", tpot=(30.9, None, 31.25))), source="x"
    )


def decoded(text):
    return decode(text, source="b.json", schema=schema("baseline-1"))


def changed(baseline, change):
    """The baseline's text after `change` was done to its document."""
    document = json.loads(encode(baseline))
    change(document)
    return json.dumps(document)


def test_the_text_is_the_reviewed_form(baseline, golden):
    golden("baseline.json", encode(baseline))


def test_a_baseline_reads_back_exactly(baseline):
    assert decoded(encode(baseline)) == baseline


def test_repeats_are_given_by_start_without_what_was_not_measured(baseline):
    assert baseline.repeats("tpot_ms.p50") == ((31.4159, 31.5), (30.9, 31.25))
    assert baseline.repeats("tpot_ms.p99") == ()
    assert baseline.repeats("unknown") == ()
    assert baseline.metrics == ("tpot_ms.p50", "tpot_ms.p99")


def test_the_first_recording_begins_the_baseline(make_recording, make_start):
    begun = Baseline.begun(make_recording())
    assert begun.starts == (stored_form(make_start()),)
    assert begun.created == "2026-01-02T03:04:05Z"
    assert begun.engine_version == "0.32.0"


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
        "record elsewhere with --baseline-dir, or delete b.json to begin anew"
    )


def test_a_newer_format_asks_for_an_update(baseline):
    text = changed(baseline, lambda document: document.update(schema=2, novelty=[]))
    with pytest.raises(BaselineError) as caught:
        decoded(text)
    assert str(caught.value) == (
        "b.json: its format is version 2, this tool reads up to 1: update pytest-moeperf"
    )


def _drop_fingerprint(document):
    del document["fingerprint"]


def _cell_upwards(document):
    document["cell"] = "../../etc/passwd"


def _escape_in_reason(document):
    document["reason"] = "\x1b]0;owned\x07"


def _direction_change_in_environment(document):
    document["starts"][0]["environment"]["torch"] = "\u202e2.0"


def _lone_surrogate(document):
    document["tool"] = "\ud800"


def _huge_tolerance(document):
    document["gates"]["tpot_ms.p50"]["tolerance"] = 1000


def _word_for_value(document):
    document["starts"][1]["repeats"]["values"]["tpot_ms.p50"][0] = "fast"


def _negative_value(document):
    document["starts"][1]["repeats"]["values"]["tpot_ms.p50"][0] = -1


def _column_too_short(document):
    document["starts"][1]["repeats"]["values"]["tpot_ms.p50"].pop()


def _no_starts(document):
    document["starts"] = []


def _unknown_key(document):
    document["starts"][0]["command"] = "rm -rf /"


def _true_for_version(document):
    document["schema"] = "1"


def _line_end_after_time(document):
    document["created"] += "\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_fingerprint, "b.json: $: 'fingerprint' is a required property"),
        (_cell_upwards, 'b.json: $.cell: "../../etc/passwd" must match ^'),
        (
            _escape_in_reason,
            'b.json: $.reason: "\\u001b]0;owned\\u0007" must not contain control characters',
        ),
        (_direction_change_in_environment, 'b.json: $.starts[0].environment.torch: "\\u202e2.0"'),
        (_lone_surrogate, 'b.json: $.tool: "\\ud800" must not contain control characters'),
        (_huge_tolerance, "b.json: $.gates.tpot_ms.p50.tolerance: 1000 must be at most 10"),
        (
            _word_for_value,
            'b.json: $.starts[1].repeats.values.tpot_ms.p50[0]: "fast" must be of type ["number"',
        ),
        (
            _negative_value,
            "b.json: $.starts[1].repeats.values.tpot_ms.p50[0]: -1 must be at least 0",
        ),
        (
            _column_too_short,
            "b.json: $.starts[1].repeats.values.tpot_ms.p50: 2 values for 3 seeds",
        ),
        (_no_starts, "b.json: $.starts: [] must have at least 1 items"),
        (
            _unknown_key,
            "b.json: $.starts[0]: Additional properties are not allowed ('command' was unexpected)",
        ),
        (_true_for_version, 'b.json: $.schema: "1" must be 1'),
        (_line_end_after_time, 'b.json: $.created: "2026-01-02T03:04:05Z\\n" must not contain'),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_place(baseline, change, message):
    with pytest.raises(BaselineError) as caught:
        decoded(changed(baseline, change))
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["null", "[]", '"text"', "1"])
def test_json_that_is_no_object_is_refused(text):
    with pytest.raises(BaselineError, match=r"^b\.json: \$: .* must be of type"):
        decoded(text)


def test_whole_numbers_that_are_written_with_a_point_are_whole(baseline):
    def change(document):
        document["fingerprint"]["cpu_cores"] = 2.0
        document["starts"][0]["repeats"]["seeds"][1] = 1.0

    assert encode(decoded(changed(baseline, change))) == encode(baseline)


def test_the_schemas_list_the_fields_of_the_records():
    definitions = {name: schema(name)["$defs"] for name in ("baseline-1", "run-1")}
    for document in definitions.values():
        for name, record in (("fingerprint", Fingerprint), ("start", StartRecord)):
            fields = {field.name for field in dataclasses.fields(record)}
            assert set(document[name]["properties"]) == fields
            assert set(document[name]["required"]) == fields
    assert set(definitions["run-1"]["outcome"]["enum"]) == set(Outcome)


@pytest.mark.parametrize("name", ["baseline-1", "run-1"])
def test_the_schemas_are_schemas(name):
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - as in the code it is tested for

    Draft202012Validator.check_schema(schema(name))
