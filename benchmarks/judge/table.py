"""The results as tables of the documentation."""

import re

from scipy import stats

from benchmarks.judge.trial import OURS
from benchmarks.judge.world import COMPILING, UNCHECKED, WORLDS
from pytest_moeperf.records import Outcome

MARKED = r"(<!-- {name}: judge -->\n).*?(<!-- end -->)"
COLUMNS = tuple(world.name for world in WORLDS if world is not UNCHECKED)
SHOWN = (
    Outcome.PASS,
    Outcome.IMPROVED,
    Outcome.INCONCLUSIVE,
    Outcome.ENV_DRIFT,
    Outcome.UNSTABLE,
    Outcome.INVALID,
    Outcome.REGRESSED,
)


def rules(quiet, changed):
    """Red nights of 30 without any change, by world, and the share of changed cells caught."""
    changes = sorted({result.change for result in changed}, reverse=True)
    header = (
        "rule",
        "starts a cell",
        *(f"red nights a month: {name}" for name in COLUMNS),
        *(f"caught: {percent(change)}" for change in changes),
    )
    names = [name for name in changed[0].counts if name != OURS]
    rows = [our_row(OURS, quiet, changed, COLUMNS)]
    rows += [other_row(name, quiet, changed) for name in names]
    return table(header, rows)


def our_row(name, quiet, changed, columns):
    found = by_world(quiet)
    return (
        f"**{name}**",
        f"{found['usual'].counts[OURS].starts_a_cell:.2f}",
        *(f"**{monthly(found[column].counts[OURS])}**" for column in columns),
        *(f"**{share(each.counts[OURS].share)}**" for each in ordered(changed)),
    )


def other_row(name, quiet, changed):
    found = by_world(quiet)
    # Others do not look for compilations.
    worlds = [UNCHECKED.name if column == COMPILING.name else column for column in COLUMNS]
    return (
        name,
        f"{found['usual'].counts[name].starts_a_cell:.0f}",
        *(f"{found[world].counts[name].monthly:.2g}" for world in worlds),
        *(share(each.counts[name].share) for each in ordered(changed)),
    )


def detail(quiet, changed, release):
    """What our rule said of all gates, in every world and for every change."""
    header = (
        "world",
        "change",
        "nights",
        "starts a cell",
        "red nights a month (95 % at most)",
        "nights a month with a failed test",
        "cells caught",
        *(f"{outcome}" for outcome in SHOWN),
    )
    rows = [detail_row(result) for result in (*quiet, *ordered(changed), *release)]
    return table(header, rows)


def detail_row(result):
    count = result.counts[OURS]
    gates = sum(result.outcomes.values())
    return (
        f"{result.world}, release" if result.release else result.world,
        percent(result.change) if result.change else "none",
        f"{count.nights:,}",
        f"{count.starts_a_cell:.2f}",
        "" if result.change else f"{count.monthly:.2g} ({at_most(count):.2g})",
        "" if result.change else f"{30 * result.failing_nights / count.nights:.2g}",
        share(count.share) if result.change else "",
        *(share(result.outcomes[outcome] / gates) for outcome in SHOWN),
    )


def noise(fits):
    """What the runs on GPUs differ by."""
    header = ("runs", "model", "metric", "repeats of a start", "medians of starts")
    rows = [
        (
            kind,
            model,
            f"`{metric}`",
            f"{100 * fit.repeat:.2f} % ({fit.repeat_df} df)" if fit.repeat_df else "",
            f"{100 * fit.start:.2f} %",
        )
        for (kind, model, metric), fit in fits.items()
    ]
    return table(header, rows)


def table(header, rows):
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def monthly(count):
    if not count.red_nights:
        return f"0 (< {at_most(count):.2g})"
    return f"{count.monthly:.2g}"


def at_most(count):
    """95 % upper bound of the red nights a month (Clopper and Pearson)."""
    red, nights = count.red_nights, count.nights
    return 30 * float(stats.beta.ppf(0.95, red + 1, nights - red)) if red < nights else 30.0


def share(value):
    if 0 < value < 0.001:
        return "< 0.1 %"
    return f"{100 * value:.1f} %" if 0 < value < 1 else f"{100 * value:.0f} %"


def percent(change):
    return f"{100 * change:+.0f} %".replace("-", "−")


def by_world(results):
    return {result.world: result for result in results}


def ordered(results):
    return sorted(results, key=lambda result: -result.change)


def updated(document, name, text):
    """The document with `text` between the marks of this name."""
    made, count = re.subn(
        MARKED.format(name=name),
        lambda match: f"{match[1]}{text}\n{match[2]}",
        document,
        flags=re.DOTALL,
    )
    if count != 1:
        raise SystemExit(f"the document needs '<!-- {name}: judge -->' and '<!-- end -->' once")
    return made
