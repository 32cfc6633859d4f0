"""Results that are none: every one is refused in a sentence, none with a traceback."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_moeperf.errors import UsageError
from pytest_moeperf.exchange import documents, read_result
from pytest_moeperf.metrics import KEYS

DATA = Path(__file__).parents[1] / "data" / "results"
RECORDED = json.loads((DATA / "vllm-0.32.0.json").read_text())
SUMMARY = json.loads((DATA / "vllm-0.32.0-summary.json").read_text())
SGLANG = documents((DATA / "sglang-0.5.23.jsonl").read_text(), name="sglang")


def test_documents_follow_each_other_on_lines_or_not():
    assert documents('\n{"a": 1}\n{"b": Infinity}\n', name="f") == [{"a": 1}, {"b": float("inf")}]
    assert documents('{\n "a": 1\n}', name="f") == [{"a": 1}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: is empty; a result is a JSON object"),
        (" \n", "f: is empty; a result is a JSON object"),
        ('{"a": 1}\n{"b": ', "f: line 2 column 7: not JSON: Expecting value"),
        ("mean_ttft_ms", "f: line 1 column 1: not JSON: Expecting value"),
        ("[" * 100_000, "f: not a result: nested too deeply"),
        ("1" * 5000, "f: not a result: Exceeds the limit"),
    ],
)
def test_a_file_that_is_no_json_is_one_line(text, message):
    with pytest.raises(UsageError) as caught:
        documents(text, name="f")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("document", [{}, [], 3, None, "text", {"metrics": {}}, [RECORDED]])
def test_an_unknown_document_names_the_known_ones(document):
    with pytest.raises(UsageError) as caught:
        read_result(document, name="f")
    assert str(caught.value) == (
        "f: not a result of a known kind; known are: `moeperf load --json`; "
        "`vllm bench serve --save-result`; SGLang's `bench_serving --output-file`"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ttfts": [0.1, 0.2]}, "ttfts has 2 entries and itls has 6: both must have one"),
        ({"start_times": []}, "ttfts has 6 entries and start_times has 0"),
        ({"ttfts": [-0.2] * 6}, "ttfts has -0.2: a figure is a number from 0 to 4e9"),
        ({"itls": [[float("nan")]] * 6}, "itls has NaN: a figure"),
        ({"itls": [0.1] * 6}, "itls has 0.1: it must hold lists"),
        ({"itls": [[4e9] * 2] * 6}, "itls add up to centuries: they are seconds"),
        ({"output_lens": "3"}, 'output_lens is "3": it must be a list'),
        ({"output_lens": [True] * 6}, "output_lens has true: a figure"),
        ({"request_goodput": float("inf")}, "request_goodput has Infinity: a figure"),
        ({"duration": "x" * 99}, f'duration has "{"x" * 38}…: a figure'),
    ],
)
def test_a_figure_that_cannot_be_is_named(changes, message):
    with pytest.raises(UsageError) as caught:
        read_result(RECORDED | changes, name="f")
    assert str(caught.value).startswith(f"f: {message}")


def test_a_summary_with_a_negative_latency_is_refused():
    with pytest.raises(UsageError, match=r"^f: p99_ttft_ms has -1: a figure"):
        read_result(SUMMARY | {"p99_ttft_ms": -1}, name="f")


def test_our_document_is_checked_as_well():
    document = {"url": "", "workload": "", "metrics": {"ttft_ms.p50": "fast"}}
    with pytest.raises(UsageError, match=r'^f: metrics: ttft_ms.p50 has "fast": a figure'):
        read_result(document, name="f")
    with pytest.raises(UsageError, match=r"^f: metrics is \[\]: it must be an object"):
        read_result(document | {"metrics": []}, name="f")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
SAMPLES = (
    RECORDED,
    SUMMARY,
    *SGLANG,
    {"url": "", "workload": "", "metrics": {"ttft_ms.p50": 1}, "findings": [{}]},
)


def outcome(document):
    """The result, or the sentence that refuses it."""
    try:
        return read_result(document, name="f")
    except UsageError as error:
        return str(error)


@settings(max_examples=300)
@given(sample=st.sampled_from(SAMPLES), data=st.data())
def test_whatever_a_field_holds_is_read_or_refused(sample, data):
    key = data.draw(st.sampled_from(sorted(sample)))
    column = sample[key]
    if isinstance(column, list):
        changed = [data.draw(ANYTHING), *column[1:]]
        changed = data.draw(st.sampled_from([changed, data.draw(ANYTHING)]))
    else:
        changed = data.draw(ANYTHING)
    result = outcome({**sample, key: changed})
    if isinstance(result, str):
        assert result.startswith("f: ")
        assert result.isprintable()
    else:
        assert set(result.values) == set(KEYS)
        assert all(value is None or value >= 0 for value in result.values.values())
