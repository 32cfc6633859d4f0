import pytest

from pytest_moeperf.balance import ALERT, linear_placement

WHY = "published: an expert that is over 50 % off its fair share needs a look"
UNBALANCED = "trained without the loss that keeps a router balanced"
RANKS = "the busier of two GPUs, which the other waits for, has at most a quarter more to do"


def test_experts_share_the_work(experts, trained, domains):
    """Over prompts of all kinds no expert of any layer is far from its fair share."""
    experts(trained, *domains.values()).at_most("largest_deviation", ALERT, why=WHY)


def test_no_router_has_collapsed(experts, trained, domains):
    """No router gives most of its tokens to one or two experts."""
    experts(trained, *domains.values()).no_collapse()


def test_no_expert_is_dead(experts, trained, domains):
    """Every expert of every layer serves some tokens."""
    experts(trained, *domains.values()).no_dead_experts()


def test_two_gpus_would_share_the_work(experts, trained, domains):
    """With whole experts on each of two GPUs, neither would have much more to do."""
    found = experts(trained, *domains.values())
    placement = linear_placement(found.total.experts, ranks=2)
    found.at_least("balancedness", 0.8, placement=placement, why=RANKS)


def test_a_collapsed_router_is_found(request, experts, collapsed, domains):
    """A router that gives most of its tokens to two experts fails."""
    counted = experts(collapsed, domains["prose"])
    # From here on: a server that does not start is no collapse.
    request.applymarker(pytest.mark.xfail(strict=True, reason=UNBALANCED))
    counted.no_collapse()
