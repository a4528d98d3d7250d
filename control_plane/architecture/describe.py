"""Describes a checkpoint's model from its config and the names and shapes of its tensors."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from control_plane.architecture.experts import ExpertModule, activation_of, expert_modules
from control_plane.architecture.gated_ffns import gated_ffns
from control_plane.architecture.model import empty_model
from control_plane.architecture.sizes import experts_per_token
from control_plane.architecture.tensors import Form, Origin, Origins, Shapes, find_origins
from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.partition.model.architecture import (
    ActivationEntry,
    Architecture,
    DenseEntry,
    ExpertEntry,
    ExpertLayer,
    MatrixEntry,
)

_IGNORED = (r"rotary_emb\.inv_freq", r"\.(k|v)_scale$")
"""Tensors that published checkpoints have and transformers does not need."""
_LAYER = re.compile(r"(\w+\.){1,2}\d+")
_MIN_LINEAR = 8
"""A layer with fewer inputs or outputs, such as the gate of a shared expert, is not worth packing."""


def describe(config: PretrainedConfig, shapes: Shapes) -> Architecture:
    """The model of this config, made of tensors of these shapes. Whether it can be served is not tried.

    Raises UnsupportedModel for a model that cannot be split, PartitionError for tensors that are missing or
    have other shapes.
    """
    model = empty_model(config)
    modules = expert_modules(model)
    first = modules[0]
    activation, alternate = activation_of(first.module)
    experts = _Experts(modules, alternate)
    origins = find_origins(model, shapes, experts.transposed, experts.biases)
    _check_unused(model, origins.unused)
    own = experts.parameters
    dense = {name: tensor for name, tensor in model.state_dict().items() if name not in own}
    entries = dict(_dense_entries(model, dense, origins, shapes))
    return Architecture(
        model_type=str(config.model_type),
        hidden_size=experts.hidden_size,
        intermediate_size=experts.intermediate_size,
        num_experts=experts.count,
        num_experts_per_tok=experts_per_token(config.to_dict(), experts.count),
        activation=ActivationEntry.of(activation),
        has_bias=bool(first.module.has_bias),
        layers=tuple(experts.layers(origins, shapes)),
        dense=entries,
        linears=tuple(_linears(model, entries, modules)),
        gated_ffns=tuple(gated_ffns(model, entries)),
        unused=tuple(origins.unused),
        way="ragged",
        chunks_prompts=True,
    )


class _Experts:
    """The experts' modules, which must all have the same shape."""

    def __init__(self, modules: list[ExpertModule], alternate: bool) -> None:
        self._modules = modules
        self._alternate = alternate
        module = modules[0].module
        self._is_transposed = bool(module.is_transposed)
        self.count, *matrix = module.down_proj.shape
        self.hidden_size, self.intermediate_size = reversed(matrix) if self._is_transposed else matrix
        shapes = {tuple(each.module.down_proj.shape) for each in modules}
        if len(shapes) > 1:
            raise UnsupportedModel(f"experts have several shapes: {sorted(shapes)}")

    @property
    def transposed(self) -> frozenset[str]:
        """Parameters that hold transposed matrices."""
        if not self._is_transposed:
            return frozenset()
        return frozenset(
            f"{each.name}.{part}" for each in self._modules for part in (each.gate_up, "down_proj")
        )

    @property
    def biases(self) -> frozenset[str]:
        return frozenset(
            f"{each.name}.{part}_bias"
            for each in self._modules
            if each.module.has_bias
            for part in (each.gate_up, "down_proj")
        )

    @property
    def parameters(self) -> frozenset[str]:
        """All of the modules' parameters."""
        return frozenset(
            f"{each.name}.{name}" for each in self._modules for name, _ in each.module.named_parameters()
        )

    def layers(self, origins: Origins, shapes: Shapes) -> Iterator[ExpertLayer]:
        for each in self._modules:
            gate_up = self._parameter(f"{each.name}.{each.gate_up}", each.module, origins, shapes)
            down = self._parameter(f"{each.name}.down_proj", each.module, origins, shapes)
            biases = None
            if each.module.has_bias:
                biases = tuple(
                    self._parameter(f"{each.name}.{part}_bias", each.module, origins, shapes)
                    for part in (each.gate_up, "down_proj")
                )
            yield ExpertLayer(
                each.layer,
                each.name,
                tuple(
                    self._expert(expert, gate_up, down, biases, each.module.has_gate, shapes)
                    for expert in range(self.count)
                ),
            )

    def _parameter(self, name: str, module: Any, origins: Origins, shapes: Shapes) -> Origin:
        """Raises PartitionError if the checkpoint has nothing or another number of rows for it."""
        if name not in origins.of:
            raise PartitionError(f"the checkpoint lacks {name}")
        origin, wanted = origins.of[name], tuple(module.get_parameter(name.rpartition(".")[2]).shape)
        dropped = {Form.ROWS: wanted[-1], Form.COLUMNS: wanted[-2], Form.VALUES: 1}[origin.form]
        if len(origin.row) * dropped != math.prod(wanted):
            source = origin.sources[0]
            raise PartitionError(
                f"{name} is {list(wanted)} by config.json, the checkpoint's {source} {list(shapes[source])}"
            )
        return origin

    def _expert(
        self,
        expert: int,
        gate_up: Origin,
        down: Origin,
        biases: tuple[Origin, ...] | None,
        has_gate: bool,
        shapes: Shapes,
    ) -> ExpertEntry:
        width = self.intermediate_size
        inward = {"up": slice(0, width)}
        if has_gate and self._alternate:
            inward = {"gate": slice(0, 2 * width, 2), "up": slice(1, 2 * width, 2)}
        elif has_gate:
            inward = {"gate": slice(0, width), "up": slice(width, 2 * width)}
        rows = len(inward) * width
        found = {
            name: _matrix(gate_up, expert * rows, rows, part, shapes, self.hidden_size)
            for name, part in inward.items()
        }
        hidden = slice(0, self.hidden_size)
        found["down"] = _matrix(down, expert * self.hidden_size, self.hidden_size, hidden, shapes, width)
        if biases is not None:
            first, second = biases
            for name, part in inward.items():
                found[f"{name}_bias"] = _matrix(first, expert * rows, rows, part, shapes, 1)
            found["down_bias"] = _matrix(
                second, expert * self.hidden_size, self.hidden_size, hidden, shapes, 1
            )
        return ExpertEntry(**found)


