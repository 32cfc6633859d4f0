import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.balance import ExpertCounts
from pytest_moeperf.report.heatmap import heat_map
from pytest_moeperf.report.terminal import render_lines

EIGHT = ExpertCounts(
    counts=np.array(
        [
            [250, 250, 250, 250, 250, 250, 250, 250],
            [215, 235, 285, 250, 262, 238, 225, 290],
            [120, 130, 180, 250, 320, 376, 310, 314],
            [20, 0, 880, 60, 50, 930, 40, 20],
        ]
    ),
    tokens=1000,
    top_k=2,
    layers=(0, 1, 2, 31),
)


def many(experts, *, top_k=8, tokens=2500, layers=3):
    """Counts that rise and fall in each layer; the first one has a hot expert."""
    rows = []
    for layer in range(layers):
        weights = [20 + (expert * 37 + layer * 11) % 41 for expert in range(experts)]
        scale = tokens * top_k / sum(weights)
        row = [int(weight * scale) for weight in weights]
        for place in range(tokens * top_k - sum(row)):
            row[place % experts] += 1
        rows.append(row)
    hot = 97 % experts
    taken = [0 if expert == hot else load // 16 for expert, load in enumerate(rows[0])]
    rows[0] = [load - less for load, less in zip(rows[0], taken, strict=True)]
    rows[0][hot] += sum(taken)
    return ExpertCounts(counts=np.array(rows), tokens=tokens, top_k=top_k)


def shown(counts, *, width, color=False):
    return render_lines(heat_map(counts, width=width), width=width, color=color)


@pytest.mark.parametrize(
    ("name", "counts", "width", "color"),
    [
        ("heatmap-8-experts.txt", EIGHT, 80, False),
        ("heatmap-8-experts-color.txt", EIGHT, 80, True),
        ("heatmap-64-experts.txt", many(64), 80, False),
        ("heatmap-256-experts-80-columns.txt", many(256), 80, False),
        ("heatmap-256-experts-120-columns.txt", many(256), 120, False),
        ("heatmap-256-experts-color.txt", many(256), 120, True),
    ],
)
def test_looks_like_this(name, counts, width, color, golden):
    golden(name, shown(counts, width=width, color=color))


def test_the_documents_show_it(request):
    document = request.config.rootpath / "docs" / "balance.md"
    assert shown(EIGHT, width=80) in document.read_text(encoding="utf-8")


def test_eight_experts_look_alike_at_80_and_120_columns():
    assert shown(EIGHT, width=80) == shown(EIGHT, width=120)


@given(st.integers(1, 400), st.integers(30, 200))
def test_no_line_of_the_map_is_wider_than_the_terminal(experts, width):
    counts = many(experts, top_k=1, layers=1)
    layer_lines = shown(counts, width=width).splitlines()[1:3]
    assert max(map(len, layer_lines)) <= width


def test_colours_repeat_what_the_blocks_say():
    plain = ["".join(span.text for span in line).rstrip() for line in heat_map(many(64), width=80)]
    assert shown(many(64), width=80).splitlines() == plain


def test_an_expert_without_tokens_is_a_dot_also_where_too_few_were_counted_to_call_it_dead():
    counts = ExpertCounts(counts=np.array([[3, 0, 1]]), tokens=4, top_k=1)
    text = shown(counts, width=80)
    assert "·  0.0" in text
    assert "no token took" not in text


def test_a_block_of_several_experts_shows_the_busiest():
    row = [0] * 99 + [100] + [50] * 100
    counts = ExpertCounts(counts=np.array([row]), tokens=5100, top_k=1)
    text = shown(counts, width=80)
    assert "a block is the busiest of 4 experts" in text
    cells = text.splitlines()[2].split()[1]
    assert cells == "·" * 24 + "█" + "█" * 25


def test_many_findings_are_counted():
    collapsed = [[95, 1, 1, 1, 1, 1, 0, 0]] * 10
    counts = ExpertCounts(counts=np.array(collapsed), tokens=100, top_k=1)
    lines = shown(counts, width=80).splitlines()
    assert sum("has collapsed" in line for line in lines) == 8
    assert lines[-1] == "… and 2 findings more"


def test_many_dead_experts_are_counted():
    counts = ExpertCounts(counts=np.array([[40] * 20 + [0] * 20]), tokens=800, top_k=1)
    assert "layer 0: no token took 20 of 40 experts" in shown(counts, width=80)
