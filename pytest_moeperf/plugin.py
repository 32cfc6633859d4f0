"""Entry point of the pytest plugin: hooks that delegate, no logic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_moeperf import collection, hookspec, markers, options
from pytest_moeperf.fixtures import experts, gpu, measure, serve
from pytest_moeperf.session import SESSION, MoeperfSession

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["experts", "gpu", "measure", "serve"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options."""
    options.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the hooks that a suite may implement."""
    pluginmanager.add_hookspecs(hookspec)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Start the session object, and let xdist keep all measuring tests on one worker."""
    markers.register(config)
    session = MoeperfSession(config)
    config.stash[SESSION] = session
    config.pluginmanager.register(_SessionHooks(session), "moeperf-session")
    collection.group_on_one_worker(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker how tests are distributed; it reads only the command line."""
    collection.tell_worker(node.config, node.workerinput)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Turn the names of servers and values into parameters."""
    collection.parametrize(metafunc, metafunc.config.stash[SESSION])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the tests so that every server starts once."""
    collection.arrange(config, items)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> Generator[None]:
    """Let xdist's scheduler know which tests belong together."""
    with collection.named_by_group(session):
        yield


class _SessionHooks:
    """The hooks that need the session; pytest hands some of them no config."""

    def __init__(self, session: MoeperfSession) -> None:
        self._session = session

    def pytest_report_header(self) -> str:
        return self._session.options.header

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        collection.prepare(session, self._session)
        self._session.plan(collection.gating_tests(session.items, self._session))

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        collection.skip_what_the_machine_lacks(item, self._session)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        return self._session.run_test(item, nextitem)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        with self._session.postponed.calling(item):
            yield

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        self._session.before_report(item, call)
        report = yield
        self._session.attach_cells(item, report)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._session.collect_cells(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._session.hear_worker(getattr(node, "workeroutput", {}))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        self._session.finish(session, exitstatus)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        self._session.summarize(terminalreporter)

    def pytest_unconfigure(self) -> None:
        self._session.close()
