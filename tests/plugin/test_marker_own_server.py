"""@pytest.mark.own_server: tests about a server that the session starts itself."""

SOURCE = """\
import pytest

@pytest.mark.own_server
def test_start(measure, moe):
    assert measure.startup(moe).value("startup_s") > 0
"""


def test_it_runs_on_a_server_that_is_started(suite):
    suite.write(SOURCE)
    suite.run().counts(passed=1)


def test_it_is_skipped_for_an_attached_server_with_that_reason(suite, server):
    suite.write(SOURCE)
    outcome = suite.run("--engine", f"vllm={server.url}", "-rs")
    outcome.counts(skipped=1)
    outcome.shows("SKIPPED*: needs a server that is started here; --engine vllm=http:*is attached")