def _matrix(origin: Origin, start: int, count: int, part: slice, shapes: Shapes, columns: int) -> MatrixEntry:
    """A matrix of which a parameter has a part of the `count` rows from `start` on."""
    rows, sources = origin.row[start : start + count][part], origin.source[start : start + count][part]
    wanted = range(*part.indices(count))
    if len(rows) != len(wanted):
        raise PartitionError(f"{origin.sources[0]} has fewer rows than the experts need")
    step = int(rows[1] - rows[0]) if len(rows) > 1 else 1
    if (sources != sources[0]).any() or step < 1 or (np.diff(rows) != step).any():
        raise UnsupportedModel(f"the rows of an expert are scattered in {origin.sources[sources[0]]}")
    name, first = origin.sources[sources[0]], int(rows[0])
    stored = {Form.ROWS: shapes[name][-1], Form.COLUMNS: shapes[name][-2:][0], Form.VALUES: 1}[origin.form]
    if stored != columns:
        raise PartitionError(f"{name} is {list(shapes[name])}, config.json says {columns} columns")
    if origin.form is not Form.COLUMNS:
        return MatrixEntry(name, first, step)
    width = shapes[name][-1]
    return MatrixEntry(name, first // width * columns, step, first % width)


def _dense_entries(
    model: PreTrainedModel, tensors: Mapping[str, torch.Tensor], origins: Origins, shapes: Shapes
) -> Iterator[tuple[str, DenseEntry]]:
    """Raises PartitionError for a tensor that is missing or has another shape."""
    tied = _tied(model)
    kept = _keeps_f32(model)
    for name, tensor in tensors.items():
        origin = origins.of.get(tied.get(name, name)) or origins.of.get(name)
        if origin is None:
            raise PartitionError(f"the checkpoint lacks {name}")
        if origin.form is Form.COLUMNS:
            raise UnsupportedModel(f"{name} is transposed in the checkpoint")
        ranges, shape = tuple(origin.ranges()), tuple(tensor.shape)
        columns = shape[-1] if len(shape) > 1 else 1
        rows = sum(each.count for each in ranges)
        found = {shapes[each.tensor][-1] if len(shapes[each.tensor]) > 1 else 1 for each in ranges}
        if rows * columns != tensor.numel() or found - {columns}:
            sources = ", ".join(f"{each} {list(shapes[each])}" for each in dict.fromkeys(origin.sources))
            raise PartitionError(
                f"{name} has the shape {list(shape)} by config.json, the checkpoint has {sources[:200]}"
            )
        is_f32 = tensor.dtype == torch.float32 or bool(kept and kept.search(name))
        yield name, DenseEntry(shape, ranges, is_f32)


def _check_unused(model: PreTrainedModel, unused: Mapping[str, str]) -> None:
    """Raise PartitionError for a tensor of a layer that the model has no place for.

    Others belong to what is not served: layers that predict several tokens, or encoders of images. `unused`
    maps names in the checkpoint to the nearest in the model.
    """
    layers = tuple(f"{name}." for name, _ in model.named_modules() if _LAYER.fullmatch(name))
    ignored = [*_IGNORED, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]
    for name, target in unused.items():
        if target.startswith(layers) and not any(re.search(pattern, target) for pattern in ignored):
            raise PartitionError(f"by its config.json, a {model.config.model_type} model has no {name}")


def _tied(model: PreTrainedModel) -> Mapping[str, str]:
    """The parameters that share another's weights, with that other's names."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return {}
    keys = getattr(model, "_tied_weights_keys", None) or {}
    return dict(keys) if isinstance(keys, dict) else {}


def _keeps_f32(model: PreTrainedModel) -> re.Pattern[str] | None:
    """Matches what the family computes in float32, whatever the model's dtype."""
    names = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    if not names:
        return None
    # transformers looks for these names within longer ones; `*` stands for a layer's number.
    return re.compile("|".join(re.escape(name).replace(r"\*", ".*") for name in sorted(names)))


def _linears(
    model: nn.Module, entries: Mapping[str, DenseEntry], modules: list[ExpertModule]
) -> Iterator[str]:
    """Linear layers that every token reads in full. Routers are no such layers, and are not quantised."""
    blocks = tuple(each.name.rpartition(".")[0] + "." for each in modules)
    for name, module in model.named_modules():
        entry = entries.get(f"{name}.weight")
        if type(module) is not nn.Linear or entry is None or entry.keeps_f32:
            continue
        is_router = name.startswith(blocks) and module.out_features == modules[0].module.num_experts
        if min(module.in_features, module.out_features) >= _MIN_LINEAR and not is_router:
            yield name
