"""The forward pass is asked for in another interpreter; a script stands in for PyTorch there.

The computation itself is tested where an engine is: `scripts/check_expert_counts.py`.
"""

import sys
from dataclasses import replace

import numpy as np
import pytest

from pytest_moeperf.balance import RoutedRequest
from pytest_moeperf.errors import RoutingError, UsageError
from pytest_moeperf.routecheck import check_routes

# Of every token that was put in, by the layer's number and the next.
ROUTES = np.array([[[layer % 8, (layer + 1) % 8] for layer in range(8)]] * 5)
COUNTED = (
    RoutedRequest(
        prompt_tokens=3,
        output_tokens=2,
        routes=ROUTES[:4],
        prompt_ids=(5, 6, 7),
        output_ids=(9, 10),
    ),
    RoutedRequest(
        prompt_tokens=1, output_tokens=1, routes=ROUTES[:1], prompt_ids=(8,), output_ids=(11,)
    ),
)
FORWARD = """\
import os, sys
import numpy as np
_, _, module, model, asked, answer = sys.argv
assert module == "moeperf_probe.forward" and os.environ["HF_HUB_OFFLINE"] == "1"
assert os.path.isfile(os.path.join(os.environ["PYTHONPATH"], "moeperf_probe", "forward.py"))
request = np.load(asked)
assert request["tokens"].tolist() == [5, 6, 7, 9, 8]
assert request["lengths"].tolist() == [4, 1]
exact = np.zeros((5, 8, 8))
np.put_along_axis(exact, request["routes"], 1.0, axis=2)
layers = np.arange(8)
{more}
np.savez(answer, layers=layers, exact=exact, rounded=exact + 0.001)
"""


@pytest.fixture
def python(tmp_path):
    """An interpreter that computes what it is asked for by a script."""

    def make(more=""):
        script, interpreter = tmp_path / "forward.py", tmp_path / "python"
        script.write_text(FORWARD.format(more=more))
        interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
        interpreter.chmod(0o755)
        return interpreter

    return make


def test_every_token_that_was_put_in_is_computed(python, model):
    check = check_routes(COUNTED, model, python=python())
    assert (check.tokens, check.choices, sum(check.decided), check.others) == (5, 40, 40, ())


def test_a_choice_that_the_forward_pass_does_not_make_is_an_error(python, model):
    check = check_routes(COUNTED, model, python=python("exact[4, 7] = np.arange(8)"))
    (error,) = check.errors
    assert (error.token, error.layer, error.told, error.computed) == (4, 7, (0, 7), (6, 7))


def test_a_model_that_the_check_does_not_know_is_an_error(python, model):
    broken = python('sys.exit("DeepseekForCausalLM: no router that this check knows")')
    with pytest.raises(RoutingError, match="no forward pass: DeepseekForCausalLM: no router that"):
        check_routes(COUNTED, model, python=broken)


def test_an_interpreter_that_is_none_is_an_error(model, tmp_path):
    with pytest.raises(RoutingError, match=r"no forward pass by .*python: .*No such file"):
        check_routes(COUNTED, model, python=tmp_path / "no" / "python")


def test_routers_elsewhere_are_an_error(python, model):
    with pytest.raises(RoutingError, match=r"routers in layers \[1, 2, 3, 4, 5, 6, 7, 8\]"):
        check_routes(COUNTED, model, python=python("layers = layers + 1"))


def test_without_weights_there_is_nothing_to_compute(python, model):
    with pytest.raises(UsageError, match="no weights to compute with"):
        check_routes(COUNTED, replace(model, dummy=True), python=python())


@pytest.mark.parametrize("unknown", ["prompt_ids", "output_ids"])
def test_tokens_have_to_be_known(python, model, unknown):
    counted = [COUNTED[0], replace(COUNTED[1], **{unknown: None})]
    with pytest.raises(UsageError, match=r"of 1 \+ 1 tokens: routes can be checked where prompt"):
        check_routes(counted, model, python=python())
