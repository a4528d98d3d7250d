"""Every gated FFN kernel of this machine against torch in float64, the NumPy twin, and itself."""

import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import functions
from control_plane.engine.kernels import load_dense_kernel
from functions.kernels import Activation, ExpertShape, _gated_ffn, available_isas, load_kernel
from functions.kernels.activation import SWIGLU
from functions.kernels.bfloat16 import f32_to_bf16
from functions.kernels.packed_expert import Biases, pack_expert, split_expert, split_gate_up, unpack_expert
from tests.support.functions.kernels import (
    COMPILED,
    ERROR_OF_ROUNDING,
    ERROR_TO_TORCH,
    ERROR_TO_TWIN,
    PAIRS,
    QUANTISED,
    as_f32,
    assert_close,
    misaligned,
    rounded,
    torch_activation,
    worth_a_team,
)

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Call:
    """A block of random experts, and rows that are routed to them."""

    shape: ExpertShape
    block: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    hidden_states: NDArray[Any]
    expert_index: NDArray[np.int16]
    expert_weight: NDArray[np.float32]

    def run(self, isa: str, **changes: Any) -> NDArray[Any]:
        arguments = vars(self) | changes
        return load_kernel(isa).gated_ffn(**arguments)

    def values(self, isa: str, **changes: Any) -> NDArray[np.float32]:
        return as_f32(self.run(isa, **changes))


def random_call(
    pair: tuple[str, str],
    hidden_size: int,
    intermediate_size: int,
    rows: int,
    top_k: int = 2,
    seed: int = 0,
    down_dtype: str | None = None,
    activation: Activation = SWIGLU,
    has_bias: bool = False,
) -> Call:
    """Four experts in the block, out of order, with gaps and not aligned, and a fifth that is absent.

    About one route in five has no expert.
    """
    random = np.random.default_rng(seed)
    sizes = hidden_size, intermediate_size
    shape = ExpertShape(*sizes, pair[0], down_dtype or pair[0], activation, has_bias)
    pitch = shape.nbytes + 37
    offsets = np.array([2 * pitch, 0, 3 * pitch, pitch, -1])
    block = np.full(4 * pitch, 255, np.uint8)
    for start in offsets[:-1]:
        gate, up = random.standard_normal((2, intermediate_size, hidden_size), np.float32) / hidden_size**0.5
        down = random.standard_normal((hidden_size, intermediate_size), np.float32) / intermediate_size**0.5
        inward, outward = (random.standard_normal((2, size), np.float32) for size in reversed(sizes))
        biases = Biases(inward[0] if activation.gated else None, inward[1], outward[0]) if has_bias else None
        packed = pack_expert(shape, gate if activation.gated else None, up, down, biases=biases)
        block[start : start + shape.nbytes] = packed
    hidden_states = random.standard_normal((rows, hidden_size), np.float32)
    return Call(
        shape=shape,
        block=block,
        offsets=offsets,
        hidden_states=f32_to_bf16(hidden_states) if pair[1] == "bf16" else hidden_states,
        expert_index=random.integers(-1, 4, (rows, top_k), np.int16),
        expert_weight=random.random((rows, top_k), np.float32),
    )


def torch_reference(call: Call, round_activations: bool = True) -> NDArray[np.float64]:
    """The definition, route by route in float64, with the weights of the packed bytes."""

    def operand(row: torch.Tensor, dtype: str) -> torch.Tensor:
        return rounded(row[None], dtype)[0] if round_activations else row

    def products(x: torch.Tensor, matrices: list[torch.Tensor], biases: list[torch.Tensor]) -> list[Any]:
        return [matrix @ x + bias for matrix, bias in zip(matrices, biases, strict=True)]

    packed = [call.block[start:].copy() for start in call.offsets[:-1]]
    experts = [[torch.from_numpy(w).double() for w in unpack_expert(call.shape, each)] for each in packed]
    biases = [unpacked_biases(call.shape, each) for each in packed]
    hidden = torch.from_numpy(as_f32(call.hidden_states)).double()
    out = torch.zeros_like(hidden)
    for t, k in np.argwhere(call.expert_index >= 0):
        matrices, added = experts[call.expert_index[t, k]], biases[call.expert_index[t, k]]
        columns = products(operand(hidden[t], call.shape.gate_up_dtype), matrices[:-1], added[:-1])
        intermediate = operand(torch_activation(call.shape.activation, *columns), call.shape.down_dtype)
        out[t] += float(call.expert_weight[t, k]) * products(intermediate, matrices[-1:], added[-1:])[0]
    reference: NDArray[np.float64] = out.numpy()
    return reference


