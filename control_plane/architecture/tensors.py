"""Finds which rows of a checkpoint's tensors a model's parameters are made of.

transformers has a mapping for each family: names that change, and operations that merge, cut or transpose
tensors. Its own operations run here on numbers of rows instead of weights, so the result says where each row
comes from.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.partition.model.architecture import RowRange

_MAX_ERROR = 200
_LANGUAGE_MODEL = re.compile(r"\blanguage_model\.")
"""What names have more in a model of several modalities, for some of which transformers has no mapping."""

Shapes = Mapping[str, tuple[int, ...]]
"""Of the checkpoint's tensors, by name."""


class Form(Enum):
    """What of a parameter's tensors is numbered."""

    ROWS = 0
    COLUMNS = 1
    VALUES = 2


@dataclass(frozen=True)
class Origin:
    """Where the rows of a parameter come from."""

    sources: tuple[str, ...]
    """Tensors of the checkpoint."""
    source: NDArray[np.int32]
    """[rows]: the number of the source of each row."""
    row: NDArray[np.int64]
    """[rows]: its number in the source, as `form` says."""
    form: Form
    """COLUMNS are counted over all matrices of a source."""

    def ranges(self) -> Iterator[RowRange]:
        """All rows in order, in as few ranges as possible."""
        start, count = 0, len(self.row)
        while start < count:
            stop, step = start + 1, 1
            if stop < count and self.source[stop] == self.source[start] and self.row[stop] > self.row[start]:
                step = int(self.row[stop] - self.row[start])
                # The first row that does not continue the range.
                wanted = self.row[start] + step * np.arange(count - start)
                differs = (self.row[start:] != wanted) | (self.source[start:] != self.source[start])
                stop = start + int(differs.argmax()) if differs.any() else count
            yield RowRange(self.sources[self.source[start]], int(self.row[start]), step, stop - start)
            start = stop


@dataclass(frozen=True)
class Origins:
    """Those of all parameters that the checkpoint has."""

    of: Mapping[str, Origin]
    """By parameter."""
    unused: Mapping[str, str]
    """Tensors of the checkpoint that no parameter is made of, with the names that they would have there."""


def find_origins(
    model: PreTrainedModel, shapes: Shapes, transposed: Iterable[str] = (), biases: Iterable[str] = ()
) -> Origins:
    """`transposed` are parameters that hold transposed matrices, `biases` those of several vectors.

    What has one dimension, or is such a bias, is taken as rows of one value each.

    Raises UnsupportedModel for an operation that makes values instead of moving them, PartitionError for
    tensors that an operation does not fit.
    """
    state = model.state_dict()
    groups, unused = _groups(model, state, shapes)
    origins: dict[str, Origin] = {}
    for group in groups:
        form = Form.COLUMNS if (group.target in transposed) != group.is_turned else Form.ROWS
        origins |= group.origins(model, shapes, Form.VALUES if group.target in biases else form)
    return Origins({name: origin for name, origin in origins.items() if name in state}, unused)


