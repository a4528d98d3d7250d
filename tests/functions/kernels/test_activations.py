"""What experts compute between their products, with biases and without, in every type of weights."""

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from functions.kernels import Activation, ExpertShape, available_isas, load_kernel
from functions.kernels.activation import FUNCTIONS
from functions.kernels.packed_expert import pack_expert
from tests.functions.kernels.test_gated_ffn import Call, random_call, torch_reference
from tests.support.functions.kernels import (
    COMPILED,
    ERROR_OF_ROUNDING,
    ERROR_TO_TORCH,
    ERROR_TO_TWIN,
    PAIRS,
    as_f32,
    assert_close,
    torch_activation,
)
from tests.support.models.expert_modules import FAMILIES, ExpertModule

pytestmark = pytest.mark.slow

ACTIVATIONS = {
    "swiglu": Activation(),
    "gpt_oss": Activation(limit=0.8, alpha=1.702, up_offset=1.0),
    "deepseek_v4": Activation(limit=0.8),
    **{f"gated {name}": Activation(name) for name in FUNCTIONS[1:]},
    **{name: Activation(name, gated=False) for name in FUNCTIONS},
}
"""Limits are low, so that they count."""
LIMITED = [name for name, activation in ACTIVATIONS.items() if activation.limit]


@functools.cache
def example(pair: tuple[str, str], name: str, has_bias: bool) -> tuple[Call, NDArray[Any], NDArray[Any]]:
    """A call, and its results in torch and NumPy."""
    call = random_call(pair, 72, 50, rows=20, activation=ACTIVATIONS[name], has_bias=has_bias)
    return call, torch_reference(call), call.values("numpy")


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("has_bias", [False, True], ids=["", "biases"])
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_every_activation_matches_torch_and_the_twin(
    isa: str, pair: tuple[str, str], name: str, has_bias: bool
) -> None:
    call, reference, twin = example(pair, name, has_bias)
    found = call.values(isa)
    assert_close(found, twin, ERROR_TO_TWIN[pair[0]])
    assert_close(found, reference, ERROR_TO_TORCH[pair[0]])
    assert_close(twin, reference, ERROR_TO_TORCH[pair[0]])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pair", [("f32", "f32"), ("bf16", "bf16"), ("int8", "f32")], ids="/".join)
@pytest.mark.parametrize("isa", available_isas())
def test_experts_equal_those_of_transformers(isa: str, pair: tuple[str, str], family: str) -> None:
    experts = ExpertModule.random(family, hidden_size=96, intermediate_size=70, num_experts=3)
    shape = ExpertShape(96, 70, pair[0], pair[0], experts.activation, experts.has_bias)
    block = np.concatenate(
        [pack_expert(shape, *experts.matrices(e), biases=experts.biases(e)) for e in range(3)]
    )
    call = random_call(pair, 96, 70, rows=11)
    index = np.maximum(call.expert_index, 0) % 3
    found = load_kernel(isa).gated_ffn(
        block, np.arange(3) * shape.nbytes, shape, call.hidden_states, index, call.expert_weight
    )
    expected = experts(as_f32(call.hidden_states), index, call.expert_weight)
    assert_close(as_f32(found), expected, {**ERROR_OF_ROUNDING, "f32": ERROR_TO_TORCH["f32"]}[pair[0]])


