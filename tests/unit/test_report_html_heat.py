"""Experts × layers on a page."""

import re
from dataclasses import replace

import pytest

from pytest_moeperf.records import RoutingRecord
from pytest_moeperf.report.html_heat import LEVELS, heats

EIGHT = RoutingRecord(
    route="responses",
    layers=(0, 1, 31),
    experts=8,
    top_k=2,
    prefill_tokens=1000,
    decode_tokens=0,
    prefill=(
        (250, 250, 250, 250, 250, 250, 250, 250),
        (120, 130, 180, 250, 320, 376, 310, 314),
        (20, 0, 880, 60, 50, 930, 40, 20),
    ),
    decode=None,
)


def ramp(experts, *, layers=3):
    """From 0 to twice the uniform share, shifted a little from layer to layer; top 1."""
    rows = [
        tuple(2 * ((expert + 7 * layer) % experts) for expert in range(experts))
        for layer in range(layers)
    ]
    return RoutingRecord(
        route="responses",
        layers=tuple(range(layers)),
        experts=experts,
        top_k=1,
        prefill_tokens=experts * (experts - 1),
        decode_tokens=experts * (experts - 1),
        prefill=tuple(rows),
        decode=tuple(rows),
    )


def test_few_experts_are_numbers_with_their_step_of_the_scale():
    (heat,) = heats(EIGHT, zones=100)
    assert heat.drawing is None
    assert [cell.share for cell in heat.numbers[2]] == [
        *("1.0", "0.0", "44.0", "3.0", "2.5", "46.5", "2.0", "1.0")
    ]
    # Of 250 on average: 120 is 0.48 times, 180 0.72, 320 1.28, 376 1.504.
    assert [cell.level for cell in heat.numbers[1]] == [1, 2, 2, 3, 4, 5, 4, 4]
    assert [cell.level for cell in heat.numbers[2]] == [1, 0, 6, 1, 1, 6, 1, 1]
    assert heat.numbers[2][5].title == "layer 31, expert 5: 930 times, 46.5 %, 3.72 × uniform"


@pytest.mark.parametrize(
    ("count", "level"),
    [(0, 0), (1, 1), (49, 1), (50, 2), (79, 2), (80, 3), (120, 3), (121, 4), (150, 4), (151, 5)],
)
def test_the_published_bounds_belong_to_the_better_step(count, level):
    # One expert of ten has `count` where 100 is uniform, the others share the rest.
    rest, odd = divmod(1000 - count, 9)
    row = (count, *(rest + (place < odd) for place in range(9)))
    routing = replace(EIGHT, layers=(0,), experts=10, top_k=1, prefill_tokens=1000, prefill=(row,))
    (heat,) = heats(routing, zones=100)
    assert heat.numbers[0][0].level == level


def test_worst_layers_and_findings_are_told_in_words():
    (heat,) = heats(EIGHT, zones=100)
    assert heat.worst == (
        "layer 31: expert 5 takes 46.5 % of the load, 3.72 × the uniform share; expert 1 takes 0 %",
        "layer 1: expert 5 takes 18.8 % of the load, 1.50 × the uniform share; expert 0 takes 6 %",
    )
    assert heat.findings == (
        "layer 31 has collapsed: experts 5, 2 take 90.5 % of its tokens (over 80 % is a collapse)",
        "layer 31: no token took expert 1",
    )
    assert [layer.alert for layer in heat.layers] == [False, True, True]


def painted(heat):
    """The level of every expert as a drawing leaves it: later strokes cover earlier ones."""
    grid = [[None] * heat.experts for _ in heat.layers]
    for name, path in heat.drawing.paths:
        x = row = None
        for command, first, second in re.findall(r"([Mmh])(\d+) ?(\d*)", path):
            if command == "M":
                x, row = int(first), int(second)
            elif command == "m":
                x += int(first)
            else:
                for expert in range(x, x + int(first)):
                    grid[row][expert] = name
                x += int(first)
    return grid


def step(times):
    """Of a load in multiples of the uniform one."""
    low, high = (0.5, 0.8), (0, 1.2, 1.5, 2.0, 4.0)
    return sum(times >= bound for bound in low) + sum(times > bound for bound in high)


@pytest.mark.parametrize("experts", [18, 64, 256])
def test_a_drawing_shows_every_expert_of_every_layer(experts):
    prefill, decode = heats(ramp(experts), zones=100)
    # The mean is experts − 1. With 256 experts some have exactly 0.8 and 1.2 times that.
    levels = [[f"h{step(count / (experts - 1))}" for count in row] for row in ramp(experts).prefill]
    assert painted(prefill) == painted(decode) == levels


def test_256_experts_in_58_layers_stay_legible():
    (heat, _) = heats(ramp(256, layers=58), zones=750)
    drawing = heat.drawing
    assert drawing.expert >= 2
    assert drawing.row >= 12
    assert drawing.width <= 1120
    assert [tick for _, tick in drawing.ticks] == list(range(0, 256, 16))
    assert [layer.y for layer in heat.layers] == sorted({layer.y for layer in heat.layers})
    covered = [(zone.y, zone.x + step) for zone in drawing.zones for step in range(zone.width)]
    assert covered == [(layer, expert) for layer in range(58) for expert in range(256)]
    assert len(drawing.zones) <= 750


def test_a_zone_tells_each_of_its_experts():
    (heat, _) = heats(ramp(32, layers=1), zones=64)
    zones = heat.drawing.zones
    assert len(zones) == 32
    # Expert 31 has 62 where 31 is uniform.
    assert zones[31].title == "layer 0, expert 31: 2.00 × uniform"
    (few, _) = heats(ramp(32, layers=4), zones=64)
    # 0, 2 … 6 where 31 is uniform.
    assert few.drawing.zones[0].title == "layer 0, experts 0 to 1, × uniform: 0, 0.065"


def test_a_zone_of_many_experts_tells_both_ends():
    (heat, _) = heats(ramp(256, layers=4), zones=64)
    # Layer 3 begins at expert 235 with none: (235 + 7 × 3) % 256; the one before it has 510 of 255.
    assert heat.drawing.zones[3 * 16 + 14].title == (
        "layer 3, experts 224 to 239: most 2.00 × (234), least 0.00 × (235)"
    )


def test_counts_that_cannot_be_true_are_told_and_not_drawn():
    wrong = replace(EIGHT, prefill_tokens=999)
    (heat,) = heats(wrong, zones=100)
    assert heat.error.startswith("layer 0: counts add up to 2,000, but 999 tokens × top 2")
    assert not heat.layers
    ragged = replace(EIGHT, prefill=((1, 2), (3,)))
    assert heats(ragged, zones=100)[0].error


def test_the_scale_has_a_name_for_every_step():
    assert len(LEVELS) == 8
    assert LEVELS[3] == "0.8 to 1.2 (healthy)"
