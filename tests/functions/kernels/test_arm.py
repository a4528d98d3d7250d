"""The expert kernel's ARM instruction sets, on emulated processors, against the NumPy twin and themselves."""

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from control_plane.deployment.image.extensions import include_options
from functions.kernels.bfloat16 import f32_to_bf16
from functions.kernels.packed_expert import pack_expert
from tests.functions.kernels.test_activations import ACTIVATIONS
from tests.functions.kernels.test_gated_ffn import Call, random_call
from tests.support.functions.emulation import (
    COMPILER,
    PROCESSORS,
    EmulatedGatedFFN,
    compile_program,
    emulated_isas,
    missing_tool,
)
from tests.support.functions.kernels import ERROR_TO_TWIN, PAIRS, as_f32, assert_close, worth_a_team
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing_tool() is not None, reason=f"there is no {missing_tool()} to emulate ARM"),
]

EXTENSIONS = sorted([*ROOT.glob("functions/*/csrc/*.c"), *ROOT.glob("control_plane/**/csrc/*.c")])
SIZES = [(64, 32, 1), (1, 1, 2), (33, 17, 4), (266, 130, 9), (300, 300, 23)]
"""Hidden size, intermediate size and rows: panels of every number of rows, and steps and tiles in part."""

Run = Callable[..., NDArray[Any]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(params=PROCESSORS)
def run(program: Path, request: pytest.FixtureRequest) -> Run:
    """Computes a call with changed arguments, by one instruction set on a processor that has it."""
    return emulated(program, request.param)


def emulated(program: Path, isa: str) -> Run:
    kernel = EmulatedGatedFFN(isa, program, PROCESSORS[isa])

    def compute(call: Call, **changes: Any) -> NDArray[Any]:
        return kernel.gated_ffn(**(vars(call) | changes))

    return compute


def test_a_processor_has_its_instruction_sets(program: Path) -> None:
    names = [*reversed(PROCESSORS), "c"]
    for name, processor in PROCESSORS.items():
        assert emulated_isas(program, processor) == names[names.index(name) :]


@pytest.mark.parametrize("source", EXTENSIONS, ids=lambda source: source.stem)
def test_every_extension_compiles(source: Path, tmp_path: Path) -> None:
    """The control plane's, too: they are not run here."""
    command = [COMPILER, "-c", "-O1", "-std=c11", "-pthread", "-Werror", *include_options("arm64", tmp_path)]
    subprocess.run([*command, str(source), "-o", str(tmp_path / "compiled.o")], check=True)


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_call_matches_the_twin(run: Run, pair: tuple[str, str], size: tuple[int, int, int]) -> None:
    call = random_call(pair, *size, seed=sum(size))
    assert_close(as_f32(run(call)), call.values("numpy"), ERROR_TO_TWIN[pair[0]])


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_all_instruction_sets_give_the_same_bits(program: Path, pair: tuple[str, str]) -> None:
    """Integer sums are exact, and what is float is computed alike."""
    call = random_call(pair, 200, 150, rows=17)
    first, *others = (emulated(program, isa)(call) for isa in PROCESSORS)
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_gate_up_and_down_may_be_of_different_types(run: Run) -> None:
    call = random_call(("int4_min", "f32"), 266, 130, rows=7, down_dtype="int8")
    assert_close(run(call), call.values("numpy"), ERROR_TO_TWIN["int8"])


@pytest.mark.parametrize("dtype", ["f32", "int4"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_with_biases_matches_the_twin(run: Run, name: str, dtype: str) -> None:
    call = random_call((dtype, "f32"), 72, 50, rows=9, activation=ACTIVATIONS[name], has_bias=True)
    assert_close(run(call), call.values("numpy"), ERROR_TO_TWIN[dtype])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_stays_nan_and_affects_only_its_row(run: Run, name: str) -> None:
    call = random_call(("f32", "f32"), 72, 50, rows=9, activation=ACTIVATIONS[name], has_bias=True)
    hidden_states, index = call.hidden_states.copy(), np.zeros_like(call.expert_index)
    hidden_states[4, 40] = np.nan
    found = run(call, expert_index=index, hidden_states=hidden_states)
    assert np.isnan(found[4]).all()
    others = np.arange(9) != 4
    np.testing.assert_array_equal(found[others], run(call, expert_index=index)[others])


def test_the_largest_products_do_not_overflow(run: Run) -> None:
    """All weights and activations are the largest of their group."""
    call = random_call(("int8", "f32"), 64, 32, rows=3)
    ones = np.ones((32, 64), np.float32)
    block = np.concatenate([pack_expert(call.shape, ones, -ones, ones.T)] * 4)
    offsets = np.array([*(np.arange(4) * call.shape.nbytes), -1])
    arguments = {"block": block, "offsets": offsets, "hidden_states": np.full((3, 64), 0.01, np.float32)}
    assert_close(run(call, **arguments), call.values("numpy", **arguments), 1e-6)


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_a_row_depends_on_nothing_else(run: Run, pair: tuple[str, str]) -> None:
    """Not on threads, on the other rows, or on the place in a panel."""
    call = random_call(pair, 200, 150, rows=30)
    assert worth_a_team(int((call.expert_index >= 0).sum()) * call.shape.nbytes)
    together = run(call)
    np.testing.assert_array_equal(run(call, threads=3), together)
    for rows in (slice(0, 1), slice(5, 7), slice(9, 12)):
        some = run(
            call,
            hidden_states=call.hidden_states[rows],
            expert_index=call.expert_index[rows],
            expert_weight=call.expert_weight[rows],
        )
        np.testing.assert_array_equal(some, together[rows])


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_calls_that_carry_sums_equal_one_call(run: Run, pair: tuple[str, str]) -> None:
    call = random_call(pair, 70, 50, rows=6, top_k=3)
    first = np.where(call.expert_index < 2, call.expert_index, np.int16(-1))
    rest = np.where(call.expert_index >= 2, call.expert_index, np.int16(-1))
    carry = run(call, expert_index=first, partial=True)
    np.testing.assert_array_equal(run(call, expert_index=rest, carry=carry), run(call))


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_a_value_that_is_not_finite_affects_only_its_row(run: Run, pair: tuple[str, str]) -> None:
    call = random_call(pair, 96, 64, rows=9)
    compute = functools.partial(run, call, expert_index=np.zeros_like(call.expert_index))
    hidden = as_f32(call.hidden_states).copy()
    hidden[4, 70] = np.nan
    found = as_f32(compute(hidden_states=f32_to_bf16(hidden) if pair[1] == "bf16" else hidden))
    assert not np.isfinite(found[4]).all()
    others = np.arange(9) != 4
    np.testing.assert_array_equal(found[others], as_f32(compute())[others])
