"""Rows go to the functions that have their experts, in C as in NumPy, and so do sums."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from control_plane.engine.experts import row_groups
from control_plane.engine.experts.row_groups import Batch, Rows, add_up, group_rows

EXPERTS, FUNCTIONS, HIDDEN = 12, 6, 5


@pytest.fixture(scope="module", params=["C", "NumPy"])
def either_way(request: pytest.FixtureRequest) -> Any:
    """Run the test with the C extension, and as if there were none."""
    if request.param == "C" and row_groups._extension is None:
        pytest.skip("the C extension is not built")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "NumPy":
            patch.setattr(row_groups, "_extension", None)
        yield


@st.composite
def routings(draw: st.DrawFn) -> tuple[NDArray[np.int32], Batch]:
    """The functions of all experts, and a batch whose rows have different experts, or fewer than others."""
    owner = np.array(draw(st.lists(st.integers(0, FUNCTIONS - 1), min_size=EXPERTS, max_size=EXPERTS)))
    top_k = draw(st.integers(1, 4))
    rows = st.permutations(range(EXPERTS)).map(lambda experts: experts[:top_k])
    index = np.array(draw(st.lists(rows, max_size=9)), np.int16).reshape(-1, top_k)
    # There is a -1 in the place of an expert that a row does not have.
    index[draw(arrays(bool, index.shape))] = -1
    dtype = draw(st.sampled_from([np.float32, np.uint16]))
    random = np.random.default_rng(len(index))
    hidden_states = random.integers(0, 30000, (len(index), HIDDEN)).astype(dtype)
    return owner.astype(np.int32), Batch(hidden_states, index, random.random(index.shape, np.float32))


@pytest.mark.usefixtures("either_way")
@given(routing=routings())
def test_each_expert_of_each_row_is_in_exactly_one_group(
    routing: tuple[NDArray[np.int32], Batch],
) -> None:
    owner, batch = routing
    groups = group_rows(owner, batch)
    found: Counter[tuple[int, int]] = Counter()
    for group in groups:
        rows = np.arange(len(batch.index)) if group.rows is None else group.rows
        mine = group.index >= 0
        assert mine.any(axis=1).all(), "a row was sent to a function that has none of its experts"
        assert (owner[group.index[mine]] == group.function).all()
        np.testing.assert_array_equal(group.index[mine], batch.index[rows][mine])
        np.testing.assert_array_equal(group.hidden_states, batch.hidden_states[rows])
        np.testing.assert_array_equal(group.weights, batch.weights[rows])
        found.update((int(rows[row]), int(slot)) for row, slot in np.argwhere(mine))
    assert found == Counter((int(row), int(slot)) for row, slot in np.argwhere(batch.index >= 0))
    assert [group.function for group in groups] == sorted({group.function for group in groups})


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("expert", [-2, 3, EXPERTS, 32767])
def test_an_expert_without_a_function_is_refused(expert: int) -> None:
    owner = np.zeros(EXPERTS, np.int32)
    owner[3] = -1
    index = np.array([[0, 1], [expert, 2]], np.int16)
    with pytest.raises(ValueError, match="no function has"):
        group_rows(owner, Batch(np.zeros((2, HIDDEN), np.float32), index, np.ones((2, 2), np.float32)))


def parts_of(dtype: Any) -> list[tuple[Rows, NDArray[Any]]]:
    """Outputs of four functions for a batch of 7 rows."""
    random = np.random.default_rng(0)
    rows: list[Rows] = [np.array([1, 2, 6]), None, np.array([0]), np.array([], np.int64)]
    values = [random.standard_normal((7 if some is None else len(some), HIDDEN), np.float32) for some in rows]
    values[0][0, :3] = np.nan, np.inf, -0.0
    bits = [(each.view(np.uint32) >> 16).astype(np.uint16) for each in values]
    return list(zip(rows, values if dtype == np.float32 else bits, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_sums_have_the_bits_of_numpy(dtype: Any) -> None:
    parts = parts_of(dtype)
    like = np.zeros((7, HIDDEN), dtype)
    bits = np.uint32 if dtype == np.float32 else np.uint16
    expected = row_groups._add_up_in_numpy(parts, like)
    np.testing.assert_array_equal(add_up(parts, like).view(bits), expected.view(bits))


@pytest.mark.usefixtures("either_way")
def test_a_sum_is_rounded_once() -> None:
    """In bfloat16, 256 + 1 is 256: rounding after each part would lose both ones."""
    parts: list[tuple[Rows, NDArray[Any]]] = [
        (None, np.full((1, 1), bits, np.uint16)) for bits in (0x4380, 0x3F80, 0x3F80)
    ]
    assert add_up(parts, parts[0][1]).tolist() == [[0x4381]]


@pytest.mark.usefixtures("either_way")
def test_the_output_of_one_function_is_the_sum() -> None:
    output = np.ones((2, HIDDEN), np.float32)
    assert add_up([(None, output)], output) is output


@pytest.mark.usefixtures("either_way")
def test_a_batch_may_have_more_than_16_million_values() -> None:
    size = (1 << 23) + 1
    output = np.full((1, size), 0x3F80, np.uint16)
    total = add_up([(np.array([0]), output), (np.array([1]), output)], np.empty((2, size), np.uint16))
    assert (total == output).all()
