"""A layer's shared expert computes what its shape says, as routed experts do."""

import numpy as np
import pytest

from control_plane.engine.kernels import LinearLayer
from control_plane.engine.kernels.c_dense import compiled_isas
from control_plane.engine.kernels.layer_parts import LayerShape, LayerWeights, SharedExpert
from control_plane.engine.kernels.layer_program import LayerProgram
from functions.kernels import Activation, ExpertShape, LinearShape
from functions.kernels.packed_matrix import pack_matrix
from tests.functions.kernels.test_gated_ffn import random_call
from tests.support.functions.kernels import ERROR_TO_TWIN, assert_close

HIDDEN, WIDTH, HEAD = 40, 20, 2
ACTIVATIONS = [
    Activation(),
    Activation(limit=0.8, alpha=1.702, up_offset=1.0),
    Activation("gelu_tanh"),
    Activation("relu2", gated=False),
]


def linear(outputs: int, inputs: int) -> LinearLayer:
    shape = LinearShape(outputs, inputs, "f32")
    return LinearLayer(shape, pack_matrix(shape, np.zeros((outputs, inputs), np.float32)))


def program_with(isa: str, shared: SharedExpert) -> LayerProgram:
    """A layer that adds nothing else."""
    norm = np.ones(HIDDEN, np.float32)
    inward, outward = linear(HEAD, HIDDEN), linear(HIDDEN, HEAD)
    weights = LayerWeights(inward, inward, inward, outward, norm, ffn_norm=norm, shared=shared)
    return LayerProgram(isa, LayerShape(HIDDEN, 1, 1, HEAD, 1e-6), weights, "f32")


@pytest.mark.parametrize("has_bias", [False, True], ids=["", "biases"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("dtype", ["f32", "int8"])
@pytest.mark.parametrize("isa", compiled_isas())
def test_it_gives_what_the_expert_kernel_gives(
    isa: str, dtype: str, activation: Activation, has_bias: bool
) -> None:
    call = random_call((dtype, "f32"), HIDDEN, WIDTH, rows=9, activation=activation, has_bias=has_bias)
    packed = call.block[call.offsets[0] :][: call.shape.nbytes]
    found = program_with(isa, SharedExpert(call.shape, packed)).shared(call.hidden_states, threads=1)
    assert found is not None
    index, weight = np.zeros((9, 1), np.int16), np.ones((9, 1), np.float32)
    assert_close(found, call.run("numpy", expert_index=index, expert_weight=weight), ERROR_TO_TWIN[dtype])


@pytest.mark.parametrize("isa", compiled_isas())
def test_one_of_another_hidden_size_is_refused(isa: str) -> None:
    shape = ExpertShape(HIDDEN + 1, WIDTH, "f32", "f32")
    with pytest.raises(ValueError, match="does not fit to the layer"):
        program_with(isa, SharedExpert(shape, np.zeros(shape.nbytes, np.uint8)))
