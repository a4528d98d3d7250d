"""What the dense part of a model computes, if its layers can be programs: names of tensors, and numbers.

The names are those of transformers' model, and of the dense file.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from control_plane.partition.model.limits import MAX_LAYERS, MAX_WIDTH, Size

Name = Annotated[str, Meta(max_length=200)]
Positive = Annotated[float, Meta(gt=0, lt=1e30)]
Tokens = Annotated[int, Meta(ge=1, le=1 << 32)]
Factor = Annotated[float, Meta(ge=-1e30, le=1e30)]
Scores = Literal["softmax", "sigmoid", "sigmoid_of_chosen"]
"""How a router makes an expert's score, which is its weight, of what its linear layer gives: by softmax over
all experts, or by sigmoid. The last chooses by what the linear layer gives, the others by scores."""


class RotationEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A rotary embedding (arXiv 2104.09864) of the first values of a head, two for each frequency."""

    frequencies: Annotated[tuple[float, ...], Meta(min_length=1, max_length=MAX_WIDTH)]
    """Radians a position."""
    scale: Factor
    """The factor of all cosines and sines."""
    interleaved: bool
    """Whether values 2i and 2i + 1 are rotated together, instead of i and i + n of 2n values."""


class RouterEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """How a layer chooses experts."""

    module: Name
    """The linear layer [experts, H]."""
    scores: Scores
    normalised: bool
    """Whether the weights of a row's experts are divided by their sum."""
    scale: Factor = 1.0
    """The factor of all weights."""
    correction: Name | None = None
    """Tensor [experts], added to scores for the choice alone."""
    groups: Size = 1
    """Groups of experts that follow each other. A group's score is the sum of its two best."""
    chosen_groups: Size = 1
    """The best groups, which alone have experts that can be chosen."""


class LayerEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A layer: attention, and then an FFN or experts, each of which is added to its input."""

    attention: Name
    """The module with the linear layers q_proj, k_proj, v_proj and o_proj."""
    heads: Size
    window: Tokens | None
    """The most tokens that a row sees, its own among them; None for all."""
    rotation: Annotated[int, Meta(ge=0, le=MAX_LAYERS)] | None
    """The number of one of the program's rotations; None for a layer without."""
    input_norm: Name | None = None
    """The norm before attention."""
    attention_norm: Name | None = None
    """That of what attention adds."""
    ffn_norm: Name | None = None
    """That before the FFN and the experts."""
    ffn_output_norm: Name | None = None
    """That of what they add."""
    query_norm: Name | None = None
    key_norm: Name | None = None
    norms_rotated: bool = False
    """Whether the norms of queries and keys come after the rotation."""
    gate: Name | None = None
    """The linear layer whose values' function multiplies what attention gives: one for each head, or for each
    value."""
    gate_function: Literal["sigmoid", "softplus"] = "sigmoid"
    router: RouterEntry | None = None
    """None for a layer without experts."""
    ffn: Name | None = None
    """The gated FFN that all rows go through: a shared expert, or that of a layer without experts."""
    ffn_gate: Name | None = None
    """Tensor [H], whose product with a row gives the sigmoid that the FFN's output is multiplied with."""


class Program(Struct, frozen=True, forbid_unknown_fields=True):
    """The dense part: token embeddings, layers with grouped-query attention, a norm, and a head."""

    kv_heads: Size
    head_dim: Size
    scaling: Positive
    """The factor of products of queries and keys."""
    epsilon: Positive
    """Of all norms."""
    clip: Positive | None
    """The largest absolute value of queries, keys and values; None for any."""
    residual_scale: Factor
    """The factor of what attention and experts add to their inputs."""
    embedding_scale: Factor
    logits_scale: Factor
    context_length: Tokens
    """Tokens of the longest sequence."""
    norm: Name
    """The last norm."""
    biases: tuple[Name, ...]
    """Those of linear layers that have some."""
    rotations: Annotated[tuple[RotationEntry, ...], Meta(max_length=MAX_LAYERS)]
    layers: Annotated[tuple[LayerEntry, ...], Meta(min_length=1, max_length=MAX_LAYERS)]
