"""`report.html`: one page, whatever a run says."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pytest_moeperf.metrics import KEYS
from pytest_moeperf.records import (
    CellResult,
    Finding,
    NextStep,
    Outcome,
    RoutingRecord,
    Sample,
    Verdict,
)
from pytest_moeperf.report import html
from pytest_moeperf.report.html import to_html
from pytest_moeperf.report.json import from_json, to_json
from pytest_moeperf.store import schema

VOID = {"circle", "link", "meta", "path", "rect"}
"""Elements without an end tag; those of SVG where they close themselves."""
HOSTILE = (
    "</style><script>alert(1)</script><img src=x onerror='a()'>\" onload=\"b() {{ 7 * 7 }} &amp;"
)


class Page(HTMLParser):
    """Reads a page strictly: every element is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style"} & set(self.open):
            self.text.append(data)

    def values(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]

    def tags(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def routed(layers, experts, *, top_k=8, tokens=4000):
    """Counts of a router that is trained but not perfect, the same each time."""
    random = np.random.default_rng(experts)

    def phase(count):
        rows = []
        for _ in range(layers):
            row = np.floor(random.dirichlet([6.0] * experts) * count * top_k).astype(int)
            row = np.minimum(row, count)
            for place in range(count * top_k - row.sum()):
                row[place % experts] += 1
            rows.append(tuple(row.tolist()))
        return tuple(rows)

    return RoutingRecord(
        route="responses",
        layers=tuple(range(layers)),
        experts=experts,
        top_k=top_k,
        prefill_tokens=tokens,
        decode_tokens=tokens // 4,
        prefill=phase(tokens),
        decode=phase(tokens // 4),
    )


def test_the_page_is_the_documented_form(session_report, golden):
    golden("report.html", to_html(session_report))


def test_the_page_of_a_stored_run_is_that_of_the_session(session_report):
    stored = from_json(to_json(session_report), source="run.json", schema=schema("run-2"))
    page = to_html(stored)
    # The file has no password, and a second of a duration less.
    assert page == to_html(session_report)


def test_every_element_is_closed_and_every_id_is_there_once(session_report):
    page = Page(to_html(session_report))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = {target.removeprefix("#") for target in page.values("href")}
    targets |= {target for each in page.values("aria-labelledby") for target in each.split()}
    assert targets <= set(ids)


def test_nothing_is_loaded_from_elsewhere(session_report):
    text = to_html(session_report)
    page = Page(text)
    assert all(target.startswith("#") for target in page.values("href"))
    assert not page.values("src")
    assert not page.tags("script")
    assert not page.tags("link")
    assert "url(" not in text
    assert "@import" not in text


def test_no_secret_is_shown(session_report):
    start = session_report.cells[0].start
    secret = replace(start, environment={"HF_TOKEN": "hf_abcdefgh"})
    cell = replace(session_report.cells[0], start=secret)
    text = to_html(replace(session_report, cells=(cell,)))
    assert "hunter2" not in text
    assert "hf_abcdefgh" not in text
    assert "(redacted)" in text


def hostile_report(report):
    """The report with what an attacker would write in every text that comes from a run."""
    finding = Finding(code=HOSTILE, message=HOSTILE, advice=HOSTILE)
    cells = []
    for cell in report.cells:
        start = cell.start and replace(
            cell.start,
            start_id=HOSTILE,
            engine_version=HOSTILE,
            recorded_at=HOSTILE,
            environment={HOSTILE: HOSTILE},
            repeats=tuple(
                replace(
                    each,
                    gpus=tuple(replace(gpu, uuid=HOSTILE, foreign=(HOSTILE,)) for gpu in each.gpus),
                )
                for each in cell.start.repeats
            ),
        )
        cells.append(
            replace(
                cell,
                cell=HOSTILE,
                test=HOSTILE,
                server=HOSTILE,
                engine=HOSTILE,
                workload=HOSTILE,
                against=HOSTILE,
                start=start,
                warmup_reason=HOSTILE,
                next_steps=(NextStep(HOSTILE, HOSTILE),),
                discarded=tuple(replace(each, findings=(finding,)) for each in cell.discarded),
                fingerprint=cell.fingerprint
                and replace(cell.fingerprint, model=HOSTILE, gpus=(HOSTILE,)),
                routing=cell.routing and replace(cell.routing, route=HOSTILE),
                verdicts=tuple(
                    replace(
                        each,
                        metric=each.metric if each.stored else HOSTILE,
                        unit=HOSTILE,
                        reason=HOSTILE,
                        notes=(HOSTILE,),
                    )
                    for each in cell.verdicts
                ),
            )
        )
    return replace(
        report,
        tool_version=HOSTILE,
        started_at=HOSTILE,
        hardware=HOSTILE,
        machine={HOSTILE: HOSTILE, "hardware": HOSTILE},
        unmeasured=(HOSTILE,),
        notes=(HOSTILE,),
        options=(HOSTILE,),
        engines=tuple(
            replace(each, distribution=HOSTILE, version=HOSTILE, url=None, python=Path(HOSTILE))
            for each in report.engines
        ),
        cells=tuple(cells),
    )


def test_what_a_run_says_is_text_and_not_markup(session_report):
    text = to_html(hostile_report(session_report))
    page, plain = Page(text), Page(to_html(session_report))
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in plain.elements}
    assert {name for _, attrs in page.elements for name in attrs} == {
        name for _, attrs in plain.elements for name in attrs
    }
    assert page.words.count("<script>alert(1)</script>") > 30
    # Neither a template's expression nor an entity is read in what a run says.
    assert page.words.count("{{ 7 * 7 }} &amp;") > 30
    assert "49" not in page.words


@pytest.mark.parametrize(
    ("character", "shown"),
    [("\x1b", r"\x1b"), ("\0", r"\x00"), ("\u202e", r"\u202e"), ("\ud800", r"\ud800")],
)
def test_what_would_hide_or_turn_text_around_is_shown_as_an_escape(
    session_report, character, shown
):
    text = to_html(replace(session_report, notes=(f"a{character}b – c",)))
    assert f"<li>a{shown}b – c</li>" in text
    assert character not in text


def test_failures_come_first_the_most_urgent_on_top(session_report):
    page = to_html(session_report)
    order = [
        page.index(f'<h2 id="{name}"') for name in ("failed", "open", "notes", "cells", "experts")
    ]
    assert order == sorted(order)
    assert page.index("REGRESSED</span> tpot_ms.p50") < page.index("INVALID</span> cell")


def test_a_failure_has_all_that_a_reader_needs(session_report):
    words = Page(to_html(session_report)).words
    start = words.index("1 of 8 requests failed")
    card = words[words.index("REGRESSED tpot_ms.p50") : start + 300]
    for fact in (
        "57.3 % above 20.0 ms, more than the 25 % that are allowed",
        "Measured 31.5 ms ± 0.1 %",
        "Expected 20.0 ms",
        "Allowed ≤ 25.0",
        "+57.3 % (+55.8 … +58.8)",
        "3 + 3 A/B",
        "2e-07 (limit 0.0005)",
        "What differs the server may run on 1 core today; it was 2 cores",
        "1 of 8 requests failed: HTTP 500: read the server's log",
        "Next pytest 'suites/serving/test_single_stream.py' --gpu cpu measure again",
    ):
        assert fact in card


def test_before_a_release_an_open_question_is_a_failure(session_report):
    verdict = Verdict(metric="tpot_ms.p50", outcome=Outcome.INCONCLUSIVE, reason="too much noise")
    cell = replace(session_report.cells[0], verdicts=(verdict,))
    nightly = replace(session_report, cells=(cell,), unmeasured=())
    for report, mood, sign in (
        (nightly, "open", "?"),
        (replace(nightly, release=True), "failed", "✕"),
    ):
        page = to_html(report)
        assert f'<h2 id="{mood}">' in page
        assert f'<header class="{mood}">' in page
        # The count at the top and the cell's own say the same.
        badges = set(re.findall(r'<span class="badge (\w+)"><span aria-hidden="true">(.)', page))
        assert badges == {(mood, sign)}


def test_a_test_without_a_verdict_is_named(session_report):
    words = Page(to_html(session_report)).words
    assert "✕ 1 test failed without a verdict; " in words
    assert "failed without a verdict: suites/moe/test_late.py::test_late: AssertionError" in words


def test_a_run_without_cells_says_so(session_report):
    empty = replace(session_report, cells=(), unmeasured=(), notes=(), machine={})
    words = Page(to_html(empty)).words
    assert "Nothing was judged" in words
    assert "All cells" not in words


def test_no_meaning_is_by_colour_alone(session_report):
    page = to_html(session_report)
    badges = re.findall(
        r'<span class="badge (\w+)"><span aria-hidden="true">(.)</span> (\w+)</span>', page
    )
    assert {(tone, sign) for tone, sign, _ in badges} == {
        ("failed", "✕"),
        ("open", "?"),
        ("good", "✓"),
    }
    assert {word for _, _, word in badges} == {"REGRESSED", "INVALID", "INCOMPARABLE", "PASS"}
    pictures = [attrs for attrs in Page(page).tags("svg") if "aria-hidden" not in attrs]
    assert pictures
    assert all("aria-label" in each or "aria-labelledby" in each for each in pictures)


def test_a_usual_run_stays_small(session_report):
    """27 cells with every metric, or the experts of DeepSeek-V3 in both phases."""
    first = session_report.cells[0]
    repeats = tuple(
        Sample(seed=seed, values=dict.fromkeys(KEYS, 123.456 + seed)) for seed in range(3)
    )
    passed = replace(
        first,
        start=replace(first.start, repeats=repeats),
        further=(),
        old=(),
        new=(),
        discarded=(),
        verdicts=(replace(first.verdicts[0], outcome=Outcome.PASS, paired=False),) * 2,
        next_steps=(),
    )
    cells = (passed,) * 27
    assert len(to_html(replace(session_report, cells=cells)).encode()) < 270_000
    balance = replace(session_report.cells[-1], routing=routed(58, 256))
    assert len(to_html(replace(session_report, cells=(balance,))).encode()) < 300_000


def test_what_several_tests_say_of_one_cell_stands_together_with_one_pair_of_maps(session_report):
    first = session_report.cells[0]
    said = [
        replace(
            first,
            test=f"test_balance.py::test_{number}",
            routing=routed(2, 8),
            verdicts=(Verdict(metric=f"measure_{number}", outcome=Outcome.PASS),),
        )
        for number in range(4)
    ]
    other = replace(said[0], start=replace(first.start, start_id="of another start"))
    between = replace(session_report.cells[-1], cell="serving/between", routing=None)
    cells = (said[0], between, *said[1:], other)
    text = to_html(replace(session_report, cells=cells))
    page = Page(text)
    maps = [each for each in page.values("id") if "-heat-" in each]
    assert maps == ["cell-1-heat-1", "cell-1-heat-2", "cell-6-heat-1", "cell-6-heat-2"]
    rows = text.partition(">All cells<")[2].partition("</table>")[0]
    assert re.findall(r'rowspan="(\d+)"', rows) == ["4", "1"]
    assert re.findall(r"<td>(measure_\d)</td>", rows) == [
        *(f"measure_{number}" for number in range(4)),
        "measure_0",
    ]
    assert rows.count("measured, without a verdict of its own") == 1


STYLE = (Path(html.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")


def palettes():
    """Names and colours, light and dark; what is not said for dark is as in light."""
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w+)", block))
        for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    )
    return {"light": light, "dark": {**light, **dark}}


def luminance(colour):
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * each for each in digits)
    linear = []
    for place in (0, 2, 4):
        value = int(digits[place : place + 2], 16) / 255
        linear.append(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """Of WCAG 2.2; 4.5 is its AA for text of this size."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground"),
    [
        *((text, ground) for text in ("text", "dim", "link", "bad") for ground in ("page", "card")),
        *((tone, f"{tone}-ground") for tone in ("good", "open", "bad")),
        ("text", "allowed"),
        *(("on-1", f"h{level}") for level in (1, 2, 3, 4)),
        *(("on-5", "h5"), ("on-6", "h6"), ("on-6", "h7")),
    ],
)
def test_text_stands_out_from_its_ground(theme, text, ground):
    colours = palettes()[theme]
    assert contrast(colours[text], colours[ground]) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_more_load_the_further_from_the_page_also_without_colours(theme):
    colours = palettes()[theme]
    steps = [contrast(colours[f"h{level}"], colours["page"]) for level in range(1, 8)]
    assert all(after > before for before, after in pairwise(steps))


def test_a_cell_without_anything_is_no_error(session_report):
    bare = CellResult(
        cell="a/b", test="t", server="s", engine="e", workload="w", fingerprint=None, start=None
    )
    assert "a/b" in Page(to_html(replace(session_report, cells=(bare,)))).words
