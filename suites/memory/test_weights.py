import pytest

from pytest_moeperf import weight_bytes

GIB = 2**30


@pytest.mark.gpus(1)
@pytest.mark.own_server
def test_weights_take_the_calculated_memory(serve, measure, model):
    """Each GPU holds its share of the matrices, and routers and norms whole."""
    told = serve(model).facts.weights_gib
    shares = model.spec.tensor_parallel_size
    fit = weight_bytes(measure.architecture(model), tensor_parallel_size=shares) / GIB
    why = "the parameters of the model at two bytes each"
    serve.expect(model, "weights_gib", told, equal_to=fit, within=0.005, why=why)
