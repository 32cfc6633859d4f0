"""From the names that tests ask for to an order in which every server starts once."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import pytest

from pytest_moeperf.markers import (
    MEASURING_FIXTURES,
    OWN_SERVER,
    STOPS_SERVER,
    XDIST_GROUP,
    measures,
    required_gpus,
)
from pytest_moeperf.session import NamedServer, is_attached

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_moeperf.records import ServerSpec
    from pytest_moeperf.session import MoeperfSession

GROUPED = "moeperf_grouped"

MISUSE = pytest.StashKey[pytest.UsageError]()
"""What was wrong on the command line, until all is collected."""


def parametrize_servers(metafunc: pytest.Metafunc, session: MoeperfSession) -> None:
    """Run a test that asks for servers by name once per engine."""
    if not MEASURING_FIXTURES & set(metafunc.fixturenames):
        return
    try:
        specs, engines = _specs(metafunc, session), session.engine_ids()
    except pytest.UsageError as error:
        _refuse(metafunc.config, error)
        return
    names = [name for name in metafunc.fixturenames if name in specs]
    if not names:
        return
    missing = [name for name in names if specs[name] is None]
    reason = f"no server {missing[0]!r} on {session.hardware.name}" if missing else ""
    marks = [pytest.mark.skip(reason=reason)] if missing else []
    metafunc.parametrize(
        names,
        [
            pytest.param(
                *(_named(name, specs[name], text) for name in names), id=label, marks=marks
            )
            for text, label in engines.items()
        ],
    )


def _refuse(config: pytest.Config, error: pytest.UsageError) -> None:
    """End the session once all is collected: now pytest would blame the module it is in."""
    if hasattr(config, "workerinput"):
        # xdist shows nothing of a worker's usage error.
        raise pytest.Collector.CollectError(str(error))
    config.stash[MISUSE] = error


def _named(name: str, spec: ServerSpec | None, engine: str) -> NamedServer | None:
    return None if spec is None else NamedServer(name, spec, engine)


def _specs(metafunc: pytest.Metafunc, session: MoeperfSession) -> Mapping[str, ServerSpec | None]:
    found = metafunc.definition.ihook.pytest_moeperf_servers(hardware=session.hardware.name)
    return found or {}


def group_on_one_worker(config: pytest.Config) -> None:
    """Make xdist's default distribution keep all measuring tests in one process.

    Two servers that are loaded at once on one machine would measure each other.
    """
    if config.getoption("dist", "no") == "load":
        config.option.dist = "loadgroup"


def tell_worker(config: pytest.Config, workerinput: dict[str, object]) -> None:
    """Pass on what `group_on_one_worker` chose."""
    workerinput[GROUPED] = config.option.dist == "loadgroup"


class _Grouped:
    """A test under the name by which xdist's scheduler knows its group."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self.nodeid = f"{item.nodeid}@{XDIST_GROUP}"

    def __getattr__(self, name: str) -> object:
        return getattr(self._item, name)


@contextmanager
def named_by_group(session: pytest.Session) -> Iterator[None]:
    """Give measuring tests, on a worker and for as long as xdist reads them, their group's name.

    The marker `xdist_group` would do the same, but comes too late from a hook, and its name stays
    in all reports.
    """
    items = session.items
    if getattr(session.config, "workerinput", {}).get(GROUPED):
        named = [_Grouped(item) if measures(item) else item for item in items]
        session.items = cast("list[pytest.Item]", named)
    try:
        yield
    finally:
        session.items = items


def arrange(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group the measuring tests by the servers that they use; leave all others in place.

    Raise `pytest.UsageError` where the command line or a marker asked for what cannot be.
    """
    if MISUSE in config.stash:
        raise config.stash[MISUSE]
    if not hasattr(config, "workerinput"):
        for item in items:
            required_gpus(item)
    measuring = [item for item in items if measures(item)]
    order: dict[_Process, int] = {}
    for item in measuring:
        for server in _servers(item):
            order.setdefault(_process(server), len(order))
    arranged = iter(sorted(measuring, key=lambda item: _rank(item, order)))
    items[:] = [next(arranged) if measures(item) else item for item in items]


_Process = tuple["ServerSpec", str]
"""What makes two named servers one process: the spec and the engine, not the name."""


def _process(server: NamedServer) -> _Process:
    return server.spec, server.engine


def _rank(item: pytest.Item, order: Mapping[_Process, int]) -> tuple[bool, list[int]]:
    stops = item.get_closest_marker(STOPS_SERVER) is not None
    return stops, sorted(order[_process(server)] for server in _servers(item))


def _servers(item: pytest.Item) -> list[NamedServer]:
    callspec = getattr(item, "callspec", None)
    values = callspec.params.values() if callspec is not None else ()
    return [value for value in values if isinstance(value, NamedServer)]


def skip_what_the_machine_lacks(item: pytest.Item, session: MoeperfSession) -> None:
    """Skip a test that needs more GPUs than there are, or a server of this session's own."""
    try:
        needed = required_gpus(item)
        available = len(session.hardware.gpus) if needed else 0
    except pytest.UsageError as error:
        # Too late to end the session in pytest's own way.
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    if available < needed:
        pytest.skip(f"needs {needed} GPUs, this machine has {available}")
    attached = [server.engine for server in _servers(item) if is_attached(server.engine)]
    if attached and item.get_closest_marker(OWN_SERVER) is not None:
        pytest.skip(f"needs a server that is started here; --engine {attached[0]} is attached")
