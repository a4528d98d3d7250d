"""Random weights with which a model behaves like a trained one in what benchmarks depend on.

- Activations keep their scale. Embeddings have a standard deviation of 1, and matrices 1/sqrt(inputs),
  except for output projections. Each layer adds some tenths to the variance of the hidden states, so the
  inputs of neighbouring routers are similar: cosine 0.90 at the first layers of Qwen1.5-MoE-A2.7B, 0.98 at
  the last. Attention adds little, because it averages: the part that all tokens have in common would grow
  from layer to layer, until all tokens are routed alike.
- The router can be skewed. Dimension 0 of every hidden state is a constant: embeddings set it, and no output
  projection writes to it. Only column 0 of the routers reads it, so this column acts as a bias, which these
  routers do not have otherwise. It holds the logarithms of a Zipf law over the experts, in an order that
  differs from layer to layer. Not so with gpt-oss, whose experts are stored transposed, so that they read
  and write this dimension.
- Vectors, such as norms and rates of decay, have the mean that they have in a new model of the family.

Values are slices of one pool, at offsets that depend on the tensor's name, because drawing all values would
take longer than writing them.
"""

import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from control_plane.partition.checkpoint.tensors.tensor import CHUNK_VALUES, Tensor
from functions.kernels.bfloat16 import f32_to_bf16

CONSTANT = 16.0
"""Dimension 0 of every hidden state; the others are around 1."""

_LAYER_VARIANCE = 0.3
"""Variance that each layer adds to the hidden states, measured with the sizes of Qwen1.5-MoE-A2.7B."""

_ROUTER_NOISE = 1.75
"""Standard deviation of the noise that a token adds to the logarithms. With Gumbel noise, experts would be
chosen with exactly the probabilities of the Zipf law; with this normal noise it is close for 60 to 128
experts."""

_POOL_VALUES = 4 * CHUNK_VALUES
# Factors on 1/sqrt(inputs), the standard deviation of other matrices.
_OUTPUTS = {
    ".o_proj.weight": 0.2,
    ".out_proj.weight": 0.2,
    ".down_proj.weight": 1.5,
    ".down_proj": 1.5,
    ".w2.weight": 1.5,
}
_ROUTER = re.compile(r"model\.layers\.(\d+)\.\w+\.(?:gate|router)\.weight")
_NUMBER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class RandomTensor(Tensor):
    """bf16 values from a pool, except for each matrix's first column or first row if they are given."""

    published_name: str
    """Its values depend on this name, also where it is used by another."""
    pool: NDArray[np.uint16]
    first_column: NDArray[np.uint16] | None = None
    first_row: np.uint16 | None = None

    def read(self, start: int, count: int) -> NDArray[np.uint16]:
        """The bits of `count` bf16 values, from flat index `start` on."""
        values = np.concatenate(list(self._slices(start, start + count)))
        columns = self.shape[-1]
        if self.first_row is not None:
            size = self.shape[-2] * columns
            for matrix in range(start // size, -(-(start + count) // size)):
                begin = matrix * size - start
                values[max(0, begin) : max(0, begin + columns)] = self.first_row
        if self.first_column is not None:
            row = -(-start // columns)
            places = values[row * columns - start :: columns]
            places[...] = self.first_column[row : row + len(places)]
        return values

    def _slices(self, start: int, end: int) -> Iterator[NDArray[np.uint16]]:
        while start < end:
            chunk, within = divmod(start, CHUNK_VALUES)
            count = min(CHUNK_VALUES - within, end - start)
            place = (
                zlib.crc32(f"{self.published_name} {chunk}".encode()) % (len(self.pool) - CHUNK_VALUES)
                + within
            )
            yield self.pool[place : place + count]
            start += count


class RandomWeights:
    """Makes the tensors of one model, by their names in published checkpoints."""

    def __init__(
        self,
        path: Path,
        seed: int = 0,
        router_skew: float = 0.0,
        vectors: Mapping[str, float] | None = None,
    ) -> None:
        """`path` is named in errors; `router_skew` is the exponent of the Zipf law, 0 for uniform.

        `vectors` has the values of vectors by their `kind`; others are 1 in norms, and else 0.
        """
        self._path = path
        self._vectors = vectors or {}
        self._seed = seed
        self._router_skew = router_skew
        self._pools: dict[float, NDArray[np.uint16]] = {}

    def tensor(self, name: str, shape: tuple[int, ...]) -> RandomTensor:
        """The tensor with this name and shape. The same seed gives the same values."""
        described = (name, self._path, "BF16", shape, name)
        if len(shape) == 1:
            default = 1.0 if name.endswith("norm.weight") else 0.0
            return RandomTensor(*described, _constant(self._vectors.get(kind(name), default)))
        if name.endswith("bias"):
            return RandomTensor(*described, _constant(0.0))
        if name.endswith("embed_tokens.weight"):
            return RandomTensor(*described, self._pool(1.0), _bf16(np.full(shape[0], CONSTANT)))
        deviation = 1 / math.sqrt(shape[-1])
        if match := _ROUTER.fullmatch(name):
            bias = self.router_bias(int(match[1]), shape[0])
            return RandomTensor(*described, self._pool(deviation * _ROUTER_NOISE), _bf16(bias / CONSTANT))
        for output, scale in _OUTPUTS.items():
            if name.endswith(output):
                return RandomTensor(*described, self._pool(deviation * scale), first_row=np.uint16(0))
        if shape[-2] == 1:
            # A convolution of each channel.
            return RandomTensor(*described, self._pool(deviation))
        unread = np.zeros(math.prod(shape[:-1]), np.uint16)
        return RandomTensor(*described, self._pool(deviation), first_column=unread)

    def router_bias(self, layer: int, num_experts: int) -> NDArray[np.float64]:
        """The bias of a layer's router for each expert [experts], before normalisation."""
        ranks = 1 + np.random.default_rng([self._seed, layer]).permutation(num_experts)
        logarithms: NDArray[np.float64] = -self._router_skew * np.log(ranks)
        middle = (logarithms.max() + logarithms.min()) / 2
        # The layer's norm shrinks the constant as the rest of the hidden state grows.
        bias: NDArray[np.float64] = (logarithms - middle) * math.sqrt(1 + _LAYER_VARIANCE * (layer + 0.5))
        return bias

    def _pool(self, deviation: float) -> NDArray[np.uint16]:
        if deviation not in self._pools:
            normal = np.random.default_rng(self._seed).standard_normal(_POOL_VALUES, np.float32)
            self._pools[deviation] = _bf16(normal * np.float32(deviation))
        return self._pools[deviation]


def kind(name: str) -> str:
    """A tensor's name without the numbers of its layer and expert."""
    return _NUMBER.sub(".*.", name)


def _constant(value: float) -> NDArray[np.uint16]:
    return np.broadcast_to(_bf16(np.array(value)), _POOL_VALUES)


def _bf16(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    return f32_to_bf16(values.astype(np.float32))
