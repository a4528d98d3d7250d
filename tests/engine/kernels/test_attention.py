"""Every kernel's attention against the definition in float64, and the cache after it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from control_plane.engine.kernels import available_dense_isas, load_dense_kernel
from functions.kernels.bfloat16 import bf16_to_f32, f32_to_bf16
from tests.support.functions.kernels import misaligned, worth_a_team

ISAS = available_dense_isas()
LANES, LAYERS, LAYER, TOKENS = 4, 3, 1, 70
ERROR = {"f32": 1e-5, "bf16": 1e-2}
"""Largest allowed error, as a share of the largest output. bf16 rounds the output to 8 bits."""


@dataclass(frozen=True)
class Call:
    """Rows of several sequences, two of them of the same one, with random pasts."""

    cache: NDArray[Any]
    query: NDArray[Any]
    key: NDArray[Any]
    value: NDArray[Any]
    rotation: tuple[NDArray[Any], NDArray[Any]]
    lanes: NDArray[np.int64]
    positions: NDArray[np.int64]
    attending: NDArray[np.int64]
    window: int | None = None
    scaling: float = 0.3

    def run(self, isa: str, threads: int = 1) -> tuple[NDArray[Any], NDArray[Any]]:
        """The output, and the cache after it."""
        arguments = vars(self) | {"cache": self.cache.copy()}
        out = load_dense_kernel(isa).attention(layer=LAYER, threads=threads, **arguments)
        return out, arguments["cache"]

    def rotated(self, heads: NDArray[Any]) -> NDArray[np.float64]:
        """transformers' rotary embedding: in bfloat16, it rounds both products and their sum."""
        first, second = np.split(as_f64(heads), 2, axis=2)
        parts = [as_f64(heads), np.concatenate([-second, first], axis=2)]
        products = [
            as_f64(stored(part * as_f64(factor)[:, None], heads.dtype))
            for part, factor in zip(parts, self.rotation, strict=True)
        ]
        return as_f64(stored(products[0] + products[1], heads.dtype))

    def reference(self) -> tuple[NDArray[np.float64], NDArray[Any]]:
        cache = self.cache.copy()
        for row, (lane, position) in enumerate(zip(self.lanes, self.positions, strict=True)):
            cache[lane, LAYER, 0, :, position] = stored(self.rotated(self.key)[row], cache.dtype)
            cache[lane, LAYER, 1, :, position] = self.value[row]
        kept, query = as_f64(cache), self.rotated(self.query)
        heads, shared = query.shape[1], query.shape[1] // cache.shape[3]
        out = np.empty((len(self.attending), *query.shape[1:]))
        for number, row in enumerate(self.attending):
            end = self.positions[row] + 1
            start = max(0, end - (self.window or end))
            for head in range(heads):
                keys, values = kept[self.lanes[row], LAYER, :, head // shared, start:end]
                scores = keys @ query[row, head] * self.scaling
                weights = np.exp(scores - scores.max())
                out[number, head] = weights @ values / weights.sum()
        return out, cache


def random_call(dtype: str = "f32", heads: int = 4, kv_heads: int = 4, head_dim: int = 32) -> Call:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[Any]:
        values = random.standard_normal(shape, np.float32)
        return f32_to_bf16(values) if dtype == "bf16" else values

    angles = np.tile(random.uniform(0, 7, (4, head_dim // 2)), 2)
    cosine, sine = (stored(turn(angles), normal(1).dtype) for turn in (np.cos, np.sin))
    lanes, positions = np.array([2, 0, 0, 3]), np.array([TOKENS - 1, 6, 7, 0])
    return Call(
        cache=normal(LANES, LAYERS, 2, kv_heads, TOKENS, head_dim),
        query=normal(4, heads, head_dim),
        key=normal(4, kv_heads, head_dim),
        value=normal(4, kv_heads, head_dim),
        rotation=(cosine, sine),
        lanes=lanes,
        positions=positions,
        attending=np.array([0, 2, 3]),
    )


def stored(values: NDArray[np.float64], dtype: np.dtype) -> NDArray[Any]:
    floats = values.astype(np.float32)
    return f32_to_bf16(floats) if dtype == np.uint16 else floats


def as_f64(values: NDArray[Any]) -> NDArray[np.float64]:
    return (bf16_to_f32(values) if values.dtype == np.uint16 else values).astype(np.float64)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", [None, 1, 5, 1000])
@pytest.mark.parametrize("sizes", [(4, 4, 32), (8, 2, 128), (6, 1, 40), (1, 1, 6)], ids=str)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_row_sees_earlier_tokens_and_its_own(
    dtype: str, sizes: tuple[int, int, int], window: int | None, isa: str
) -> None:
    call = replace(random_call(dtype, *sizes), window=window)
    out, cache = call.run(isa)
    expected, expected_cache = call.reference()
    assert out.dtype == cache.dtype
    # The order of a sum may turn the rounding of a key over, by one place.
    assert np.allclose(
        as_f64(cache), as_f64(expected_cache), rtol=1e-2 if dtype == "bf16" else 1e-5, atol=1e-6
    )
    assert np.abs(as_f64(out) - expected).max() <= ERROR[dtype] * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("isa", ISAS)
def test_threads_and_other_rows_do_not_change_a_row(isa: str, dtype: str) -> None:
    long = replace(random_call(dtype, heads=64, kv_heads=16, head_dim=128), attending=np.arange(4))
    assert worth_a_team(2 * int(long.positions.sum()) * 64 * 128 * long.query.itemsize)
    out, _ = long.run(isa)
    several, _ = long.run(isa, threads=5)
    assert np.array_equal(out, several)
    alone, _ = replace(long, attending=np.array([2])).run(isa)
    assert np.array_equal(alone, out[2:3])


@pytest.mark.parametrize("isa", ISAS)
def test_nan_stays_in_its_row(isa: str) -> None:
    call = random_call()
    call.query[2] = np.nan
    out, _ = call.run(isa)
    expected, _ = random_call().run(isa)
    assert np.isnan(out[1]).all()
    assert np.array_equal(out[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("isa", ISAS)
def test_no_attending_rows_give_no_output(isa: str) -> None:
    call = replace(random_call(), attending=np.array([], np.int64))
    out, cache = call.run(isa)
    assert out.shape == (0, 4, 32)
    assert np.allclose(cache, call.reference()[1], rtol=1e-5, atol=1e-6)


BAD: dict[str, dict[str, Any]] = {
    "a lane that is not there": {"lanes": np.array([0, 1, 2, LANES])},
    "a negative lane": {"lanes": np.array([0, 1, 2, -1])},
    "a position past the end": {"positions": np.array([0, 1, 2, TOKENS])},
    "a negative position": {"positions": np.array([0, 1, 2, -1])},
    "a row that is not there": {"attending": np.array([4])},
    "too few lanes": {"lanes": np.array([0])},
    "an odd size": {
        "cache": np.zeros((LANES, LAYERS, 2, 4, TOKENS, 7), np.float32),
        **{name: np.zeros((4, 4, 7), np.float32) for name in ("query", "key", "value")},
        "rotation": (np.zeros((4, 7), np.float32), np.zeros((4, 7), np.float32)),
    },
    "too few angles": {"rotation": (np.zeros((3, 32), np.float32), np.zeros((4, 32), np.float32))},
    "another dtype": {"query": np.zeros((4, 4, 32), np.uint16)},
    "keys of another size": {"key": np.zeros((4, 4, 16), np.float32)},
    "heads that do not divide": {"query": np.zeros((4, 6, 32), np.float32)},
    "no cache": {"cache": np.zeros((2, 2), np.float32)},
    "a cache that is not aligned": {
        "cache": misaligned(np.zeros((LANES, LAYERS, 2, 4, TOKENS, 32), np.float32))
    },
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
def test_refused_arguments_change_nothing(changes: dict[str, Any], isa: str) -> None:
    call = replace(random_call(), **changes)
    before = call.cache.copy()
    with pytest.raises(
        ValueError,
        match=r"even size|not a number below|must be|not a cache|no such layer|not contiguous",
    ):
        load_dense_kernel(isa).attention(layer=LAYER, **vars(call))
    assert np.array_equal(call.cache, before)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_an_unknown_layer_is_refused(layer: int, isa: str) -> None:
    with pytest.raises(ValueError, match="no such layer"):
        load_dense_kernel(isa).attention(layer=layer, **vars(random_call()))