@dataclass
class _Group:
    """Tensors that one conversion makes parameters of, the first of which is `target`."""

    target: str
    converter: WeightConverter | None
    sources: dict[str, list[str]]
    """By the pattern of the converter that they match."""

    def origins(self, model: PreTrainedModel, shapes: Shapes, form: Form) -> dict[str, Origin]:
        names = [name for names in self.sources.values() for name in names]
        _check_numbers(self.sources)
        for alike in self.sources.values():
            common = Counter(shapes[name] for name in alike).most_common(1)[0][0]
            for name in alike:
                if shapes[name] != common:
                    raise PartitionError(f"{name} is {list(shapes[name])}, others of its kind {list(common)}")
        numbers = {name: _numbers(shapes[name], form) for name in names}
        starts = np.cumsum([0, *(each.numel() for each in numbers.values())])
        for name, start in zip(names, starts.tolist(), strict=False):
            numbers[name] += start
        if self.converter is None:
            made = {self.target: numbers[names[0]]}
        else:
            by_pattern = {
                pattern: [numbers[name] for name in found] for pattern, found in self.sources.items()
            }
            made = self._convert(self.converter, model, by_pattern)
        return {name: _origin(names, starts, tensor, form) for name, tensor in made.items()}

    @property
    def is_turned(self) -> bool:
        """Whether matrices become transposed."""
        return self.converter is not None and any(
            isinstance(each, Transpose) for each in self.converter.operations
        )

    def _convert(
        self, converter: WeightConverter, model: PreTrainedModel, numbers: dict[str, list[torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        converter = deepcopy(converter)
        # It takes tensors as well as futures of them.
        collected: dict[str, Any] = converter.collected_tensors
        collected.update(numbers)
        try:
            made: dict[str, Any] = converter.convert(self.target, model=model, config=model.config)
        except Exception as error:  # transformers' operations raise anything.
            problem = " ".join(str(error).split())[:_MAX_ERROR]
            raise PartitionError(f"the checkpoint's tensors do not make {self.target}: {problem}") from error
        tensors = {name: each[0] if isinstance(each, list) else each for name, each in made.items()}
        if any(tensor.dtype != torch.int64 for tensor in tensors.values()):
            raise UnsupportedModel(f"{self.target} is computed from tensors of the checkpoint")
        return tensors


def _groups(
    model: PreTrainedModel, state: dict[str, Any], shapes: Shapes
) -> tuple[list[_Group], dict[str, str]]:
    """What transformers does at loading, up to the conversions themselves."""
    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    prefix = model.base_model_prefix
    groups: dict[str, _Group] = {}
    unused = {}
    for name in sorted(shapes, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if target not in state and (own := _LANGUAGE_MODEL.sub("", name, count=1)) != name:
            target, pattern = rename_source_key(own, renamings, converters, prefix, state)
        if target not in state:
            unused[name] = target
            continue
        converter = by_pattern[pattern] if pattern is not None else None
        group = groups.setdefault(target, _Group(target, converter, defaultdict(list)))
        group.sources[pattern or ""].append(name)
        if pattern is None and len(group.sources[""]) > 1:
            raise PartitionError(f"{name} and {group.sources[''][0]} are both {target}")
    return list(groups.values()), unused


def _check_numbers(sources: Mapping[str, list[str]]) -> None:
    """Raise PartitionError unless lists of experts' tensors have all numbers, and the same ones."""
    lists = {pattern: names for pattern, names in sources.items() if "*" in pattern}
    numbers = {
        name: int(found[-1])
        for names in lists.values()
        for name in names
        if (found := re.findall(r"(?<=\.)\d+(?=\.)", name))
    }
    count = max(numbers.values(), default=-1) + 1
    for names in lists.values():
        known = {numbers[name]: name for name in names if name in numbers}
        for missing in sorted(set(range(count)) - known.keys()):
            number, name = next(iter(known.items()))
            before, _, after = name.rpartition(f".{number}.")
            raise PartitionError(f"the checkpoint lacks {before}.{missing}.{after}")


def _numbers(shape: tuple[int, ...], form: Form) -> torch.Tensor:
    """A tensor's rows, columns or values, numbered: the dimension that does not count has become 1."""
    kept = list(shape)
    if form is Form.ROWS and len(kept) > 1:
        kept[-1] = 1
    elif form is Form.COLUMNS and len(kept) > 1:
        kept[-2] = 1
    return torch.arange(math.prod(kept)).reshape(kept)


def _origin(names: list[str], starts: NDArray[np.int64], numbers: torch.Tensor, form: Form) -> Origin:
    found = numbers.reshape(-1).numpy()
    source = np.searchsorted(starts, found, side="right") - 1
    return Origin(tuple(names), source.astype(np.int32), found - starts[source], form)
