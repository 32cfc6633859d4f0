"""Compares rules that call a night red, on simulated nights with the noise of real runs.

    python -m benchmarks.judge --write-docs

Takes minutes on one core. The same seed gives the same figures.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.judge import chart, noise, table, trial
from benchmarks.judge.world import CELLS, COMPILING, GATES, UNCHECKED, USUAL, WORLDS

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "judge.md"
CHART = ROOT / "docs" / "judge.svg"
CHANGES = (-0.03, -0.05, -0.10)
OF_CHANGED, OF_RELEASE = 25, 5
"""One changed night for so many quiet ones: all of its cells count."""


def main():
    args = parser().parse_args()
    document = noise.runs()
    fits = noise.fits(document)
    began = time.perf_counter()
    quiet = [
        played(world, args, nights=args.nights, others=world is not COMPILING) for world in WORLDS
    ]
    nights = max(1, args.nights // OF_CHANGED)
    changed = [played(USUAL, args, nights=nights, change=change) for change in CHANGES]
    compiling = [
        played(COMPILING, args, nights=nights, change=change, others=False) for change in CHANGES
    ]
    release = [
        played(USUAL, args, nights=number, change=change, others=False, release=True)
        for change, number in ((0.0, max(1, args.nights // OF_RELEASE)), (-0.03, nights))
    ]
    texts = {
        "noise": table.noise(fits),
        "rules": table.rules(quiet, changed),
        "detail": table.detail(quiet, changed + compiling, release)
        + "\n\n"
        + "\n".join(about(args, document, quiet)),
    }
    print("\n\n".join(texts.values()))
    note(f"{time.perf_counter() - began:.0f} s")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    results = [asdict(each) for each in (*quiet, *changed, *compiling, *release)]
    args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if args.write_docs:
        write(texts, quiet, changed)
    return 0


def parser():
    made = argparse.ArgumentParser(prog="python -m benchmarks.judge", description=__doc__)
    add = made.add_argument
    add("--nights", type=int, default=2000, help="quiet nights of each world")
    add("--seed", type=int, default=1)
    add("--json", type=Path, default=ROOT / ".benchmarks" / "judge.json", help="every figure")
    add("--write-docs", action="store_true", help="put tables and chart into docs/")
    return made


def played(world, args, *, nights, document=None, **options):
    began = time.perf_counter()
    result = trial.run(
        world, nights=nights, seed=args.seed, document=document or noise.runs(), **options
    )
    ours = result.counts[trial.OURS]
    note(
        f"{world.name}, {table.percent(result.change)}{', release' * result.release}: "
        f"{ours.red_nights} of {nights} nights red, {ours.share:.1%} of cells, "
        f"{ours.starts_a_cell:.2f} starts a cell, {time.perf_counter() - began:.0f} s"
    )
    return result


def about(args, document, quiet):
    """What the tables were made with, as lines of one paragraph."""
    silence, jitter = noise.silence(document)
    kinds = {gates[0].name: gates[0] for gates in noise.kinds(document)}
    compiling = next(result for result in quiet if result.world == COMPILING.name)
    yield f"Simulated on {datetime.now(UTC):%d %B %Y} with seed {args.seed}: {args.nights:,} nights"
    yield f"of {CELLS * GATES} gates a world, a new set of baselines every"
    yield f"{trial.NIGHTS_OF_A_BASELINE} nights. Standard deviations of the first gate, starts and"
    yield "repeats:"
    yield "; ".join(
        f"{name} {100 * kind.start:.2f} % and {100 * kind.repeat:.2f} %"
        for name, kind in kinds.items()
    )
    yield f"(each cell's times a factor with a log standard deviation of {noise.SPREAD:g})."
    yield f"A sound repeat is silent for {100 * silence:.0f} % of its time (log standard deviation"
    yield f"{jitter:.2f}). {100 * compiling.found:.1f} % of the compilations were found invalid;"
    yield f"{100 * compiling.no_value:.2f} % of the starts had too many of them for a value."


def write(texts, quiet, changed):
    document = DOCUMENT.read_text(encoding="utf-8")
    for name, text in texts.items():
        document = table.updated(document, name, text)
    DOCUMENT.write_text(document, encoding="utf-8")
    worlds = table.by_world(quiet)
    usual, compiling = worlds[USUAL.name].counts, worlds[UNCHECKED.name].counts
    # Others do not look for compilations, ours does.
    compiling = {**compiling, trial.OURS: worlds[COMPILING.name].counts[trial.OURS]}
    five = next(result for result in changed if result.change == -0.05)
    alarms = {name: (usual[name].monthly, compiling[name].monthly) for name in usual}
    caught = {name: count.share for name, count in five.counts.items()}
    CHART.write_text(chart.drawn(alarms, caught, change=five.change), encoding="utf-8")


def note(text):
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
