"""By what the plugin knows its tests: fixtures that they use, and markers that they carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

COUNTING_FIXTURE = "experts"
"""Its servers count; all others are timed."""
GATING_FIXTURE = "measure"
"""Its cells are gated by a p under the session's limit; all else is judged without that limit."""
TIMING_FIXTURES = frozenset({GATING_FIXTURE, "serve"})
MEASURING_FIXTURES = TIMING_FIXTURES | {COUNTING_FIXTURE}
FIXTURES_MODULE = "pytest_moeperf.fixtures"
"""Where they are defined: a project's own fixture of one of these names is none of them."""

ACROSS_ENGINES = "across_engines"
OWN_SERVER = "own_server"
STOPS_SERVER = "stops_server"
XDIST_GROUP = "moeperf"

_DESCRIPTIONS = (
    f"{ACROSS_ENGINES}(*names): each server is a mapping by engine; skipped unless all are given.",
    f"{OWN_SERVER}: the test is about a server that is started here; skipped for an attached one.",
    f"{STOPS_SERVER}: the test ends a shared server; it runs after all others that use one.",
    "gpus(count): the test needs at least so many GPUs; it is skipped where there are fewer.",
)


def register(config: pytest.Config) -> None:
    """Add the markers to pytest's list, so that `--strict-markers` knows them."""
    for description in _DESCRIPTIONS:
        config.addinivalue_line("markers", description)


def _uses(item: pytest.Item, names: Iterable[str]) -> bool:
    """Whether the test has one of the plugin's own fixtures, itself or beneath another fixture."""
    asked = getattr(item, "fixturenames", ())
    return any(name in asked and _is_ours(item, name) for name in names)


def _is_ours(item: pytest.Item, name: str) -> bool:
    # pytest tells nowhere else which of several fixtures of one name a test gets. The last one
    # overrides the others, unless it asks for what it overrides.
    info = getattr(item, "_fixtureinfo", None)
    definitions = info.name2fixturedefs.get(name, ()) if info is not None else ()
    for definition in reversed(definitions):
        if getattr(definition.func, "__module__", None) == FIXTURES_MODULE:
            return True
        if name not in definition.argnames:
            return False
    return False


def counts_experts(item: pytest.Item) -> bool:
    """Whether the test has a server count which experts its tokens take."""
    return _uses(item, (COUNTING_FIXTURE,))


def times(item: pytest.Item) -> bool:
    """Whether the test uses a server that does not count."""
    return _uses(item, TIMING_FIXTURES)


def measures(item: pytest.Item) -> bool:
    """Whether the test uses a server."""
    return _uses(item, MEASURING_FIXTURES)


def may_gate(item: pytest.Item) -> bool:
    """Whether the test may hold cells against their baselines; not if it is marked as skipped."""
    return _uses(item, (GATING_FIXTURE,)) and item.get_closest_marker("skip") is None


def required_gpus(item: pytest.Item) -> int:
    """Read `gpus(count)`; 0 without the marker. Raise `pytest.UsageError` on a wrong count."""
    marker = item.get_closest_marker("gpus")
    if marker is None:
        return 0
    count = marker.args[0] if len(marker.args) == 1 and not marker.kwargs else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise pytest.UsageError(
            f"{item.nodeid}: gpus takes one positive number of GPUs, as in @pytest.mark.gpus(2)"
        )
    return count


def compared_engines(definition: pytest.Item) -> tuple[str, ...]:
    """Read `across_engines(*engines)`; empty without the marker. Raise `pytest.UsageError`."""
    marker = definition.get_closest_marker(ACROSS_ENGINES)
    if marker is None:
        return ()
    names = marker.args
    if len(set(names)) < 2 or marker.kwargs or not all(isinstance(name, str) for name in names):  # noqa: PLR2004 - a comparison
        raise pytest.UsageError(
            f"{definition.nodeid}: {ACROSS_ENGINES} takes the names of two engines or more, as in "
            f'@pytest.mark.{ACROSS_ENGINES}("vllm", "sglang")'
        )
    return names
