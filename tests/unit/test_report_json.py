"""`run.json`."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from pytest_moeperf.errors import BaselineError
from pytest_moeperf.record_form import read_routing
from pytest_moeperf.records import EngineInstall
from pytest_moeperf.report.json import from_json, to_json
from pytest_moeperf.store import schema


def test_the_text_is_the_documented_form(session_report, golden):
    golden("run.json", to_json(session_report))


def test_the_schema_allows_it(session_report):
    Draft202012Validator(schema("run-2")).validate(json.loads(to_json(session_report)))


def test_a_run_without_cells_is_valid(session_report):
    empty = dataclasses.replace(session_report, cells=(), engines=(), machine={}, notes=())
    Draft202012Validator(schema("run-2")).validate(json.loads(to_json(empty)))


def test_no_secret_is_written(session_report):
    # The attached server's URL of this report has a password and a key.
    assert "hunter2" not in to_json(session_report)


def test_the_interpreter_of_an_engine_is_named(session_report):
    engine = EngineInstall(engine="vllm", version="0.32.0", python=Path("/env/bin/python"))
    report = dataclasses.replace(session_report, engines=(engine,))
    assert json.loads(to_json(report))["engines"] == [
        {
            "distribution": None,
            "engine": "vllm",
            "python": "/env/bin/python",
            "url": None,
            "version": "0.32.0",
        }
    ]


def test_a_run_reads_back_as_it_was_written(session_report):
    # Of figures that rounding leaves as they are: what is left of the time is worked out again.
    text = to_json(dataclasses.replace(session_report, duration_s=245.3))
    assert to_json(from_json(text, source="run.json", schema=schema("run-2"))) == text


def test_a_run_that_did_not_tell_its_waiting_reads_as_one_that_never_waited(session_report):
    document = json.loads(to_json(session_report))
    del document["time"]["waiting_s"]
    read = from_json(json.dumps(document), source="run.json", schema=schema("run-2"))
    assert read.spent == session_report.spent


def test_what_only_some_runs_have_reads_back(session_report):
    report = dataclasses.replace(
        session_report, release=True, finished=False, options=None, spent=None
    )
    read = from_json(to_json(report), source="run.json", schema=schema("run-2"))
    assert (read.release, read.finished, read.options, read.spent) == (True, False, None, None)
    assert read.unmeasured == session_report.unmeasured
    assert read.cells[0].next_steps == session_report.cells[0].next_steps


def test_a_run_of_another_format_is_refused(session_report):
    document = {**json.loads(to_json(session_report)), "schema": 1}
    del document["release"]
    with pytest.raises(BaselineError, match=r"^run\.json: \$\.schema: 1 must be 2$"):
        from_json(json.dumps(document), source="run.json", schema=schema("run-2"))


def test_columns_of_different_lengths_are_an_error_that_names_the_file(session_report):
    document = json.loads(to_json(session_report))
    document["cells"][0]["discarded"]["seeds"].append(8)
    with pytest.raises(BaselineError, match=r"^run\.json: lists that belong together differ: "):
        from_json(json.dumps(document), source="run.json", schema=schema("run-2"))


def test_what_is_not_a_number_is_missing(session_report):
    cell = session_report.cells[0]
    verdict = dataclasses.replace(cell.verdicts[0], change=math.inf, spread=math.nan)
    report = dataclasses.replace(
        session_report, cells=(dataclasses.replace(cell, verdicts=(verdict,)),)
    )
    written = json.loads(to_json(report))["cells"][0]["verdicts"][0]
    assert (written["change"], written["spread"]) == (None, None)


def test_routing_reads_back_as_it_was(session_report):
    routing = session_report.cells[-1].routing
    prefill_alone = dataclasses.replace(routing, decode_tokens=0, decode=None)
    for each in (routing, prefill_alone):
        cell = dataclasses.replace(session_report.cells[-1], routing=each)
        document = json.loads(to_json(dataclasses.replace(session_report, cells=(cell,))))
        Draft202012Validator(schema("run-2")).validate(document)
        assert read_routing(document["cells"][0]["routing"]) == each


def test_a_cell_whose_experts_nobody_counted_says_so(session_report):
    assert json.loads(to_json(session_report))["cells"][0]["routing"] is None
