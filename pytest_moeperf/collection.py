"""From the names that tests ask for to an order in which every server starts once."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from pytest_moeperf.errors import MoeperfError, UsageError
from pytest_moeperf.hookspec import answered_servers, answered_values
from pytest_moeperf.markers import (
    OWN_SERVER,
    STOPS_SERVER,
    XDIST_GROUP,
    compared_engines,
    counts_experts,
    may_gate,
    measures,
    required_gpus,
    times,
)
from pytest_moeperf.namedserver import NamedServer
from pytest_moeperf.placement import gpus_lacking, lacking
from pytest_moeperf.postponed import GROUP
from pytest_moeperf.records import ServerSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pytest_moeperf.session import MoeperfSession

GROUPED = "moeperf_grouped"

MISUSE = pytest.StashKey[pytest.UsageError]()
"""What was wrong on the command line, until all is collected."""


def parametrize(metafunc: pytest.Metafunc, session: MoeperfSession) -> None:
    """Run a test once per engine, per server under a name it asks for, and per value of others."""
    if not measures(metafunc.definition):
        return
    try:
        _parametrize_servers(metafunc, session)
        values = _values(metafunc, session)
    except (pytest.UsageError, UsageError) as error:
        _refuse(metafunc.config, str(error))
        return
    for name in metafunc.fixturenames:
        if name in values:
            metafunc.parametrize(name, values[name], ids=lambda value: getattr(value, "slug", None))


def engine_ids(engines: Sequence[str]) -> dict[str, str]:
    """Every `--engine` as given, with the shortest text that tells it from the others."""
    from pytest_moeperf.enginespec import parse_engine  # noqa: PLC0415 - only for suites

    names = {text: parse_engine(text).engine for text in engines}
    return names if len(set(names.values())) == len(names) else {text: text for text in names}


def _parametrize_servers(metafunc: pytest.Metafunc, session: MoeperfSession) -> None:
    specs, engines = _specs(metafunc, session), engine_ids(session.options.engines)
    names = [name for name in metafunc.fixturenames if name in specs]
    if not names:
        return
    if missing := [name for name in names if not specs[name]]:
        _skip(metafunc, names, f"no server {missing[0]!r} on {session.hardware.name}", engines)
        return
    groups: list[tuple[str, ...]] = [(text,) for text in engines]
    if compared := compared_engines(metafunc.definition):
        texts = {label: text for text, label in engines.items()}
        if lacking := [name for name in compared if name not in texts]:
            why = f"compares {' and '.join(compared)}; no --engine {lacking[0]}"
            _skip(metafunc, names, why, engines)
            return
        groups = [tuple(texts[name] for name in compared)]
    metafunc.parametrize(
        names,
        [
            pytest.param(
                *(
                    _argument(name, spec, group, engines, together=bool(compared))
                    for name, spec in zip(names, chosen, strict=True)
                ),
                id="-".join([*(engines[text] for text in group), *_spec_ids(names, chosen, specs)]),
            )
            for group in groups
            for chosen in product(*(specs[name] for name in names))
        ],
    )


def _skip(
    metafunc: pytest.Metafunc, names: Sequence[str], reason: str, engines: Mapping[str, str]
) -> None:
    """Show the test once an engine, skipped."""
    nothing = [None] * len(names)
    metafunc.parametrize(
        names,
        [
            pytest.param(*nothing, id=label, marks=pytest.mark.skip(reason=reason))
            for label in engines.values()
        ],
    )


def _argument(
    name: str,
    spec: ServerSpec,
    group: Sequence[str],
    engines: Mapping[str, str],
    *,
    together: bool,
) -> NamedServer | dict[str, NamedServer]:
    servers = {engines[text]: NamedServer(name, spec, text) for text in group}
    return servers if together else next(iter(servers.values()))


def _spec_ids(
    names: Sequence[str], chosen: Sequence[ServerSpec], specs: Mapping[str, Sequence[ServerSpec]]
) -> list[str]:
    """What tells the specs under one name apart; nothing where there is only one."""
    several = (spec for name, spec in zip(names, chosen, strict=True) if len(specs[name]) > 1)
    return [spec.label.replace(" ", "-") for spec in several]


def _refuse(config: pytest.Config, error: str) -> None:
    """End the session once all is collected: now pytest would blame the module it is in."""
    if hasattr(config, "workerinput"):
        # xdist shows nothing of a worker's usage error.
        raise pytest.Collector.CollectError(error)
    config.stash[MISUSE] = pytest.UsageError(error)


def _specs(
    metafunc: pytest.Metafunc, session: MoeperfSession
) -> Mapping[str, Sequence[ServerSpec]]:
    """Specs by name; none where the hardware has no such server."""
    hook = metafunc.definition.ihook.pytest_moeperf_servers
    try:
        return answered_servers(hook(hardware=session.hardware.name))
    except TypeError as error:
        of_spec, _, what = str(error).partition(f"{ServerSpec.__init__.__qualname__}() ")
        if of_spec or not what:
            raise
        named = ", ".join(field.name for field in fields(ServerSpec) if field.name != "engine")
        raise UsageError(f"a ServerSpec {what}; its fields are {named}") from None


def _values(metafunc: pytest.Metafunc, session: MoeperfSession) -> Mapping[str, Iterable[object]]:
    """Values of other parameters by name."""
    ihook = metafunc.definition.ihook
    return answered_values(ihook.pytest_moeperf_values(hardware=session.hardware.name))


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
        for process in _processes(item):
            order.setdefault(process, len(order))
    ranks = {item: _rank(item, order) for item in measuring}
    for item, (stops, last, _) in ranks.items():
        item.stash[GROUP] = stops, last
    arranged = iter(sorted(measuring, key=lambda item: ranks[item]))
    items[:] = [next(arranged) if measures(item) else item for item in items]


_Process = tuple[ServerSpec, str]
"""What makes two named servers one process: the spec and the engine, not the name."""


def _processes(item: pytest.Item) -> list[_Process]:
    """What the test needs to run: for counting and for timing a server is two."""
    found: list[_Process] = []
    for server in _servers(item):
        if times(item):
            found.append((server.spec, server.engine))
        if counts_experts(item):
            found.append((replace(server.spec, counts_experts=True), server.engine))
    return found


def _rank(item: pytest.Item, order: Mapping[_Process, int]) -> tuple[bool, int, list[int]]:
    """A test belongs to the last server it needs: what it measures on earlier ones is known."""
    stops = item.get_closest_marker(STOPS_SERVER) is not None
    ranks = sorted(order[process] for process in _processes(item))
    return stops, ranks[-1] if ranks else 0, ranks


def _servers(item: pytest.Item) -> list[NamedServer]:
    callspec = getattr(item, "callspec", None)
    values = callspec.params.values() if callspec is not None else ()
    nested = [list(value.values()) if isinstance(value, dict) else [value] for value in values]
    return [value for group in nested for value in group if isinstance(value, NamedServer)]


def prepare(tests: pytest.Session, session: MoeperfSession) -> None:
    """Before the first test: find the hardware and the engines, so that misuse ends here.

    An xdist worker cannot end the session with a usage error; there the tests fail instead.
    """
    measuring = any(measures(item) for item in tests.items)
    if not measuring or tests.config.option.collectonly or hasattr(tests.config, "workerinput"):
        return
    from pytest_moeperf.files import ensure_writable  # noqa: PLC0415 - only for suites

    try:
        session.run.resolver.hardware  # noqa: B018 - resolves
        ensure_writable(session.options.out_dir)
        _expect_baselines(tests.config, session)
        _check_names(tests.items)
        with session.progress.during(None):
            engines = [session.run.resolver.engine(text) for text in session.options.engines]
            old = [session.run.resolver.engine(text) for text in (session.options.against,) if text]
    except MoeperfError as error:
        raise pytest.UsageError(str(error)) from None
    reporter = tests.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and tests.config.option.verbose >= 0:
        labels = ", ".join(engine.label for engine in engines)
        labels += "".join(f" against {engine.label}" for engine in old)
        here = f"{session.run.resolver.hardware.name} ({session.run.resolver.hardware.label})"
        reporter.write_line(f"moeperf: {here}, {labels}")


def _expect_baselines(config: pytest.Config, session: MoeperfSession) -> None:
    """Refuse a folder that cannot be the one that was meant."""
    from pytest_moeperf.files import ensure_writable  # noqa: PLC0415 - only for suites

    folder = session.options.baseline_dir
    if session.options.baseline == "record":
        ensure_writable(folder)
    elif folder.exists() and not folder.is_dir():
        raise UsageError(f"--baseline-dir {folder}: not a folder; give the one with the baselines")
    elif config.getoption("--baseline-dir") is not None and not folder.exists():
        raise UsageError(
            f"--baseline-dir {folder}: no such folder; correct it, or make it with "
            "--baseline record"
        )


def _check_names(items: Iterable[pytest.Item]) -> None:
    """Refuse, before a server is started for it, what cannot name a baseline."""
    from pytest_moeperf.identity import check_model_name, check_suite_name  # noqa: PLC0415 - only for suites

    for item in filter(may_gate, items):
        check_suite_name(item.path)
        for server in _servers(item):
            if Path(server.spec.model).expanduser().is_dir():
                check_model_name(server.spec.model)


def gating_tests(items: Sequence[pytest.Item], session: MoeperfSession) -> int:
    """How many tests may hold cells against their baselines on this machine."""
    gating = [item for item in items if may_gate(item)]
    try:
        return sum(not _short_of_gpus(item, session) for item in gating)
    except pytest.UsageError:
        return len(gating)  # The tests themselves fail with it.


def is_attached(engine: str) -> bool:
    """Whether an `--engine` is the URL of a server that runs already."""
    from pytest_moeperf.enginespec import parse_engine  # noqa: PLC0415 - only for suites

    return parse_engine(engine).form == "attached"


def skip_what_the_machine_lacks(item: pytest.Item, session: MoeperfSession) -> None:
    """Skip a test that needs more GPUs than there are, or a server of this session's own."""
    try:
        short = _short_of_gpus(item, session)
    except pytest.UsageError as error:
        # Too late to end the session in pytest's own way.
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    servers = _servers(item)
    reasons = [short, *(_lacking(each, session) for each in servers)]
    if reason := next(filter(None, reasons), ""):
        raise _skipped(reason)
    attached = [server.engine for server in servers if is_attached(server.engine)]
    own = item.get_closest_marker(OWN_SERVER) is not None or counts_experts(item)
    if attached and own:
        raise _skipped(f"needs a server that is started here; --engine {attached[0]} is attached")


