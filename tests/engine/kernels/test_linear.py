"""Linear layers with packed weights: every kernel here against torch, the NumPy twin, and itself."""

import os
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from control_plane.engine.kernels import LinearLayer, available_dense_isas, c_dense, load_dense_kernel
from functions.kernels import LinearShape
from functions.kernels.bfloat16 import f32_to_bf16
from functions.kernels.packed_matrix import pack_matrix, unpack_matrix
from tests.functions.kernels.test_gated_ffn import random_call
from tests.support.functions.kernels import (
    COMPILED,
    ERROR_OF_ROUNDING,
    ERROR_TO_TORCH,
    ERROR_TO_TWIN,
    PAIRS,
    as_f32,
    assert_close,
    rounded,
    worth_a_team,
)

pytestmark = pytest.mark.slow


class Layer:
    """A random layer, and rows for it."""

    def __init__(
        self, pair: tuple[str, str], outputs: int, inputs: int, rows: int, bias: bool = False, seed: int = 0
    ) -> None:
        random = np.random.default_rng(seed)
        self.shape = LinearShape(outputs, inputs, pair[0])
        self.weights = pack_matrix(
            self.shape, random.standard_normal((outputs, inputs), np.float32) / inputs**0.5
        )
        x = random.standard_normal((rows, inputs), np.float32)
        self.x = f32_to_bf16(x) if pair[1] == "bf16" else x
        self.bias = random.standard_normal(outputs, np.float32) if bias else None

    def run(self, isa: str, threads: int = 1, **changes: Any) -> NDArray[Any]:
        arguments = vars(self) | changes
        layer = LinearLayer(arguments["shape"], arguments["weights"], arguments["bias"])
        (out,) = load_dense_kernel(isa).linear([layer], arguments["x"], threads=threads)
        return out

    def reference(self, round_activations: bool = True) -> NDArray[np.float64]:
        """The output in float64, with the weights of the packed bytes."""
        x = torch.from_numpy(as_f32(self.x)).double()
        x = rounded(x, self.shape.dtype) if round_activations else x
        weight = torch.from_numpy(unpack_matrix(self.shape, self.weights)).double()
        bias = None if self.bias is None else torch.from_numpy(self.bias).double()
        reference: NDArray[np.float64] = torch.nn.functional.linear(x, weight, bias).numpy()
        return reference


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("isa", available_dense_isas())
@given(
    outputs=st.integers(1, 300),
    inputs=st.integers(1, 300),
    rows=st.integers(0, 70),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_any_size_matches_torch_and_the_twin(
    isa: str, pair: tuple[str, str], outputs: int, inputs: int, rows: int, bias: bool, seed: int
) -> None:
    layer = Layer(pair, outputs, inputs, rows, bias, seed)
    found = layer.run(isa)
    assert found.dtype == layer.x.dtype
    assert_close(as_f32(found), layer.reference(), ERROR_TO_TORCH[pair[0]])
    assert_close(as_f32(found), as_f32(layer.run("numpy")), ERROR_TO_TWIN[pair[0]])


@pytest.mark.parametrize("pair", PAIRS[1:], ids="/".join)
@pytest.mark.parametrize("size", [(64, 64), (130, 266), (300, 300)], ids=str)
@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("isa", available_dense_isas())
def test_rounding_activations_changes_little(
    isa: str, rows: int, size: tuple[int, int], pair: tuple[str, str]
) -> None:
    layer = Layer(pair, *size, rows)
    assert_close(as_f32(layer.run(isa)), layer.reference(round_activations=False), ERROR_OF_ROUNDING[pair[0]])


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("isa", COMPILED)
def test_threads_and_other_rows_do_not_change_a_row(isa: str, pair: tuple[str, str]) -> None:
    layer = Layer(pair, 1000, 520, rows=30, bias=True)
    assert worth_a_team(30 * layer.shape.nbytes)
    together = layer.run(isa, threads=4)
    np.testing.assert_array_equal(layer.run(isa), together)
    for t in range(30):
        np.testing.assert_array_equal(layer.run(isa, x=layer.x[t : t + 1]), together[t : t + 1])


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("isa", available_dense_isas())
def test_several_layers_in_one_call_equal_one_layer_per_call(isa: str, pair: tuple[str, str]) -> None:
    several = [
        Layer(pair, outputs, 520, rows=11, bias=bias, seed=outputs)
        for outputs, bias in ((1000, True), (7, False), (333, True), (32, False))
    ]
    layers = [LinearLayer(layer.shape, layer.weights, layer.bias) for layer in several]
    for threads in (1, 3):
        together = load_dense_kernel(isa).linear(layers, several[0].x, threads=threads)
        for layer, found in zip(several, together, strict=True):
            np.testing.assert_array_equal(found, layer.run(isa, x=several[0].x))


@pytest.mark.parametrize("isa", available_dense_isas())
def test_layers_of_different_inputs_or_dtype_are_refused(isa: str) -> None:
    first = Layer(("f32", "f32"), 64, 96, rows=3)
    for other in (Layer(("f32", "f32"), 64, 95, rows=3), Layer(("int8", "f32"), 64, 96, rows=3)):
        layers = [LinearLayer(layer.shape, layer.weights) for layer in (first, other)]
        with pytest.raises(ValueError, match="the same inputs and dtype"):
            load_dense_kernel(isa).linear(layers, first.x)


@pytest.mark.parametrize("isa", COMPILED)
def test_more_layers_than_a_call_takes_are_refused(isa: str) -> None:
    layer = Layer(("f32", "f32"), 64, 96, rows=3)
    with pytest.raises(ValueError, match="from 1 to 8 layers"):
        load_dense_kernel(isa).linear([LinearLayer(layer.shape, layer.weights)] * 9, layer.x)


@pytest.mark.parametrize("isa", COMPILED)
def test_several_threads_may_call_at_the_same_time(isa: str) -> None:
    layers = [Layer(("int8", "f32"), 1000, 520, rows=20, seed=seed) for seed in range(6)]
    alone = [layer.run(isa) for layer in layers]
    found: dict[int, list[NDArray[Any]]] = {}

    def call(number: int) -> None:
        found[number] = [layers[number].run(isa, threads=1 + number % 4) for _ in range(20)]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(layers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, expected in enumerate(alone):
        for again in found[number]:
            np.testing.assert_array_equal(again, expected)


@pytest.mark.skipif(not COMPILED, reason="only the compiled kernels have threads")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_computes_the_same() -> None:
    """Each extension has a pool of threads, which a forked process does not inherit."""
    layer = Layer(("int8", "f32"), 1000, 520, rows=20)
    call = random_call(("int8", "f32"), 520, 200, rows=40)

    def outputs() -> list[NDArray[Any]]:
        return [layer.run(COMPILED[0], threads=4), call.run(COMPILED[0], threads=4)]

    expected = outputs()
    child = os.fork()
    if child == 0:
        os._exit(0 if all(map(np.array_equal, outputs(), expected)) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert all(map(np.array_equal, outputs(), expected))


def test_numpy_is_used_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_dense, "_dense", None)
    assert available_dense_isas() == ("numpy",)
    assert load_dense_kernel().name == "numpy"
    with pytest.raises(ValueError, match="avx512"):
        load_dense_kernel("avx512")


@pytest.mark.parametrize("isa", available_dense_isas())
def test_a_value_that_is_not_finite_affects_only_its_row(isa: str) -> None:
    layer = Layer(("int8", "f32"), 96, 200, rows=9)
    poisoned = layer.x.copy()
    poisoned[4, 70] = np.inf
    with np.errstate(invalid="ignore"):
        found = layer.run(isa, x=poisoned)
    assert not np.isfinite(found[4]).any()
    others = np.arange(9) != 4
    np.testing.assert_array_equal(found[others], layer.run(isa)[others])


@pytest.mark.parametrize("isa", available_dense_isas())
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((3, 95), np.float32)}, "x must be"),
        ({"x": np.zeros(96, np.float32)}, "x must be"),
        ({"x": np.zeros((3, 96))}, "do not fit f32 weights"),
        ({"x": np.zeros((3, 96), np.uint16)}, "do not fit f32 weights"),
        ({"weights": np.zeros(1000, np.uint8)}, "weights must be"),
        ({"weights": np.zeros(64 * 96 * 4, np.int8)}, "weights must be uint8"),
        ({"bias": np.zeros(3, np.float32)}, "bias must be"),
        ({"bias": np.zeros(64)}, "bias must be float32"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(isa: str, changes: dict[str, Any], message: str) -> None:
    layer = Layer(("f32", "f32"), 64, 96, rows=3)
    with pytest.raises(ValueError, match=message):
        layer.run(isa, **changes)


@pytest.mark.parametrize("threads", [0, -1, 65])
@pytest.mark.parametrize("isa", COMPILED)
def test_an_invalid_number_of_threads_is_refused(isa: str, threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        Layer(("f32", "f32"), 64, 96, rows=3).run(isa, threads=threads)
