"""Every kernel's short convolution against the function of transformers."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.models.lfm2_moe.modeling_lfm2_moe import causal_conv1d_update

from control_plane.engine.kernels import ShortConvolution, available_dense_isas, load_dense_kernel
from functions.kernels.bfloat16 import f32_to_bf16

ISAS = available_dense_isas()
PLACES = 7
SOURCES, TARGETS = np.array([6, 0, 3]), np.array([1, 2, 3])


class Step:
    """Random arguments of a step for three rows. Places lie apart, as those of several states do."""

    def __init__(self, channels: int, taps: int, dtype: str, *, bias: bool = True, silu: bool = True) -> None:
        random = np.random.default_rng(0)

        def normal(*shape: int) -> NDArray[Any]:
            values = random.standard_normal(shape).astype(np.float32)
            return f32_to_bf16(values) if dtype == "bf16" else values

        memory = normal(PLACES, channels * taps + 16)
        self.states = memory[:, : channels * taps].reshape(PLACES, channels, taps, copy=False)
        self.x = normal(len(SOURCES), channels)
        self.convolution = ShortConvolution(
            normal(channels, taps), normal(channels) if bias else None, silu=silu
        )

    def run(self, isa: str, rows: slice = slice(None)) -> NDArray[Any]:
        """The outputs of some rows [rows, channels]. The states change."""
        kernel = load_dense_kernel(isa)
        return kernel.short_convolution(
            self.states, self.x[rows], self.convolution, SOURCES[rows], TARGETS[rows]
        )

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """transformers' outputs and states of the three rows."""
        states = as_torch(self.states[SOURCES])
        weight, bias, silu = self.convolution
        out = causal_conv1d_update(
            as_torch(self.x)[..., None],
            states,
            as_torch(weight),
            None if bias is None else as_torch(bias),
            "silu" if silu else None,
        )
        return out[..., 0], states


def as_torch(values: NDArray[Any]) -> torch.Tensor:
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if values.dtype == np.uint16 else tensor


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(
    ("channels", "taps", "bias", "silu"),
    [
        (2048, 3, False, False),
        (1000, 4, True, True),
        (5, 4, False, True),
        (70, 2, True, False),
        (3, 1, False, True),
    ],
)
def test_a_step_is_transformers_s(
    channels: int, taps: int, bias: bool, silu: bool, dtype: str, isa: str
) -> None:
    step = Step(channels, taps, dtype, bias=bias, silu=silu)
    before = step.states.copy()
    out, states = step.expected()
    # With bfloat16, a sum in another order may be rounded to the other side.
    allowed = 2**-7 if dtype == "bf16" else 1e-5
    torch.testing.assert_close(as_torch(step.run(isa)), out, rtol=allowed, atol=allowed)
    assert torch.equal(as_torch(step.states[TARGETS]), states)
    others = np.setdiff1d(np.arange(PLACES), TARGETS)
    assert (step.states[others] == before[others]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_does_not_depend_on_the_others(isa: str) -> None:
    together, alone = Step(500, 4, "bf16"), Step(500, 4, "bf16")
    assert (alone.run(isa, slice(1, 2)) == together.run(isa)[1:2]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("argument", "value"),
    [(3, -1), (4, PLACES), (0, "other size"), (1, "other size"), (0, "other dtype"), (1, "other dtype")],
)
def test_arguments_that_do_not_fit_are_refused(argument: int, value: int | str, isa: str) -> None:
    step = Step(8, 4, "f32")
    before = step.states.copy()
    arguments: list[Any] = [step.states, step.x, step.convolution, SOURCES.copy(), TARGETS.copy()]
    if value == "other size":
        arguments[argument] = np.repeat(arguments[argument], 3, axis=1)
    elif value == "other dtype":
        arguments[argument] = arguments[argument].astype(np.float64)
    else:
        arguments[argument][1] = value
    with pytest.raises(ValueError, match=r"must be|not a number below|not states"):
        load_dense_kernel(isa).short_convolution(*arguments)
    assert (step.states == before).all()


@pytest.mark.parametrize("isa", ISAS)
def test_more_taps_than_a_kernel_has_room_for_are_refused(isa: str) -> None:
    with pytest.raises(ValueError, match="not a convolution"):
        Step(2, 257, "f32").run(isa)
