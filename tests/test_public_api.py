"""The names that suites and other projects may rely on."""

import pytest

import pytest_moeperf
from pytest_moeperf import testing

PUBLIC = [
    "Architecture",
    "Burst",
    "ClosedLoop",
    "OpenLoop",
    "RandomTokens",
    "SLO",
    "ServerSpec",
    "ShareGPT",
    "SharedPrefix",
    "TraceReplay",
    "__version__",
    "kv_tokens",
    "predicted_step_growth",
    "rate_ladder",
    "rotary_bytes",
    "weight_bytes",
    "weight_bytes_per_step",
]
FOR_TESTS = ["FakeEngine", "SCRIPT_VARIABLE", "Script", "make_fake_interpreter", "write_script"]


def test_the_public_names_are_these():
    assert sorted(pytest_moeperf.__all__) == PUBLIC
    assert sorted(testing.__all__) == FOR_TESTS


@pytest.mark.parametrize("module", [pytest_moeperf, testing], ids=lambda module: module.__name__)
def test_every_public_name_is_there_and_listed(module):
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert len(set(module.__all__)) == len(module.__all__)
    assert set(module.__all__) <= set(dir(module))


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = pytest_moeperf.nothing
