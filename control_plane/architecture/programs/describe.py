"""Describes a model as layer programs, by the tensors that its modules have and by their numbers.

What a family is called does not count. Where its modules do not say what they compute, there are several
`Kind`s of programs, of which a trial finds the right one, if any is. A model with a tensor that no program
has a place for has no programs.
"""

from collections.abc import Mapping
from itertools import product, starmap
from typing import Any, Literal, NamedTuple, get_args

from msgspec import to_builtins
from transformers import PreTrainedModel

from control_plane.architecture.programs.dense_tensors import DenseTensors
from control_plane.architecture.programs.numbers import check_numbers, epsilon, is_norm, known, same
from control_plane.architecture.programs.rotations import Rotations
from control_plane.architecture.programs.routers import router_of
from control_plane.errors import UnsupportedModel
from control_plane.partition.checkpoint.rope import context_length
from control_plane.partition.dense import EMBEDDING, HEAD
from control_plane.partition.model.architecture import Architecture
from control_plane.partition.model.program import LayerEntry, Program, Scores
from control_plane.validation import Invalid, convert

_NORM_PLACES = ("input_norm", "attention_norm", "ffn_norm", "ffn_output_norm")
_NORMS: tuple[tuple[str | None, ...], ...] = (
    ("input_layernorm", None, "post_attention_layernorm", None),
    (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    ("input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm"),
)
"""What families call the norms in these places of a layer."""
_HEAD_NORMS = (("q_norm", "k_norm", False), ("query_layernorm", "key_layernorm", True))
"""The norms of queries and keys, and whether they come after the rotation."""
_GATES: Mapping[str, Literal["sigmoid", "softplus"]] = {"gate_proj": "sigmoid", "g_proj": "softplus"}
"""The linear layers in attention whose values' function multiplies what it gives."""


class Kind(NamedTuple):
    """What a model's modules do not say."""

    scores: Scores
    rotates_all: bool
    """Whether layers that see all tokens rotate queries and keys though others have a window."""


KINDS = tuple(starmap(Kind, product(get_args(Scores), (True, False))))
"""The likeliest first."""


def program_of(model: PreTrainedModel, architecture: Architecture, kind: Kind) -> Program:
    """The program of a model on the meta device, if it is of this kind.

    Raises UnsupportedModel for a model whose tensors or numbers are not those of layer programs.
    """
    return _Description(model, architecture, kind).program()


class _Description:
    """Describes one model."""

    def __init__(self, model: PreTrainedModel, architecture: Architecture, kind: Kind) -> None:
        self._model = model
        self._config: Any = model.config
        self._kind = kind
        self._experts = {layer.number: layer.module for layer in architecture.layers}
        self._num_experts, self._hidden_size = architecture.num_experts, architecture.hidden_size
        self._tensors = DenseTensors(model, architecture)
        self._rotations = Rotations(model)
        self._base = model.base_model_prefix

    def program(self) -> Program:
        check_numbers(self._model, self._experts.values())
        numbers = range(len(self._tensors.module(f"{self._base}.layers")))
        attentions = [self._tensors.module(f"{self._name(number)}.self_attn") for number in numbers]
        self._tensors.take(EMBEDDING)
        self._tensors.take_linear(HEAD)
        norm = self._tensors.take(f"{self._base}.norm.weight")
        layers = tuple(map(self._layer, numbers))
        if self._tensors.left:
            raise UnsupportedModel(f"a layer program has no {min(self._tensors.left)}")
        positions = getattr(self._config, "max_position_embeddings", None) or 0
        program = Program(
            kv_heads=self._config.num_key_value_heads,
            head_dim=same(attention.head_dim for attention in attentions),
            scaling=same(attention.scaling for attention in attentions),
            epsilon=epsilon(self._model),
            clip=known(self._config, "clip_qkv"),
            residual_scale=known(self._config, "residual_multiplier") or 1.0,
            embedding_scale=self._embedding_scale(),
            logits_scale=1 / (known(self._config, "logits_scaling") or 1.0),
            context_length=context_length(positions, self._config.rope_parameters),
            norm=norm,
            biases=tuple(self._tensors.biases),
            rotations=tuple(self._rotations.entries),
            layers=layers,
        )
        try:
            # What is read back has floats, and the fingerprint is that of what was written.
            return convert(to_builtins(program), Program)
        except Invalid as error:
            raise UnsupportedModel(f"no layer program has these numbers: {error}") from error

    def _name(self, number: int) -> str:
        return f"{self._base}.layers.{number}"

    def _layer(self, number: int) -> LayerEntry:
        name, tensors = self._name(number), self._tensors
        attention = f"{name}.self_attn"
        for part in "qkvo":
            tensors.take_linear(f"{attention}.{part}_proj")
        gate = next((each for each in _GATES if f"{attention}.{each}.weight" in tensors.left), None)
        router, gate_of_ffn = None, None
        if number in self._experts:
            block = self._experts[number].rpartition(".")[0]
            router = router_of(tensors, block, self._num_experts, self._hidden_size, self._kind.scores)
            gate_of_ffn = tensors.take_only(f"{block}.", (1, self._hidden_size))
        return LayerEntry(
            attention=attention,
            heads=tensors.module(f"{attention}.q_proj").out_features // tensors.module(attention).head_dim,
            window=self._window(number),
            rotation=self._rotation(number),
            **self._norms(name),
            **self._head_norms(attention),
            gate=gate and tensors.take_linear(f"{attention}.{gate}"),
            gate_function=_GATES[gate] if gate else "sigmoid",
            router=router,
            ffn=tensors.take_ffn(name),
            ffn_gate=gate_of_ffn,
        )

    def _window(self, number: int) -> int | None:
        types = known(self._config, "layer_types")
        if types is not None and types[number] != "sliding_attention":
            return None
        return known(self._config, "sliding_window") or None

    def _rotation(self, number: int) -> int | None:
        attention = self._tensors.module(f"{self._name(number)}.self_attn")
        types = known(self._config, "layer_types")
        sees_all = self._window(number) is None and known(self._config, "sliding_window")
        if sees_all and not self._kind.rotates_all:
            return None
        return self._rotations.number(attention, types and types[number])

    def _norms(self, layer: str) -> dict[str, Any]:
        """The norms of a layer by their places."""
        found = {each for each, module in self._tensors.module(layer).named_children() if is_norm(module)}
        for names in _NORMS:
            if found == {*names} - {None}:
                return {
                    place: self._tensors.take(f"{layer}.{name}.weight")
                    for place, name in zip(_NORM_PLACES, names, strict=True)
                    if name is not None
                }
        raise UnsupportedModel(f"a layer program has no norms {sorted(found)}")

    def _head_norms(self, attention: str) -> dict[str, Any]:
        for query, key, rotated in _HEAD_NORMS:
            if f"{attention}.{query}.weight" in self._tensors.left:
                return {
                    "query_norm": self._tensors.take(f"{attention}.{query}.weight"),
                    "key_norm": self._tensors.take(f"{attention}.{key}.weight"),
                    "norms_rotated": rotated,
                }
        return {}

    def _embedding_scale(self) -> float:
        if known(self._config, "mup_enabled"):
            return float(self._hidden_size**0.5)
        return float(known(self._config, "embedding_multiplier") or 1.0)
