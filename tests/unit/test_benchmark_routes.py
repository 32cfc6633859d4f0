"""What the check of told experts finds: three tokens by hand, and a small model's own routes."""

from argparse import Namespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks import routes
from pytest_moeperf.balance import RoutedRequest
from pytest_moeperf.models import materialize
from scripts.measure_routing import Model

# One layer of four experts, top 2; each line is one token. They were moved by 0.01, 0.02 and 0.
EXACT = np.array([[[1.0, 0.5, 0.462, 0.0]], [[0.0, 1.0, 0.51, 0.5]], [[0.0, 5.0, 4.0, 0.0]]])
ROUNDED = EXACT + np.array([[[0.0, 0.0, 0.01, 0.0]], [[0.0, 0.0, -0.02, 0.0]], [[0.0] * 4]])
BEST = np.array([[[0, 1]], [[1, 2]], [[1, 2]]], dtype=np.uint8)
PASSES = {"exact": EXACT, "rounded": ROUNDED}


def alarms(*noise):
    return routes.false_alarms(
        **PASSES, noise=np.array(noise), top_k=2, records=5, rng=np.random.default_rng(0)
    )


def test_every_change_of_one_expert_is_tried():
    """Of each token two experts for two others; two of these twelve are closer than 0.04."""
    assert routes.changes(BEST, **PASSES) == (10, 12)


def test_rounding_that_changes_no_choice_is_no_alarm():
    assert alarms([[0.0] * 4], [[0.01] * 4]) == [0, 0]


def test_rounding_beyond_the_bound_is_an_alarm_in_every_record():
    assert alarms([[0.0, -6.0, 0.0, 0.0]]) == [5, 5]


def test_the_earlier_bound_goes_by_nine_in_ten_tokens():
    """The first token's second and third expert are 0.038 apart: between 2 × 0.018 and 2 × 0.02."""
    assert alarms([[0.0, 0.0, 0.05, 0.0]]) == [0, 5]


def test_a_late_record_has_the_experts_of_the_token_before():
    told = RoutedRequest(prompt_tokens=2, output_tokens=2, routes=BEST[[0, 1, 1]])
    told, expected = routes.late([told])[0].routes, BEST[[0, 0, 1]]
    assert told.tolist() == expected.tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return materialize("tiny-moe-balanced", cache=tmp_path_factory.mktemp("cache"))


def test_the_routes_are_those_of_one_pass_over_all_that_was_put_in(model):
    told = routes.counted(model, 3, Namespace(requests=1, isl=5, osl=4))
    assert [request.put_in[:5] for request in told] == [request.prompt_ids for request in told]
    network = Model(load_file(model.path / "model.safetensors"), model.architecture)
    logits = network.logits(np.array([request.put_in for request in told]))
    computed = np.stack(network.routed, axis=2)
    assert [request.routes.tolist() for request in told] == computed.tolist()
    decoded = [list(request.output_ids) for request in told]
    assert logits[:, 4:].argmax(-1).tolist() == decoded