def _skipped(reason: str) -> BaseException:
    """What skips a test and shows where the test is, as pytest's own mark does, not this line."""
    return pytest.skip.Exception(reason, _use_item_location=True)


def _short_of_gpus(item: pytest.Item, session: MoeperfSession) -> str:
    """What is said where the test or one of its servers needs more GPUs; empty where none does."""
    needed, servers = required_gpus(item), _servers(item)
    if not (needed or servers):
        return ""  # It need not be known which GPUs there are.
    available = len(session.hardware.gpus)
    if available:
        own = (_gpus_of(each) for each in servers if not is_attached(each.engine))
        needed = max(needed, *own, 0)
    return gpus_lacking(needed, available)


def _gpus_of(server: NamedServer) -> int:
    from pytest_moeperf.engines import engine_named  # noqa: PLC0415 - only for suites
    from pytest_moeperf.enginespec import parse_engine  # noqa: PLC0415 - only for suites

    return engine_named(parse_engine(server.engine).engine).gpus_needed(server.spec)


def _lacking(server: NamedServer, session: MoeperfSession) -> str:
    """Why this machine cannot have the server; empty where it can, or it runs already."""
    hardware = session.hardware
    if is_attached(server.engine) or not hardware.gpus:
        return ""
    try:
        architecture = session.run.resolver.model(server.spec).architecture
    except MoeperfError:
        return ""  # The test itself fails with it.
    return lacking(server.spec, architecture, hardware, gpus=_gpus_of(server))
