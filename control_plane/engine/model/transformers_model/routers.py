"""Finds the routers of a model that prefetching can use: those that are a matrix behind a norm."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from control_plane.engine.experts.predictor import RouterWeights
from control_plane.engine.model.transformers_model.tensor_views import to_numpy


class RouterSearch:
    """Looks for routers during a forward pass."""

    def __init__(self, model: nn.Module, experts: Mapping[str, int]) -> None:
        """`experts` are the names of the experts' modules, and the numbers of their layers."""
        self.found: dict[int, RouterWeights] = {}
        """By layer."""
        self._model = model
        self._blocks: dict[nn.Module, tuple[int, nn.Parameter]] = {}
        """The modules that hold a router and experts, with the layer and the router's matrix."""
        for name, layer in experts.items():
            block = model.get_submodule(name.rpartition(".")[0])
            module: Any = model.get_submodule(name)
            matrices = list(_matrices(block, module, module.num_experts))
            if len(matrices) == 1:
                self._blocks[block] = layer, matrices[0]
        self._normalised: tuple[nn.Module, torch.Tensor] | None = None
        """The last norm, and its output."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Find routers in a forward pass until the context ends."""
        hooks = [module.register_forward_hook(self._remember) for module in self._norms()]
        hooks += [block.register_forward_pre_hook(self._meet) for block in self._blocks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._normalised = None

    def _norms(self) -> Iterable[nn.Module]:
        sizes = {matrix.shape[1] for _, matrix in self._blocks.values()}
        for module in self._model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.Tensor) and weight.ndim == 1 and len(weight) in sizes:
                yield module

    def _remember(self, module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            self._normalised = module, output

    def _meet(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._normalised is None or not inputs:
            return
        norm, output = self._normalised
        layer, matrix = self._blocks[block]
        if inputs[0] is output:
            # A norm may multiply by its weights or by something else of them: so ask it.
            ones = torch.ones(1, matrix.shape[1], dtype=output.dtype)
            factors = norm.forward(ones)[0]
            self.found[layer] = RouterWeights(_array(matrix), _array(factors))


def _matrices(block: nn.Module, experts: nn.Module, num_experts: int) -> Iterator[nn.Parameter]:
    """The parameters of a block, without those of its experts, that have a row for each expert."""
    of_experts = set(experts.modules())
    for module in block.modules():
        if module not in of_experts:
            for parameter in module.parameters(recurse=False):
                if parameter.ndim == 2 and len(parameter) == num_experts:
                    yield parameter


def _array(tensor: torch.Tensor) -> Any:
    values = tensor.detach()
    return to_numpy(values if values.dtype == torch.bfloat16 else values.float())