@pytest.mark.parametrize(
    ("function", "alpha"), [("silu", 1.702), ("silu", 0.5), *((name, 1.0) for name in FUNCTIONS)], ids=str
)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("isa", available_isas())
def test_a_function_is_accurate_over_its_whole_range(
    isa: str, gated: bool, function: str, alpha: float
) -> None:
    activation = Activation(function, gated, alpha=alpha)
    shape = ExpertShape(2, 1, "f32", "f32", activation)
    first, second, down = (np.array(rows, np.float32) for rows in ([[1, 0]], [[0, 1]], [[1], [0]]))
    packed = pack_expert(shape, first if gated else None, second if gated else first, down)
    near, far = np.linspace(-80, 80, 4001), [-1e30, -1e4, -90, 90, 1e4, 1e18]
    values = np.concatenate([near, near / 16, near / 1024, far]).astype(np.float32)
    hidden_states = np.stack([values, np.ones_like(values)], axis=1)
    index, weight = np.zeros((len(values), 1), np.int16), np.ones((len(values), 1), np.float32)
    out = load_kernel(isa).gated_ffn(packed, np.zeros(1, np.int64), shape, hidden_states, index, weight)
    x = torch.from_numpy(values).double()
    expected = torch_activation(activation, *((x, torch.ones_like(x)) if gated else (x,))).numpy()
    bound = 3e-7 * np.maximum(np.abs(values), expected)
    assert (np.abs(out[:, 0] - expected) <= bound + 1e-7).all()


@pytest.mark.parametrize("dtype", ["f32", "int8"])
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("isa", available_isas())
def test_nan_stays_nan_and_affects_only_its_row(isa: str, name: str, dtype: str) -> None:
    """A limit must not hide it."""
    call = random_call((dtype, "f32"), 72, 50, rows=9, activation=ACTIVATIONS[name], has_bias=True)
    index = np.zeros_like(call.expert_index)
    hidden_states = call.hidden_states.copy()
    hidden_states[4, 40] = np.nan
    found = call.values(isa, expert_index=index, hidden_states=hidden_states)
    assert np.isnan(found[4]).all()
    others = np.arange(9) != 4
    expected = call.values(isa, expert_index=index)[others]
    if isa == "numpy":
        assert_close(found[others], expected, 1e-6)
    else:
        np.testing.assert_array_equal(found[others], expected)


@pytest.mark.parametrize("name", ["gpt_oss", "relu2"])
@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("isa", COMPILED)
def test_a_row_depends_neither_on_threads_nor_on_other_rows(
    isa: str, pair: tuple[str, str], name: str
) -> None:
    call = random_call(pair, 264, 200, rows=40, activation=ACTIVATIONS[name], has_bias=True)
    together = call.run(isa)
    np.testing.assert_array_equal(call.run(isa, threads=4), together)
    for rows in (slice(0, 1), slice(7, 19)):
        some = {key: getattr(call, key)[rows] for key in ("hidden_states", "expert_index", "expert_weight")}
        np.testing.assert_array_equal(call.run(isa, **some), together[rows])


@pytest.mark.parametrize("name", LIMITED)
@pytest.mark.parametrize("isa", available_isas())
def test_a_limit_holds_for_the_largest_values(isa: str, name: str) -> None:
    activation = ACTIVATIONS[name]
    call = random_call(("f32", "f32"), 24, 20, rows=6, activation=activation)
    hidden_states = call.hidden_states * np.float32(1e20)
    found = call.values(isa, hidden_states=hidden_states)
    assert_close(found, torch_reference(call_with(call, hidden_states)), 1e-5)
    assert np.abs(found).max() < 100


def call_with(call: Call, hidden_states: NDArray[Any]) -> Call:
    return Call(**{**vars(call), "hidden_states": hidden_states})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"function": "tanh"}, "not one of silu, gelu_tanh, gelu, relu, relu2"),
        ({"limit": 0.0}, "limit is 0.0, not above 0"),
        ({"limit": -1.0}, "not above 0"),
        ({"limit": math.nan}, "limit is not a finite number"),
        ({"alpha": math.inf}, "alpha is not a finite number"),
        ({"up_offset": 1e39}, "up_offset is not a finite number"),
        ({"up_offset": 10**400}, "up_offset is not a finite number"),
        ({"function": "gelu", "alpha": 2.0}, "only silu has an alpha"),
        ({"gated": False, "limit": 7.0}, "without a gate there is no limit"),
        ({"gated": False, "up_offset": 1.0}, "without a gate there is no limit"),
    ],
    ids=str,
)
def test_what_is_no_activation_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Activation(**fields)
