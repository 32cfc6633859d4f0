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
from pytest_moeperf.timeline import TimeSpent


def test_the_text_is_the_documented_form(session_report, golden):
    golden("run.json", to_json(session_report))


def test_the_schema_allows_it(session_report):
    Draft202012Validator(schema("run-1")).validate(json.loads(to_json(session_report)))


def test_a_run_without_cells_is_valid(session_report):
    empty = dataclasses.replace(session_report, cells=(), engines=(), machine={}, notes=())
    Draft202012Validator(schema("run-1")).validate(json.loads(to_json(empty)))


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
    assert to_json(from_json(text, source="run.json", schema=schema("run-1"))) == text


def test_a_run_of_an_earlier_version_lacks_what_came_later(session_report):
    document = json.loads(to_json(session_report))
    del document["time"], document["options"]
    later = {"against", "bought", "new", "next_steps", "old", "routing", "warmup_reason"}
    for cell in document["cells"]:
        for name in later:
            del cell[name]
        for verdict in cell["verdicts"]:
            for name in ("effect", "interval", "p", "paired", "stored", "values"):
                del verdict[name]
    read = from_json(json.dumps(document), source="run.json", schema=schema("run-1"))
    assert read.outcomes == session_report.outcomes
    assert read.cells[0].verdicts[0].interval is None
    assert (read.options, read.spent) == (None, TimeSpent())


def test_columns_of_different_lengths_are_an_error_that_names_the_file(session_report):
    document = json.loads(to_json(session_report))
    document["cells"][0]["discarded"]["seeds"].append(8)
    with pytest.raises(BaselineError, match=r"^run\.json: lists that belong together differ: "):
        from_json(json.dumps(document), source="run.json", schema=schema("run-1"))


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
        Draft202012Validator(schema("run-1")).validate(document)
        assert read_routing(document["cells"][0]["routing"]) == each


def test_a_cell_whose_experts_nobody_counted_says_so(session_report):
    assert json.loads(to_json(session_report))["cells"][0]["routing"] is None
