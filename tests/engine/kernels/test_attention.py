"""Every kernel's attention against the definition in float64, and the cache after it."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from control_plane.engine.kernels import Scores, available_dense_isas, load_dense_kernel
from functions.kernels.bfloat16 import bf16_to_f32, f32_to_bf16
from tests.support.functions.kernels import misaligned, worth_a_team

ISAS = available_dense_isas()
LANES, TOKENS = 4, 70
ERROR = {"f32": 1e-5, "bf16": 1e-2}
"""Largest allowed error, as a share of the largest output. bf16 rounds the output to 8 bits."""


class Sizes(NamedTuple):
    """Those of a layer."""

    heads: int = 4
    kv_heads: int = 4
    key_size: int = 32
    value_size: int = 32


SMALL = Sizes()


@dataclass(frozen=True)
class Call:
    """Rows of several sequences, some of which follow each other, with random pasts."""

    cache: tuple[NDArray[Any], NDArray[Any]]
    query: NDArray[Any]
    key: NDArray[Any]
    value: NDArray[Any] | None
    lanes: NDArray[np.int64]
    positions: NDArray[np.int64]
    scores: Scores

    def run(self, isa: str, threads: int = 1) -> tuple[NDArray[Any], tuple[NDArray[Any], NDArray[Any]]]:
        """The output, and the cache after it."""
        call = self.with_own_cache()
        return load_dense_kernel(isa).attention(threads=threads, **vars(call)), call.cache

    def rows(self, rows: list[int]) -> "Call":
        """A call of some rows."""
        own = {name: getattr(self, name)[rows] for name in ("query", "key", "lanes", "positions")}
        return replace(self, value=None if self.value is None else self.value[rows], **own)

    def with_own_cache(self) -> "Call":
        keys, values = self.cache
        if self.value is None:
            keys = keys.copy()
            return replace(self, cache=(keys, keys[..., : values.shape[3]]))
        return replace(self, cache=(keys.copy(), values.copy()))

    def reference(self) -> tuple[NDArray[np.float64], tuple[NDArray[Any], NDArray[Any]]]:
        keys, values = cache = self.with_own_cache().cache
        for row, (lane, position) in enumerate(zip(self.lanes, self.positions, strict=True)):
            keys[lane, :, position] = self.key[row]
            if self.value is not None:
                values[lane, :, position] = self.value[row]
        shared = self.query.shape[1] // keys.shape[1]
        out = np.empty((*self.query.shape[:2], values.shape[3]))
        for row, head in np.ndindex(out.shape[:2]):
            end = self.positions[row] + 1
            seen = (self.lanes[row], head // shared, slice(max(0, end - (self.scores.window or end)), end))
            out[row, head] = self.weights(as_f64(keys[seen]) @ as_f64(self.query)[row, head], head) @ as_f64(
                values[seen]
            )
        return out, cache

    def weights(self, products: NDArray[np.float64], head: int) -> NDArray[np.float64]:
        """Those of the tokens that a row sees, from the products of its query and their keys."""
        scores = products * self.scores.scaling
        if cap := self.scores.softcap:
            scores = cap * np.tanh(scores / cap)
        if self.scores.sinks is not None:
            scores = np.append(scores, self.scores.sinks[head])
        weights = np.exp(scores - scores.max())
        shares: NDArray[np.float64] = weights / weights.sum()
        return shares[: len(products)]


def random_call(dtype: str = "f32", sizes: Sizes = SMALL, values_in_keys: bool = False) -> Call:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[Any]:
        values = random.standard_normal(shape, np.float32)
        return f32_to_bf16(values) if dtype == "bf16" else values

    heads, kv_heads, key_size, value_size = sizes
    lanes, positions = np.array([2, 0, 0, 0, 3]), np.array([TOKENS - 1, 6, 7, 8, 0])
    keys = normal(LANES, kv_heads, TOKENS, key_size)
    return Call(
        cache=(keys, keys[..., :value_size] if values_in_keys else normal(*keys.shape[:3], value_size)),
        query=normal(5, heads, key_size),
        key=normal(5, kv_heads, key_size),
        value=None if values_in_keys else normal(5, kv_heads, value_size),
        lanes=lanes,
        positions=positions,
        scores=Scores(0.3),
    )


def as_f64(values: NDArray[Any]) -> NDArray[np.float64]:
    return (bf16_to_f32(values) if values.dtype == np.uint16 else values).astype(np.float64)


def check(call: Call, isa: str, dtype: str) -> None:
    """Compare a kernel's output, and the cache after it, with the reference."""
    out, cache = call.run(isa)
    expected, expected_cache = call.reference()
    assert out.dtype == cache[0].dtype
    assert all(np.array_equal(*pair) for pair in zip(cache, expected_cache, strict=True))
    assert np.abs(as_f64(out) - expected).max() <= ERROR[dtype] * np.abs(expected).max()


