"""Describes a model as layer programs, by the tensors that its modules have and by their numbers.

What a family is called does not count. Where its modules do not say what they compute, there are several
`Kind`s of programs, of which a trial finds the right one, if any is. A model with a tensor that no program
has a place for has no programs.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, get_args

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
_NORMS: Mapping[frozenset[str], tuple[str, str]] = {
    frozenset({"input_layernorm", "post_attention_layernorm"}): (
        "input_layernorm",
        "post_attention_layernorm",
    ),
}
"""Those before attention and before the FFN, by the names of all norms of a layer."""
_QUERY_NORMS, _KEY_NORMS = ("q_norm",), ("k_norm",)
_NORMALISED = ("norm_topk_prob",)


class Kind(NamedTuple):
    """What a model's modules do not say."""

    scores: Scores


KINDS = tuple(Kind(scores) for scores in get_args(Scores))
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
        norms = frozenset(each for each, module in self._module(name).named_children() if _is_norm(module))
        if norms not in _NORMS:
            raise UnsupportedModel(f"a layer program has no norms {sorted(norms)}")
        input_norm, ffn_norm = (self._take_norm(f"{name}.{norm}") for norm in _NORMS[norms])
        block = self._experts[number].rpartition(".")[0] if number in self._experts else f"{name}.mlp"
        router = self._router(block) if number in self._experts else None
        ffn = self._ffn(name)
        return LayerEntry(
            attention=attention,
            heads=self._module(f"{attention}.q_proj").out_features // self._module(attention).head_dim,
            window=self._window(number),
            rotation=self._rotations.number(self._module(attention)),
            input_norm=input_norm,
            ffn_norm=ffn_norm,
            query_norm=self._optional_norm(attention, _QUERY_NORMS),
            key_norm=self._optional_norm(attention, _KEY_NORMS),
            router=router,
            ffn=ffn,
            ffn_gate=self._take_only(f"{block}.", (1, self._hidden_size)) if ffn and router else None,
        )

    def _router(self, block: str) -> RouterEntry:
        weight = self._take_only(f"{block}.", (self._num_experts, self._hidden_size))
        if weight is None:
            raise UnsupportedModel(f"{block} has no router that is one matrix")
        module = weight.rpartition(".")[0]
        owners = [self._module(name) for name in (block, module)]
        return RouterEntry(
            module=module,
            scores=self._kind.scores,
            normalised=_number(owners, _NORMALISED, True),
        )

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

    def _optional_norm(self, module: str, names: Iterable[str]) -> str | None:
        found = [f"{module}.{name}" for name in names if f"{module}.{name}.weight" in self._left]
        return self._take_norm(found[0]) if found else None

    def _ffn(self, layer: str) -> str | None:
        """The gated FFN of a layer that all rows go through."""
        found = [name for name in self._ffns if name.startswith(f"{layer}.")]
        if len(found) > 1:
            raise UnsupportedModel(f"{layer} has several gated FFNs")
        for name in found:
            for part in ("gate_proj", "up_proj", "down_proj"):
                self._take(f"{name}.{part}.weight")
        return found[0] if found else None

    def _take_only(self, prefix: str, shape: tuple[int, ...]) -> str | None:
        """The only tensor of this shape whose name begins so, if there is one."""
        found = [
            name for name in self._left if name.startswith(prefix) and self._entries[name].shape == shape
        ]
        if len(found) != 1:
            return None
        self._take(found[0])
        return found[0]

    def _take(self, name: str) -> None:
        """Raises UnsupportedModel if the model has no such tensor, or computes with it in float32."""
        if name not in self._left or self._entries[name].keeps_f32:
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
        self._module: Any = getattr(model.base_model, "rotary_emb", None)
        self._config = model.config

    def number(self, attention: Any) -> int:
        """That of the embedding of a layer, among `entries`."""
        if self._module is None:
            raise UnsupportedModel("a layer program needs a rotary embedding")
        if not self.entries:
            self.entries.append(self._entry(attention))
        return 0

    def _entry(self, attention: Any) -> RotationEntry:
        with torch.device("cpu"):
            module = type(self._module)(config=self._config)
        entry = RotationEntry(tuple(module.inv_freq.tolist()), float(module.attention_scaling))
        size = 2 * len(entry.frequencies)
        if size != attention.head_dim or not _rotates_halves(attention, size):
            raise UnsupportedModel("a layer program has no such rotary embedding")
        return entry


def _rotates_halves(attention: nn.Module, size: int) -> bool:
    """Whether the function that rotates the heads of an attention's queries and keys, takes value i of a head
    and value i + size / 2 as a vector."""
    rotate = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if rotate is None:
        return False
    random = torch.Generator().manual_seed(0)
    heads = torch.randn(1, 1, 1, size, generator=random)
    angles = torch.randn(1, 1, size // 2, generator=random).tile(2)
    first, second = heads.chunk(2, dim=-1)
    expected = heads * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()
    try:
        found, _ = rotate(heads, heads, angles.cos(), angles.sin())
    except Exception:  # A function of another signature.
        return False
    return torch.allclose(found, expected)


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
