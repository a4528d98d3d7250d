"""What a layer program is made of: numbers, weights, a router, and the FFN that all rows go through."""

from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from functions.kernels.bfloat16 import Float32
from functions.kernels.packed_expert import ExpertShape
from functions.kernels.packed_tiles import Bytes

from .dense import LinearLayer

Scores = Literal["softmax", "sigmoid", "sigmoid_of_chosen"]
"""How an expert's score, which is its weight, is made of its value in the router's linear layer: by softmax
over all experts, or by sigmoid. The choice is by scores; of "sigmoid_of_chosen", it is by values."""


@dataclass(frozen=True)
class LayerShape:
    """The numbers of a layer with grouped-query attention."""

    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    """Of all norms."""
    scaling: float | None = None
    """The factor of products of queries and keys; None for head_dim ** -0.5."""
    window: int | None = None
    """The most tokens that a row sees, its own among them; None for all."""
    clip: float | None = None
    """The largest absolute value of queries, keys and values; None for any."""
    residual: float = 1.0
    """The factor of what attention and the experts add to their inputs."""
    norms_heads: bool = True
    """Whether the norms of queries and keys are those of each head, instead of all heads together."""
    norms_rotated: bool = False
    """Whether these norms come after the rotary embedding, instead of before."""
    rotated: int | None = None
    """The first values of a head that are rotated; None for all."""
    interleaved: bool = False
    """Whether values 2i and 2i + 1 are rotated together, instead of i and i + rotated / 2."""
    gate_function: Literal["sigmoid", "softplus"] = "sigmoid"
    """What is made of `LayerWeights.gate`'s values."""


@dataclass(frozen=True)
class Router:
    """The linear layer that scores a layer's experts for a row, and how some of them are chosen."""

    linear: LinearLayer
    """In float32 or in the activations' dtype, to which values and weights are then rounded."""
    top_k: int
    normalised: bool
    """Whether the weights of the chosen experts add up to `scale`."""
    scores: Scores = "softmax"
    scale: float = 1.0
    """The factor of all weights."""
    correction: Float32 | None = None
    """[experts], added to the scores for the choice alone."""
    groups: int = 1
    """Groups of experts that follow each other. A group's score is the sum of its two best."""
    chosen_groups: int = 1
    """The best groups, which alone have experts that can be chosen."""


@dataclass(frozen=True)
class SharedExpert:
    """A packed gated FFN that all rows go through: a shared expert, or that of a layer without experts."""

    shape: ExpertShape
    packed: Bytes
    gate: NDArray[Any] | None = None
    """[H], whose product with a row gives the sigmoid that the row's output is multiplied with."""


@dataclass(frozen=True)
class LayerWeights:
    """The weights of a layer. Those that are not packed have the dtype of the activations."""

    query: LinearLayer
    key: LinearLayer
    value: LinearLayer
    output: LinearLayer
    input_norm: NDArray[Any] | None = None
    """Before attention."""
    attention_norm: NDArray[Any] | None = None
    """Of what attention adds to its input."""
    ffn_norm: NDArray[Any] | None = None
    """Before the router, the experts and the shared expert."""
    ffn_output_norm: NDArray[Any] | None = None
    """Of what the experts add."""
    query_norm: NDArray[Any] | None = None
    key_norm: NDArray[Any] | None = None
    gate: LinearLayer | None = None
    """Of the same input as queries. A function of its values, one for each head or for each of its values,
    multiplies what attention gives."""
    router: Router | None = None
    shared: SharedExpert | None = None