ALL_SIZES = [
    SMALL,
    Sizes(8, 2, 128, 128),
    Sizes(6, 1, 40, 40),
    Sizes(1, 1, 6, 6),
    Sizes(4, 2, 192, 128),
    Sizes(3, 3, 7, 33),
    Sizes(40, 1, 16, 48),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", [None, 1, 5, 1000])
@pytest.mark.parametrize("sizes", ALL_SIZES, ids=lambda sizes: "-".join(map(str, sizes)))
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_row_sees_earlier_tokens_and_its_own(
    dtype: str, sizes: Sizes, window: int | None, isa: str
) -> None:
    check(replace(random_call(dtype, sizes), scores=Scores(0.3, window)), isa, dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 1.5, 50.0])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_scores_are_capped_and_sinks_take_their_share(
    dtype: str, has_sinks: bool, softcap: float | None, window: int | None, isa: str
) -> None:
    """Of the sinks, one is far above all scores, and one far below."""
    sinks = np.array([0.5, -2, 90, -200, 3, 0], np.float32) if has_sinks else None
    call = random_call(dtype, Sizes(6, 2, 24, 16))
    check(replace(call, scores=Scores(0.3, window, softcap, sinks)), isa, dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sizes", [Sizes(16, 1, 72, 64), Sizes(4, 2, 34, 30)], ids=str)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_values_may_be_a_part_of_the_keys(dtype: str, sizes: Sizes, isa: str) -> None:
    check(random_call(dtype, sizes, values_in_keys=True), isa, dtype)


@pytest.mark.parametrize("sizes", [Sizes(64, 16, 128, 128), Sizes(64, 4, 640, 512)], ids=str)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("isa", ISAS)
def test_threads_and_other_rows_do_not_change_a_row(isa: str, dtype: str, sizes: Sizes) -> None:
    sinks = np.linspace(-1, 1, sizes.heads, dtype=np.float32)
    call = replace(
        random_call(dtype, sizes),
        positions=np.array([TOKENS - 1, 61, 62, 63, TOKENS - 1]),
        scores=Scores(0.3, None, 9.0, sinks),
    )
    out, cache = call.run(isa)
    row_bytes = sizes.kv_heads * (sizes.key_size + sizes.value_size) * call.query.itemsize
    assert worth_a_team(int(call.positions.sum()) * row_bytes)
    several, _ = call.run(isa, threads=5)
    assert np.array_equal(out, several)
    alone, _ = replace(call, cache=cache).rows([2]).run(isa)
    assert np.array_equal(alone, out[2:3])


@pytest.mark.parametrize("isa", ISAS)
def test_nan_stays_in_its_row(isa: str) -> None:
    call = random_call()
    call.query[2] = np.nan
    out, _ = call.run(isa)
    expected, _ = random_call().run(isa)
    assert np.isnan(out[2]).all()
    assert np.array_equal(out[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])


@pytest.mark.parametrize("isa", ISAS)
def test_no_rows_give_no_output(isa: str) -> None:
    call = random_call().rows([])
    out, cache = call.run(isa)
    assert out.shape == (0, 4, 32)
    assert np.array_equal(cache[0], call.cache[0])


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


STATES = zeros(LANES, 4, TOKENS, 32)
BAD: dict[str, dict[str, Any]] = {
    "a lane that is not there": {"lanes": np.array([0, 1, 2, 3, LANES])},
    "a negative lane": {"lanes": np.array([0, 1, 2, 3, -1])},
    "a position past the end": {"positions": np.array([0, 1, 2, 3, TOKENS])},
    "a negative position": {"positions": np.array([0, 1, 2, 3, -1])},
    "too few lanes": {"lanes": np.array([0])},
    "another dtype": {"query": np.zeros((5, 4, 32), np.uint16)},
    "keys of another size": {"key": zeros(5, 4, 16)},
    "values of another size": {"value": zeros(5, 4, 16)},
    "heads that do not divide": {"query": zeros(5, 6, 32)},
    "too few sinks": {"scores": Scores(0.3, sinks=zeros(3))},
    "no cache": {"cache": (zeros(2, 2), zeros(2, 2))},
    "values of fewer lanes": {"cache": (STATES, STATES[1:])},
    "values of another dtype": {"cache": (STATES, np.zeros(STATES.shape, np.uint16))},
    "a cache that is not aligned": {"cache": (misaligned(STATES), STATES)},
    "a cache that is read alone": {"cache": (STATES, np.broadcast_to(zeros(32), STATES.shape))},
    "keys that are apart": {"cache": (zeros(LANES, 4, TOKENS, 64)[..., :32], STATES)},
    "values that are apart": {"cache": (STATES, zeros(LANES, 4, TOKENS, 64)[..., ::2])},
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
def test_refused_arguments_change_nothing(changes: dict[str, Any], isa: str) -> None:
    call = replace(random_call(), **changes)
    before = [states.copy() for states in call.cache]
    with pytest.raises(
        ValueError,
        match=r"not a number below|must be|not a cache|cannot share|is not aligned|do not follow each other",
    ):
        load_dense_kernel(isa).attention(**vars(call))
    assert all(np.array_equal(*pair) for pair in zip(call.cache, before, strict=True))
