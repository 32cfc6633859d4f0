import pytest

from pytest_moeperf import Burst

SAME = "prompts of one kind ask for the same experts"
OTHER = "experts specialise: prompts of another kind ask for others"
LOAD = Burst(requests=8, isl=64, osl=8)


def test_no_token_is_lost(experts, trained):
    """In every layer each token of prompts and answers takes k experts, but for the last ones."""
    found, model = experts(trained, LOAD), experts.architecture(trained)
    for counts, tokens in ((found.prefill, 8 * 64), (found.decode, 8 * (8 - 1))):
        assert counts.layers == model.expert_layers
        assert counts.counts.sum(axis=1).tolist() == [tokens * model.top_k] * len(counts.layers)


def test_experts_are_those_of_the_model(experts, specialised):
    """A forward pass in PyTorch takes the same experts, token by token, rounding apart."""
    experts(specialised, LOAD).as_computed()


@pytest.mark.parametrize("kind", ["arithmetic", "code", "prose"])
def test_prompts_take_the_experts_that_they_took(experts, trained, domains, kind):
    """The same prompts and weights choose the experts of the baseline."""
    experts(trained, domains[kind]).as_recorded()


@pytest.mark.parametrize("kind", ["arithmetic", "code", "prose"])
def test_prompts_of_a_kind_have_their_hot_experts(experts, specialised, domains, kind):
    """Half of the prompts of a kind have the hot experts of the other half."""
    one, other = experts(specialised, domains[kind]).halves()
    one.agrees_with(other, at_least=0.7, why=SAME)


@pytest.mark.parametrize(
    "kinds", [("arithmetic", "code"), ("arithmetic", "prose"), ("code", "prose")], ids="-".join
)
def test_prompts_of_two_kinds_have_other_hot_experts(experts, specialised, domains, kinds):
    """The hot experts of one kind of prompts are not those of another."""
    one, other = (experts(specialised, domains[kind]) for kind in kinds)
    one.differs_from(other, at_most=0.5, why=OTHER)
