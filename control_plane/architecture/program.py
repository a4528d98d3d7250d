"""Describes a model as layer programs, by the tensors that its modules have and by their numbers.

What a family is called does not count. Where its modules do not say what they compute, there are several
`Kind`s of programs, of which a trial finds the right one, if any is. A model with a tensor that no program
has a place for has no programs.
"""

import sys
from collections.abc import Iterable, Mapping
from itertools import product, starmap
from typing import Any, Literal, NamedTuple, get_args

import torch
from msgspec import to_builtins
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from control_plane.errors import UnsupportedModel
from control_plane.partition.checkpoint.rope import context_length
from control_plane.partition.dense import EMBEDDING, HEAD
from control_plane.partition.model.architecture import Architecture
from control_plane.partition.model.program import LayerEntry, Program, RotationEntry, RouterEntry, Scores
from control_plane.validation import Invalid, convert

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
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
_ROUTER_SCALES = ("routed_scaling_factor", "router_scaling_factor", "route_scale")


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
    """Describes one model. What it describes, it takes out of `_left`."""

    def __init__(self, model: PreTrainedModel, architecture: Architecture, kind: Kind) -> None:
        self._model: Any = model
        self._config: Any = model.config
        self._kind = kind
        self._entries = architecture.dense
        self._ffns = frozenset(architecture.gated_ffns)
        self._experts = {layer.number: layer.module for layer in architecture.layers}
        self._num_experts, self._hidden_size = architecture.num_experts, architecture.hidden_size
        self._left = set(architecture.dense)
        self._base = model.base_model_prefix
        self._rotations = _Rotations(model)

    def program(self) -> Program:
        layers = self._module(f"{self._base}.layers")
        attentions = [
            self._module(f"{self._base}.layers.{number}.self_attn") for number in range(len(layers))
        ]
        self._take_embedding()
        norm = self._take_norm(f"{self._base}.norm")
        entries = tuple(self._layer(number) for number in range(len(layers)))
        if self._left:
            raise UnsupportedModel(f"a layer program has no {min(self._left)}")
        positions = getattr(self._config, "max_position_embeddings", None) or 0
        program = Program(
            kv_heads=self._config.num_key_value_heads,
            head_dim=_same(attention.head_dim for attention in attentions),
            scaling=_same(attention.scaling for attention in attentions),
            epsilon=_same(map(_epsilon, _norms(self._model))),
            clip=_known(self._config, "clip_qkv"),
            residual_scale=_known(self._config, "residual_multiplier") or 1.0,
            embedding_scale=self._embedding_scale(),
            logits_scale=1 / (_known(self._config, "logits_scaling") or 1.0),
            context_length=context_length(positions, self._config.rope_parameters),
            norm=norm,
            rotations=tuple(self._rotations.entries),
            layers=entries,
        )
        try:
            # What is read back has floats, and the fingerprint is that of what was written.
            return convert(to_builtins(program), Program)
        except Invalid as error:
            raise UnsupportedModel(f"no layer program has these numbers: {error}") from error

    def _layer(self, number: int) -> LayerEntry:
        name = f"{self._base}.layers.{number}"
        attention = f"{name}.self_attn"
        for part in _PROJECTIONS:
            self._take_linear(f"{attention}.{part}")
        gates = [each for each in _GATES if f"{attention}.{each}.weight" in self._left]
        for gate in gates:
            self._take_linear(f"{attention}.{gate}")
        block = self._experts[number].rpartition(".")[0] if number in self._experts else f"{name}.mlp"
        router = self._router(block) if number in self._experts else None
        ffn = self._ffn(name)
        return LayerEntry(
            attention=attention,
            heads=self._module(f"{attention}.q_proj").out_features // self._module(attention).head_dim,
            window=self._window(number),
            rotation=self._rotation(number),
            **self._norms(name),
            **self._head_norms(attention),
            gate=f"{attention}.{gates[0]}" if gates else None,
            gate_function=_GATES[gates[0]] if gates else "sigmoid",
            router=router,
            ffn=ffn,
            ffn_gate=self._take_only(f"{block}.", (1, self._hidden_size)) if ffn and router else None,
        )

    def _router(self, block: str) -> RouterEntry:
        experts = self._num_experts
        weight = self._take_only(f"{block}.", (experts, self._hidden_size), may_be_f32=True)
        if weight is None:
            raise UnsupportedModel(f"{block} has no router that is one matrix")
        module = weight.rpartition(".")[0]
        if f"{module}.bias" in self._left:
            self._take(f"{module}.bias", may_be_f32=True)
        correction = self._take_only(f"{block}.", (experts,), may_be_f32=True)
        correction = correction or self._take_only(f"{block}.", (1, experts), may_be_f32=True)
        # Numbers are those of the block, of the linear layer in it, or of a module between them.
        names = [block, *(name for name in (module.rpartition(".")[0], module) if len(name) > len(block))]
        owners = [self._module(name) for name in names]
        return RouterEntry(
            module=module,
            scores=self._kind.scores,
            normalised=_number(owners, ("norm_topk_prob",), True),
            scale=_number(owners, _ROUTER_SCALES, 1.0),
            correction=correction,
            groups=_number(owners, ("num_group", "n_group"), 1),
            chosen_groups=_number(owners, ("topk_group",), 1),
        )

    def _norms(self, layer: str) -> dict[str, Any]:
        """The norms of a layer by their places."""
        found = {each for each, module in self._module(layer).named_children() if _is_norm(module)}
        for names in _NORMS:
            if found == {*names} - {None}:
                return {
                    place: self._take_norm(f"{layer}.{name}")
                    for place, name in zip(_NORM_PLACES, names, strict=True)
                    if name is not None
                }
        raise UnsupportedModel(f"a layer program has no norms {sorted(found)}")

    def _head_norms(self, attention: str) -> dict[str, Any]:
        for query, key, rotated in _HEAD_NORMS:
            if f"{attention}.{query}.weight" in self._left:
                return {
                    "query_norm": self._take_norm(f"{attention}.{query}"),
                    "key_norm": self._take_norm(f"{attention}.{key}"),
                    "norms_rotated": rotated,
                }
        return {}

    def _rotation(self, number: int) -> int | None:
        attention = self._module(f"{self._base}.layers.{number}.self_attn")
        types = _known(self._config, "layer_types")
        sees_all = self._window(number) is None and _known(self._config, "sliding_window")
        if sees_all and not self._kind.rotates_all and not getattr(attention, "force_rope", False):
            return None
        return self._rotations.number(attention, types and types[number])

    def _embedding_scale(self) -> float:
        if _known(self._config, "mup_enabled"):
            return float(self._hidden_size**0.5)
        return float(_known(self._config, "embedding_multiplier") or 1.0)

    def _window(self, number: int) -> int | None:
        types = _known(self._config, "layer_types")
        if types is not None and types[number] != "sliding_attention":
            return None
        return _known(self._config, "sliding_window") or None

    def _take_embedding(self) -> None:
        self._take(EMBEDDING)
        self._take_linear(HEAD)

    def _take_linear(self, module: str) -> None:
        if type(self._module(module)) is not nn.Linear:
            raise UnsupportedModel(f"{module} is no linear layer")
        self._take(f"{module}.weight")
        if f"{module}.bias" in self._left:
            self._take(f"{module}.bias")

    def _take_norm(self, module: str) -> str:
        weight = f"{module}.weight"
        self._take(weight)
        return weight

    def _ffn(self, layer: str) -> str | None:
        """The gated FFN of a layer that all rows go through."""
        found = [name for name in self._ffns if name.startswith(f"{layer}.")]
        if len(found) > 1:
            raise UnsupportedModel(f"{layer} has several gated FFNs")
        for name in found:
            for part in ("gate_proj", "up_proj", "down_proj"):
                self._take(f"{name}.{part}.weight")
        return found[0] if found else None

    def _take_only(self, prefix: str, shape: tuple[int, ...], may_be_f32: bool = False) -> str | None:
        """The only tensor of this shape whose name begins so, if there is one."""
        found = [
            name for name in self._left if name.startswith(prefix) and self._entries[name].shape == shape
        ]
        if len(found) != 1:
            return None
        self._take(found[0], may_be_f32)
        return found[0]

    def _take(self, name: str, may_be_f32: bool = False) -> None:
        """Raises UnsupportedModel if the model has no such tensor, or computes with it in float32."""
        if name not in self._left or (self._entries[name].keeps_f32 and not may_be_f32):
            raise UnsupportedModel(f"a layer program needs {name}, in the activations' dtype")
        self._left.remove(name)

    def _module(self, name: str) -> Any:
        try:
            return self._model.get_submodule(name)
        except AttributeError as error:
            raise UnsupportedModel(f"a layer program needs {name}") from error


