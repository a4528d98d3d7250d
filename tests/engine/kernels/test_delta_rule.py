"""Every kernel's gated delta rule against the functions of transformers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.models.kimi_linear.modeling_kimi_linear import recurrent_kimi_delta_attention
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from control_plane.engine.kernels import DeltaRows, available_dense_isas, load_dense_kernel

ISAS = available_dense_isas()
PLACES = 7
SOURCES, TARGETS = np.array([6, 0, 3]), np.array([1, 2, 3])


class Step:
    """Random arguments of a step for three rows. Places lie apart, as those of several states do."""

    def __init__(
        self, heads: int, key_heads: int, key_size: int, value_size: int, *, by_key: bool = False
    ) -> None:
        random = np.random.default_rng(0)

        def normal(*shape: int) -> NDArray[np.float32]:
            return random.standard_normal(shape).astype(np.float32)

        rows, state = len(SOURCES), heads * key_size * value_size
        memory = normal(PLACES, state + 16)
        self.states = memory[:, :state].reshape(PLACES, heads, key_size, value_size, copy=False)
        self.rows = DeltaRows(
            normal(rows, key_heads, key_size) * np.float32(30),
            normal(rows, key_heads, key_size),
            normal(rows, heads, value_size),
            -np.abs(normal(rows, heads, key_size if by_key else 1)) * np.float32(3),
            np.abs(normal(rows, heads)),
        )

    def run(self, isa: str, threads: int = 1) -> NDArray[np.float32]:
        """The outputs [3, heads, value_size]. The states change."""
        kernel = load_dense_kernel(isa)
        return kernel.delta_rule(self.states, self.rows, SOURCES, TARGETS, threads=threads)

    def expected(self, rule: Callable[..., Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """transformers' outputs and states of the three rows."""
        query, key, value, decay, beta = (torch.from_numpy(rows)[:, None] for rows in self.rows)
        out, state = rule(
            query,
            key,
            value,
            g=decay if rule is recurrent_kimi_delta_attention else decay[..., 0],
            beta=beta,
            initial_state=torch.from_numpy(self.states[SOURCES]),
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        return out[:, 0], state


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("heads", "key_heads", "key_size", "value_size"), [(4, 2, 128, 128), (1, 1, 7, 5), (6, 2, 16, 24)]
)
def test_a_step_is_transformers_s(
    heads: int, key_heads: int, key_size: int, value_size: int, isa: str
) -> None:
    step = Step(heads, key_heads, key_size, value_size)
    before = step.states.copy()
    out, states = step.expected(torch_recurrent_gated_delta_rule)
    torch.testing.assert_close(torch.from_numpy(step.run(isa)), out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(step.states[TARGETS]), states, rtol=1e-4, atol=1e-5)
    others = np.setdiff1d(np.arange(PLACES), TARGETS)
    assert (step.states[others] == before[others]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_each_row_of_a_state_may_decay_by_itself(isa: str) -> None:
    step = Step(3, 3, 32, 16, by_key=True)
    out, states = step.expected(recurrent_kimi_delta_attention)
    torch.testing.assert_close(torch.from_numpy(step.run(isa)), out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(step.states[TARGETS]), states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_threads_do_not_change_the_result(isa: str) -> None:
    one, three = Step(32, 16, 128, 128), Step(32, 16, 128, 128)
    assert (one.run(isa) == three.run(isa, threads=3)).all()
    assert (one.states == three.states).all()


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_does_not_depend_on_the_others(isa: str) -> None:
    step, alone = Step(4, 2, 64, 64), Step(4, 2, 64, 64)
    out = step.run(isa)
    rows = DeltaRows(*(each[1:2] for each in alone.rows))
    own = load_dense_kernel(isa).delta_rule(alone.states, rows, SOURCES[1:2], TARGETS[1:2])
    # NumPy sums in another order where there are other rows.
    assert (own == out[1:2]).all() if isa != "numpy" else np.allclose(own, out[1:2], atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("argument", "value"), [(5, -1), (6, PLACES), (3, None), (0, None)])
def test_arguments_that_do_not_fit_are_refused(argument: int, value: int | None, isa: str) -> None:
    step = Step(4, 2, 8, 8)
    before = step.states.copy()
    arguments: list[Any] = [*step.rows, SOURCES.copy(), TARGETS.copy()]
    if value is None:
        arguments[argument] = np.repeat(arguments[argument], 3, axis=-1)
    else:
        arguments[argument][1] = value
    with pytest.raises(ValueError, match=r"must be|not a number below|no such decay"):
        load_dense_kernel(isa).delta_rule(step.states, DeltaRows(*arguments[:5]), *arguments[5:])
    assert (step.states == before).all()
