"""The JSON form of records: strict to read, canonical to write."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.document import parse, printable, render, rounded, validate
from pytest_moeperf.errors import BaselineError
from pytest_moeperf.record_form import (
    read_start,
    samples_document,
    start_document,
    stored_form,
)
from pytest_moeperf.records import Finding, GpuReading, Sample, StartRecord

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)
names = st.text("abcdefgh_.0123456789", min_size=1, max_size=8)


figures = st.none() | finite
readings = st.builds(
    GpuReading,
    uuid=st.sampled_from(["GPU-0", "GPU-1"]),
    samples=st.integers(0, 10_000),
    sm_clock_mhz=figures,
    sm_clock_mhz_min=figures,
    memory_clock_mhz=figures,
    power_w=figures,
    temperature_c=figures,
    utilisation=figures,
    memory_used_gib=figures,
    throttled=st.dictionaries(names, st.floats(0, 1), max_size=2),
    foreign=st.lists(st.text(), max_size=2).map(tuple),
    idle_before=st.booleans(),
)


@st.composite
def starts(draw):
    metrics = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    repeats = draw(
        st.lists(
            st.builds(
                Sample,
                seed=st.integers(0, 2**31),
                values=st.fixed_dictionaries(
                    {}, optional=dict.fromkeys(metrics, st.none() | finite)
                ),
                findings=st.lists(
                    st.builds(Finding, code=names, message=st.text(), advice=st.text()), max_size=2
                ).map(tuple),
                gpus=st.lists(readings, max_size=2).map(tuple),
            ),
            max_size=4,
        )
    )
    return StartRecord(
        start_id=draw(names),
        session_id=draw(names),
        recorded_at="2026-01-02T03:04:05Z",
        startup_s=draw(st.none() | finite),
        engine_version=draw(st.none() | names),
        environment=draw(st.dictionaries(names, st.text(), max_size=3)),
        repeats=tuple(repeats),
        warmup=tuple(
            draw(
                st.lists(
                    st.builds(
                        Sample,
                        seed=st.integers(0, 2**31),
                        values=st.fixed_dictionaries(dict.fromkeys(metrics, finite)),
                    ),
                    max_size=3,
                )
            )
        ),
    )


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (31.41592653589793, 31.4159),
        (1234567.123456, 1234567.1235),
        (0.000123456789, 0.000123457),  # six digits, where four decimals would leave one
        (0.0, 0.0),
        (-0.0, 0.0),
        (7, 7.0),
        (None, None),
        (float("nan"), None),
        (float("inf"), None),
    ],
)
def test_figures_are_stored_with_four_decimals_or_six_digits(value, stored):
    assert rounded(value) == stored
    assert str(rounded(value)) == str(stored)


@given(finite)
def test_rounding_twice_changes_nothing(value):
    assert rounded(rounded(value)) == rounded(value)


@given(st.floats(min_value=1e-9, max_value=1e9))
def test_rounding_moves_a_figure_by_half_a_unit_of_its_last_digit_at_most(value):
    assert abs(rounded(value) - value) <= 0.000051
    assert abs(rounded(value) / value - 1) <= 0.0000051


@given(starts())
def test_a_stored_start_reads_back_exactly(start):
    once = stored_form(start)
    assert stored_form(once) == once
    assert json.loads(render(once.environment)) == once.environment
    assert read_start(start_document(once)) == once
    assert [sample.seed for sample in once.warmup] == [sample.seed for sample in start.warmup]


def test_what_gpus_did_is_stored_by_column_without_what_is_usual():
    calm = GpuReading(uuid="GPU-b", samples=9, power_w=512.34567)
    taken = GpuReading(uuid="GPU-a", samples=8, foreign=("7 a\nb",), idle_before=False)
    document = samples_document(
        (Sample(seed=5, values={}), Sample(seed=6, values={}, gpus=(calm, taken)))
    )
    assert document["gpus"] == {
        "uuids": ["GPU-a", "GPU-b"],
        "repeat": [1, 1],
        "gpu": [1, 0],
        "samples": [9, 8],
        "power_w": [512.3457, None],
        "foreign": [[], ["7 a\\nb"]],
        "idle_before": [True, False],
    }


def test_a_cpu_has_no_column_of_gpus():
    assert "gpus" not in samples_document((Sample(seed=5, values={}),))


def test_a_metric_that_one_repeat_lacks_reads_back_as_missing():
    start = StartRecord(
        start_id="a",
        session_id="s",
        recorded_at="2026-01-02T03:04:05Z",
        startup_s=40.12346,
        engine_version=None,
        repeats=(
            Sample(seed=1, values={"ttft_ms.p50": 10.00004}),
            Sample(seed=2, values={"tpot_ms.p50": 3.0}),
        ),
    )
    stored = stored_form(start)
    assert stored.startup_s == 40.1235
    assert [repeat.values for repeat in stored.repeats] == [
        {"ttft_ms.p50": 10.0, "tpot_ms.p50": None},
        {"ttft_ms.p50": None, "tpot_ms.p50": 3.0},
    ]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("HF_TOKEN", False),
        ("VLLM_API_KEY", False),
        ("db-password", False),
        ("SIGNING_KEY", False),
        ("TOKEN_FILE", False),
        ("VLLM_KEYBOARD", True),
        ("VLLM_MAX_NUM_BATCHED_TOKENS", True),
        ("OMP_NUM_THREADS", True),
        ("VLLM_TOKENIZER", True),
    ],
)
def test_secrets_of_the_environment_are_not_stored(name, kept):
    start = StartRecord(
        start_id="a",
        session_id="s",
        recorded_at="2026-01-02T03:04:05Z",
        startup_s=None,
        engine_version=None,
        environment={name: "hunter2"},
    )
    assert stored_form(start).environment == {name: "hunter2" if kept else "(redacted)"}


def test_an_environment_value_is_stored_on_one_line_of_bounded_length():
    start = StartRecord(
        start_id="a",
        session_id="s",
        recorded_at="2026-01-02T03:04:05Z",
        startup_s=None,
        engine_version=None,
        environment={"OMP_A": "one\ntwo", "OMP_B": "x" * 900},
    )
    assert stored_form(start).environment == {"OMP_A": "one\\ntwo", "OMP_B": "x" * 500}


def test_scalars_share_a_line_and_everything_else_has_its_own():
    document = {
        "values": [1.5, None, 2],
        "gate": {"unit": "ms", "direction": "lower", "tolerance": 0.05},
        "four": {"d": 4, "c": 3, "b": 2, "a": "ä"},
        "none": [],
    }
    assert render(document) == (
        "{\n"
        '  "four": {\n'
        '    "a": "\\u00e4",\n'
        '    "b": 2,\n'
        '    "c": 3,\n'
        '    "d": 4\n'
        "  },\n"
        '  "gate": {"direction": "lower", "tolerance": 0.05, "unit": "ms"},\n'
        '  "none": [],\n'
        '  "values": [1.5, null, 2]\n'
        "}\n"
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(json_values)
def test_what_is_rendered_parses_to_the_same(document):
    text = render(document)
    assert parse(text, source="x") == document
    assert text.isascii()
    assert text.endswith("\n")


def test_only_json_can_be_rendered():
    with pytest.raises(TypeError, match="set has no place"):
        render({"a": {1, 2}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x: line 1 column 1: not JSON: Expecting value"),
        ('{"a": 1,\n "b" 2}', "x: line 2 column 6: not JSON: Expecting ':' delimiter"),
        ("<<<<<<< HEAD", "x: line 1 column 1: not JSON: Expecting value"),
        ('{"a": {"b": [1, NaN]}}', "x: $.a.b[1] is not a finite number"),
        ('{"a": -Infinity}', "x: $.a is not a finite number"),
        ('{"a": 1e999}', "x: $.a is not a finite number"),
        (f'{{"a": 1{"0" * 400}}}', "x: $.a is not a finite number"),
        ('{"\\u001b[31m": NaN}', "x: $.\\x1b[31m is not a finite number"),
        ('{"a": 1, "b": 2, "a": 3}', 'x: not JSON: the key "a" is repeated in one object'),
        ("[" * 100_000, "x: not a baseline: nested too deeply"),
        ("[" * 300 + "1" + "]" * 300, None),
    ],
)
def test_anything_but_plain_json_is_refused_with_its_place(text, message):
    if message is None:
        parse(text, source="x")
        return
    with pytest.raises(BaselineError) as caught:
        parse(text, source="x")
    assert str(caught.value) == message


def test_a_number_of_thousands_of_digits_is_refused_in_one_line():
    with pytest.raises(BaselineError) as caught:
        parse("1" * 10_000, source="x")
    assert str(caught.value).startswith("x: not JSON: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("document", "schema", "message"),
    [
        ({}, {"required": ["cell"]}, "x: $: 'cell' is a required property"),
        (
            {"a": {"b\x1b": 1}},
            {"properties": {"a": {"additionalProperties": False}}},
            "x: $.a: Additional properties are not allowed ('b\\x1b' was unexpected)",
        ),
        ([1, "a"], {"items": {"type": "integer"}}, 'x: $[1]: "a" must be of type "integer"'),
        ({"a": -1}, {"properties": {"a": {"minimum": 0}}}, "x: $.a: -1 must be at least 0"),
        ("a" * 99, {"maxLength": 9}, f'x: $: "{"a" * 58}… must have at most 9 characters'),
        ("\x1b[2J", {"not": {"pattern": "\\x1b"}},
         'x: $: "\\u001b[2J" must not contain control characters'),
        ({"a": 1, "b": 1}, {"minProperties": 3},
         'x: $: {"a": 1, "b": 1} must have at least 3 entries'),
        (
            {"k" * 999: 1},
            {"additionalProperties": False},
            "x: $: Additional properties are not allowed ('" + "k" * 159 + "…",
        ),
        ([1, 1], {"uniqueItems": True}, "x: $: [1, 1] breaks the rule uniqueItems"),
    ],
)  # fmt: skip
def test_a_schema_error_names_place_value_and_rule(document, schema, message):
    with pytest.raises(BaselineError) as caught:
        validate(document, schema, source="x")
    assert str(caught.value) == message


def test_escapes_replace_what_a_terminal_would_obey():
    assert printable("größe 1") == "größe 1"
    assert printable("a\x1b[31mb\u202ec") == "a\\x1b[31mb\\u202ec"
