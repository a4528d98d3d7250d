"""The tensors of a model's dense part, of which a description takes those that it has a place for."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from control_plane.errors import UnsupportedModel
from control_plane.partition.model.architecture import Architecture


class DenseTensors:
    """Modules and tensors by their names. Methods raise UnsupportedModel for what does not exist."""

    def __init__(self, model: PreTrainedModel, architecture: Architecture) -> None:
        self._model = model
        self._entries = architecture.dense
        self._ffns = architecture.gated_ffns
        self.left = set(architecture.dense)
        """What has not been taken."""
        self.biases: list[str] = []
        """Those of linear layers that were taken."""

    def module(self, name: str) -> Any:
        try:
            return self._model.get_submodule(name)
        except AttributeError as error:
            raise UnsupportedModel(f"a layer program needs {name}") from error

    def take(self, name: str, may_be_f32: bool = False) -> str:
        """Also refuses a tensor with which the family computes in float32, unless that is right."""
        if name not in self.left or (self._entries[name].keeps_f32 and not may_be_f32):
            raise UnsupportedModel(f"a layer program needs {name}, in the activations' dtype")
        self.left.remove(name)
        return name

    def take_linear(self, module: str) -> str:
        """The weight of a linear layer, and its bias if it has one. Returns the module's name."""
        if type(self.module(module)) is not nn.Linear:
            raise UnsupportedModel(f"{module} is no linear layer")
        self.take(f"{module}.weight")
        self.take_bias(module)
        return module

    def take_bias(self, module: str, may_be_f32: bool = False) -> None:
        """That of a linear layer, if it has one."""
        if f"{module}.bias" in self.left:
            self.biases.append(self.take(f"{module}.bias", may_be_f32))

    def take_only(self, prefix: str, shape: tuple[int, ...], may_be_f32: bool = False) -> str | None:
        """The only tensor of this shape whose name begins so; None if there is none, or several."""
        found = [name for name in self.left if name.startswith(prefix) and self._entries[name].shape == shape]
        return self.take(found[0], may_be_f32) if len(found) == 1 else None

    def take_ffn(self, layer: str) -> str | None:
        """The gated FFN of a layer, if it has one."""
        found = [name for name in self._ffns if name.startswith(f"{layer}.")]
        if len(found) > 1:
            raise UnsupportedModel(f"{layer} has several gated FFNs")
        for name in found:
            for part in ("gate_proj", "up_proj", "down_proj"):
                self.take(f"{name}.{part}.weight")
        return found[0] if found else None
