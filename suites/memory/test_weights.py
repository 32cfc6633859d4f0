import pytest

from pytest_moeperf import rotary_bytes, weight_bytes

GIB = 2**30


@pytest.mark.gpus(1)
@pytest.mark.own_server
def test_weights_take_the_calculated_memory(serve, measure, model):
    """Each GPU holds its share of the matrices; routers, norms and position tables whole."""
    told = serve(model).facts.weights_gib
    arch, shares = measure.architecture(model), model.spec.tensor_parallel_size
    fit = (weight_bytes(arch, tensor_parallel_size=shares) + rotary_bytes(arch)) / GIB
    why = "the parameters of the model at two bytes each, and the table of its positions"
    serve.expect(model, "weights_gib", told, equal_to=fit, within=0.005, why=why)