class _Rotations:
    """The rotary embeddings of a model's layers."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.entries: list[RotationEntry] = []
        module: Any = getattr(model.base_model, "rotary_emb", None)
        if module is None:
            raise UnsupportedModel("a layer program needs a rotary embedding")
        with torch.device("cpu"):
            self._module: Any = type(module)(config=model.config)

    def number(self, attention: Any, layer_type: str | None) -> int:
        """That of the embedding of a layer, among `entries`. Some families have one for each type of layer."""
        name = f"{layer_type}_" if hasattr(self._module, f"{layer_type}_inv_freq") else ""
        frequencies = tuple(getattr(self._module, f"{name}inv_freq").tolist())
        scale = float(getattr(self._module, f"{name}attention_scaling"))
        entry = RotationEntry(frequencies, scale, _is_interleaved(attention, len(frequencies)))
        if entry not in self.entries:
            self.entries.append(entry)
        return self.entries.index(entry)


def _is_interleaved(attention: Any, pairs: int) -> bool:
    """Whether the function that rotates an attention's heads takes values 2i and 2i + 1 together, instead of
    i and i + pairs. Raises UnsupportedModel if it does neither."""
    rotate = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if rotate is None:
        raise UnsupportedModel("a layer program needs a rotary embedding of queries and keys")
    random = torch.Generator().manual_seed(0)
    heads = torch.randn(1, 1, 1, attention.head_dim, generator=random)
    angles = torch.randn(1, 1, pairs, generator=random)
    found, _ = rotate(heads, heads, angles.tile(2).cos(), angles.tile(2).sin())
    part = heads[..., : 2 * pairs]
    for interleaved in (False, True):
        first, second = (part[..., ::2], part[..., 1::2]) if interleaved else part.chunk(2, dim=-1)
        turned = (
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
        )
        whole = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
        if torch.allclose(found, torch.cat([whole, heads[..., 2 * pairs :]], dim=-1), atol=1e-5):
            return interleaved
    raise UnsupportedModel("a layer program has no such rotary embedding")


def _is_norm(module: nn.Module) -> bool:
    """Whether a module has nothing but a weight [H]. What it computes, a trial finds out."""
    parameters = dict(module.named_parameters())
    return parameters.keys() == {"weight"} and parameters["weight"].ndim == 1


def _norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if _is_norm(module)]


def _epsilon(norm: Any) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def _same(values: Iterable[Any]) -> Any:
    """The value that all of them are. Raises UnsupportedModel if they differ."""
    found = set(values)
    if len(found) != 1:
        raise UnsupportedModel(
            f"a layer program has one number for all layers, not {sorted(map(str, found))}"
        )
    return found.pop()


def _known(config: PretrainedConfig, name: str) -> Any:
    """A value of a config; None if the family's config does not know it, whatever config.json says."""
    return getattr(config, name) if hasattr(type(config), name) else None


def _number(modules: Iterable[nn.Module], names: Iterable[str], default: Any) -> Any:
    """The first attribute of the modules that has one of these names."""
    values = (getattr(module, name, None) for module in modules for name in names)
    return next((value for value in values if value is not None), default)
