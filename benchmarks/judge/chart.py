"""A chart of the rules as SVG: how often each is red by mistake, and how often with reason."""

import math
from html import escape

from benchmarks.judge.trial import OURS

WIDTH, ROW, TOP = 860, 30, 64
LABELS, ALARMS, CAUGHT = 300, (316, 566), (606, 836)
"""Right end of the names, and both ends of the two panels."""
LEAST, MOST = 0.01, 30.0
TICKS = {0.01: "≤ 0.01", 0.1: "0.1", 1: "1", 10: "10", 30: "30"}
TARGET_ALARMS, TARGET_CAUGHT = 0.1, 0.9
INK, FAINT, BAND, OURS_INK, OTHERS_INK = "#1f2328", "#d0d7de", "#dafbe1", "#1a7f37", "#cf222e"


def drawn(alarms, caught, *, change):
    """A row for each rule.

    `alarms`: by rule, red nights a month without a change, in the usual world and with
    compilations. `caught`: by rule, the share of cells that lost `change`.
    """
    bottom = TOP + ROW * len(alarms)
    size = f'viewBox="0 0 {WIDTH} {bottom + 44}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f"<title>False alarms, and losses of {percent(change)} caught, by rule</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        *frame(bottom, change),
    ]
    for number, name in enumerate(alarms):
        parts += row(TOP + ROW * (number + 0.5), name, alarms[name], caught[name])
    return "\n".join([*parts, "</svg>", ""])


def frame(bottom, change):
    """Headings, targets as green bands, and grids."""
    yield text(ALARMS[0], 18, "nights a month red by mistake", bold=True)
    yield text(ALARMS[0], 36, "○ usual  ● with compilations")
    yield text(CAUGHT[0], 18, f"losses of {percent(change)} caught", bold=True)
    for left, right in (
        (ALARMS[0], across_alarms(TARGET_ALARMS)),
        (across_caught(TARGET_CAUGHT), CAUGHT[1]),
    ):
        box = f'x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{bottom - TOP}"'
        yield f'<rect {box} fill="{BAND}"/>'
    for value, label in TICKS.items():
        yield line(across_alarms(value), TOP, bottom)
        yield text(across_alarms(value), bottom + 16, label, anchor="middle")
    for value in (0, 0.25, 0.5, 0.75, 1):
        yield line(across_caught(value), TOP, bottom)
        yield text(across_caught(value), bottom + 16, f"{100 * value:.0f} %", anchor="middle")
    yield text(ALARMS[0], bottom + 36, "green: the target")


def row(y, name, alarms, caught):
    ours = name == OURS
    ink = OURS_INK if ours else OTHERS_INK
    usual, compiling = map(across_alarms, alarms)
    yield text(LABELS, y + 4, name, anchor="end", bold=ours)
    yield f'<path d="M{usual:.1f} {y:.1f} L{compiling:.1f} {y:.1f}" stroke="{ink}"/>'
    yield circle(compiling, y, fill=ink, ink=ink)
    yield circle(usual, y, fill="#ffffff", ink=ink, radius=4)
    right = max(across_caught(caught), CAUGHT[0] + 1)
    width = f'width="{right - CAUGHT[0]:.1f}"'
    yield f'<rect x="{CAUGHT[0]}" y="{y - 6:.1f}" {width} height="12" fill="{ink}"/>'


def across_alarms(value):
    left, right = ALARMS
    share = math.log(max(min(value, MOST), LEAST) / LEAST) / math.log(MOST / LEAST)
    return left + share * (right - left)


def across_caught(value):
    left, right = CAUGHT
    return left + value * (right - left)


def circle(x, y, *, fill, ink, radius=6):
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}" stroke="{ink}" '
        'stroke-width="1.5"/>'
    )


def line(x, top, bottom):
    return f'<path d="M{x:.1f} {top} L{x:.1f} {bottom}" stroke="{FAINT}"/>'


def text(x, y, words, *, anchor="start", bold=False):
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}"{weight}>'
        f"{escape(words)}</text>"
    )


def percent(change):
    return f"{-100 * change:.0f} %"