def unpacked_biases(shape: ExpertShape, packed: NDArray[np.uint8]) -> list[torch.Tensor]:
    """What is added to the product of each matrix, in the order of `unpack_expert`: zeros without biases."""
    parts, zeros = split_expert(shape, packed), np.zeros(shape.gate_up.outputs, np.float32)
    inward = zeros if parts.gate_up_bias is None else parts.gate_up_bias
    columns = [each[0] for each in split_gate_up(shape, inward[None]) if each is not None]
    outward = np.zeros(shape.hidden_size) if parts.down_bias is None else parts.down_bias
    return [torch.from_numpy(each.copy()).double() for each in (*columns, outward)]


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("isa", available_isas())
@given(
    hidden_size=st.integers(1, 300),
    intermediate_size=st.integers(1, 300),
    rows=st.integers(1, 70),
    top_k=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_any_size_matches_torch_and_the_twin(
    isa: str,
    pair: tuple[str, str],
    hidden_size: int,
    intermediate_size: int,
    rows: int,
    top_k: int,
    seed: int,
) -> None:
    call = random_call(pair, hidden_size, intermediate_size, rows, top_k, seed)
    found = call.values(isa)
    assert_close(found, torch_reference(call), ERROR_TO_TORCH[pair[0]])
    assert_close(found, call.values("numpy"), ERROR_TO_TWIN[pair[0]])


@pytest.mark.parametrize(
    ("pair", "down_dtype"),
    [
        (("int4_min", "bf16"), "int8"),
        (("int4", "f32"), "f32"),
        (("bf16", "bf16"), "mxfp4"),
        (("f32", "f32"), "bf16"),
    ],
    ids=str,
)
@pytest.mark.parametrize("isa", available_isas())
def test_down_may_have_another_type(isa: str, pair: tuple[str, str], down_dtype: str) -> None:
    call = random_call(pair, 200, 150, rows=9, down_dtype=down_dtype)
    found = call.values(isa)
    assert_close(found, torch_reference(call), ERROR_TO_TORCH["int8"])
    assert_close(found, call.values("numpy"), ERROR_TO_TWIN["int8"])


@pytest.mark.parametrize("pair", PAIRS[1:], ids="/".join)
@pytest.mark.parametrize("size", [(64, 64), (266, 130), (300, 300)], ids=str)
@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("isa", available_isas())
def test_rounding_activations_changes_little(
    isa: str, rows: int, size: tuple[int, int], pair: tuple[str, str]
) -> None:
    call = random_call(pair, *size, rows)
    expert_index = np.maximum(call.expert_index, 0)
    call = replace(call, expert_index=expert_index)
    assert_close(call.values(isa), torch_reference(call, round_activations=False), ERROR_OF_ROUNDING[pair[0]])


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("isa", available_isas())
def test_an_expert_named_twice_in_a_row_counts_twice(isa: str, pair: tuple[str, str]) -> None:
    call = random_call(pair, 96, 64, rows=3)
    twice = call.values(isa, expert_index=np.full((3, 2), 1, np.int16))
    once = call.values(
        isa,
        expert_index=np.full((3, 1), 1, np.int16),
        expert_weight=call.expert_weight.sum(axis=1, keepdims=True),
    )
    assert_close(twice, once, ERROR_TO_TWIN[pair[0]])


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("isa", available_isas())
def test_rows_without_an_expert_are_zero(isa: str, pair: tuple[str, str]) -> None:
    call = random_call(pair, 96, 64, rows=5)
    index = call.expert_index.copy()
    index[1:3] = -1
    assert not call.values(isa, expert_index=index)[1:3].any()
    assert not call.values(isa, expert_index=np.full_like(index, -1)).any()


@pytest.mark.parametrize("isa", available_isas())
def test_an_input_without_rows(isa: str) -> None:
    call = random_call(("f32", "f32"), 96, 64, rows=0)
    assert call.run(isa).shape == (0, 96)


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("isa", COMPILED)
def test_threads_do_not_change_a_bit(isa: str, pair: tuple[str, str]) -> None:
    call = random_call(pair, 520, 200, rows=40)
    assert worth_a_team(int((call.expert_index >= 0).sum()) * call.shape.nbytes)
    one, four = (call.run(isa, threads=threads) for threads in (1, 4))
    np.testing.assert_array_equal(one, four)


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("cuts", [(), (2,), (1, 3), (1, 2, 3), (0, 0, 4)], ids=str)
def test_calls_that_carry_sums_equal_one_call(isa: str, pair: tuple[str, str], cuts: tuple[int, ...]) -> None:
    """Each call has the experts up to the next cut. Some rows or calls have no expert."""
    call = random_call(pair, 200, 150, rows=20, top_k=3)
    carry = None
    for first, end in pairwise((0, *cuts, 5)):
        given = None if carry is None else carry.copy()
        mine = (call.expert_index >= first) & (call.expert_index < end)
        index = np.where(mine, call.expert_index, np.int16(-1))
        carry = call.run(isa, expert_index=index, carry=carry, partial=end < 5, threads=1 + first % 2)
        if end < 5:
            assert carry.dtype == np.float32
            untouched = (index < 0).all(axis=1)
            np.testing.assert_array_equal(carry[untouched], 0 if given is None else given[untouched])
    np.testing.assert_array_equal(carry, call.run(isa))


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("isa", COMPILED)
def test_the_order_of_experts_in_the_block_does_not_change_a_bit(isa: str, pair: tuple[str, str]) -> None:
    call = random_call(pair, 200, 150, rows=20)
    offsets = call.offsets[[3, 1, 0, 2, 4]]
    block = call.block.copy()
    for there, here in zip(offsets[:-1], call.offsets[:-1], strict=True):
        block[there : there + call.shape.nbytes] = call.block[here : here + call.shape.nbytes]
    np.testing.assert_array_equal(call.run(isa, block=block, offsets=offsets), call.run(isa))


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("isa", COMPILED)
def test_a_row_does_not_depend_on_other_rows(isa: str, pair: tuple[str, str]) -> None:
    call = random_call(pair, 200, 150, rows=30)
    together = call.run(isa)
    for t in range(30):
        row = slice(t, t + 1)
        alone = call.run(
            isa,
            hidden_states=call.hidden_states[row],
            expert_index=call.expert_index[row],
            expert_weight=call.expert_weight[row],
        )
        np.testing.assert_array_equal(alone, together[row])


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_affects_only_its_row(
    isa: str, pair: tuple[str, str], poison: float
) -> None:
    call = random_call(pair, 96, 64, rows=9)
    index = np.zeros_like(call.expert_index)
    hidden = as_f32(call.hidden_states).copy()
    hidden[4, 70] = poison
    poisoned = f32_to_bf16(hidden) if pair[1] == "bf16" else hidden
    found = call.values(isa, expert_index=index, hidden_states=poisoned)
    assert not np.isfinite(found[4]).all()
    others = np.arange(9) != 4
    np.testing.assert_array_equal(found[others], call.values(isa, expert_index=index)[others])


@pytest.mark.parametrize("isa", available_isas())
def test_arrays_may_be_strided_or_not_aligned(isa: str) -> None:
    call = random_call(("f32", "f32"), 96, 64, rows=5)
    strided = np.repeat(call.hidden_states, 2, axis=1)[:, ::2]
    shifted = np.frombuffer(b"\0" + call.expert_weight.tobytes(), np.float32, offset=1).reshape(5, 2)
    found = call.run(isa, hidden_states=strided, expert_weight=shifted, expert_index=call.expert_index[:, :])
    np.testing.assert_array_equal(found, call.run(isa))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_index": np.full((3, 2), 5, np.int16)}, "out of range"),
        ({"expert_index": np.full((3, 2), 4, np.int16)}, "absent"),
        ({"block": np.zeros(1000, np.uint8)}, "past the end"),
        ({"offsets": np.full(5, 2**62)}, "past the end"),
        ({"block": np.zeros(99_999, np.int8)}, "block must be uint8"),
        ({"offsets": np.zeros(5, np.int32)}, "offsets must be int64"),
        ({"expert_index": np.zeros((3, 2), np.int32)}, "expert_index must be int16"),
        ({"expert_index": np.zeros((3, 1), np.int16)}, r"\[T, K\]"),
        ({"expert_weight": np.zeros((3, 2))}, "expert_weight must be float32"),
        ({"hidden_states": np.zeros((2, 96), np.float32)}, "hidden_states must be"),
        ({"hidden_states": np.zeros((3, 95), np.float32)}, "hidden_states must be"),
        ({"hidden_states": np.zeros((3, 96))}, "do not fit f32 weights"),
        ({"hidden_states": np.zeros((3, 96), np.uint16)}, "do not fit f32 weights"),
        ({"carry": np.zeros((3, 95), np.float32)}, "carry must be"),
        ({"carry": np.zeros((3, 96))}, "carry must be float32"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(isa: str, changes: dict[str, Any], message: str) -> None:
    call = random_call(("f32", "f32"), 96, 64, rows=3)
    with pytest.raises(ValueError, match=message):
        call.run(isa, **changes)


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("buffer", range(1, 7))
def test_the_c_function_refuses_a_buffer_that_is_not_aligned(isa: str, buffer: int) -> None:
    shape = ExpertShape(2, 2, "f32", "f32")
    offsets, index = np.zeros(1, np.int64), np.zeros((3, 1), np.int16)
    rows, weight = np.zeros((3, 2), np.float32), np.zeros((3, 1), np.float32)
    buffers: list[Any] = [np.zeros(shape.nbytes, np.uint8), offsets, rows, index, weight, rows, rows.copy()]
    buffers[buffer] = misaligned(buffers[buffer])
    with pytest.raises(ValueError, match="not aligned"):
        _gated_ffn.gated_ffn(isa, shape.as_arguments(), "f32", "f32", 3, 1, 1, *buffers)


@pytest.mark.skipif("amx" not in available_isas(), reason="the processor has no AMX, or Linux refuses it")
@pytest.mark.parametrize("rows", [1, 8, 17, 40, 130])
@pytest.mark.parametrize("dtype", QUANTISED)
def test_amx_gives_the_bits_of_avx512(dtype: str, rows: int) -> None:
    call = random_call((dtype, "bf16"), 300, 200, rows=rows)
    np.testing.assert_array_equal(call.run("amx"), call.run("avx512"))


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("threads", [0, -1, 65])
def test_an_invalid_number_of_threads_is_refused(isa: str, threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        random_call(("f32", "f32"), 96, 64, rows=3).run(isa, threads=threads)


def test_the_first_kernel_is_the_default_and_an_unknown_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FAASMOE_KERNEL", raising=False)
    assert load_kernel().name == available_isas()[0]
    with pytest.raises(ValueError, match="sse9"):
        load_kernel("sse9")


def test_the_environment_names_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAASMOE_KERNEL", "numpy")
    assert load_kernel().name == load_dense_kernel().name == "numpy"
    assert load_kernel(available_isas()[0]).name == available_isas()[0]
    monkeypatch.setenv("FAASMOE_KERNEL", "sse9")
    with pytest.raises(ValueError, match="no kernel 'sse9' here, only"):
        load_kernel()


def test_numpy_is_used_without_the_extension(tmp_path: Path) -> None:
    shutil.copytree(
        Path(functions.__file__).parent, tmp_path / "functions", ignore=shutil.ignore_patterns("*.so")
    )
    script = "from functions import kernels; print(kernels.__file__, kernels.available_isas())"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{tmp_path}/functions/kernels/__init__.py ('numpy',)"
