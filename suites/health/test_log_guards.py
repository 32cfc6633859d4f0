import pytest

COMPILED = ("compilation", "stall")
ALLOWED = 1
"""A batch that the warm-up could not foresee: it depends on when requests arrive."""


@pytest.mark.own_server
def test_experts_run_on_the_same_kernels(serve, mixture):
    """The engine chose the MoE backend that it had in the baseline."""
    serve.expect_recorded(mixture, "moe_backend")


@pytest.mark.gpus(1)
@pytest.mark.own_server
def test_experts_run_with_the_same_configuration(serve, mixture):
    """The engine found the tuned MoE kernel configuration that it had in the baseline."""
    serve.expect_recorded(mixture, "moe_config")


@pytest.mark.gpus(1)
@pytest.mark.own_server
def test_experts_run_with_a_tuned_configuration(serve, moe):
    """A tuned MoE configuration for this GPU is found: without it the engine guesses."""
    told = serve(moe).facts.moe_config
    if told is None:
        pytest.skip("this engine does not tell its MoE configuration")
    assert told != "default"


@pytest.mark.gpus(1)
def test_nothing_is_compiled_after_the_warm_up(measure, model, burst):
    """The warm-up met the shapes of a burst, so no repeat of it waits for a compiler."""
    assert measure(model, burst).discarded(*COMPILED) <= ALLOWED
