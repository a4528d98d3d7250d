"""What is described of a checkpoint makes the parameters of transformers' model again, for every family."""

from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    PreTrainedModel,
)
from transformers.core_model_loading import revert_weight_conversion

from control_plane.architecture.describe import describe
from control_plane.architecture.model import language_config
from control_plane.architecture.shrink import shrunk
from control_plane.architecture.trial import random_model
from control_plane.errors import UnsupportedModel
from control_plane.partition.model.architecture import Architecture, ExpertEntry, MatrixEntry
from tests.support.models.families import MOE_FAMILIES, family_config

WITHOUT_INTERFACE = {
    "doge": "has no experts that transformers' interface replaces",
    "jetmoe": "has no experts that transformers' interface replaces",
    "llama4_text": "has no experts that transformers' interface replaces",
    "longcat_flash": "has no experts that transformers' interface replaces",
    "inkling2_text": "no kernel computes the activation",
    "inkling2_loop_text": "no kernel computes the activation",
}
"""Families that are refused, and why."""
DESCRIBED = [name for name in MOE_FAMILIES if name not in WITHOUT_INTERFACE]

Tensors = dict[str, torch.Tensor]


def published(model: PreTrainedModel) -> Tensors:
    return {
        name: tensor.detach() for name, tensor in revert_weight_conversion(model, model.state_dict()).items()
    }


def described(model: PreTrainedModel, tensors: Tensors) -> Architecture:
    return describe(model.config, shapes_of(tensors))


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1] if tensor.ndim > 1 else 1)


def matrix(entry: MatrixEntry, rows: int, columns: int, tensors: Tensors) -> torch.Tensor:
    stop = (rows - 1) * entry.step + 1
    source = tensors[entry.tensor]
    if entry.column is None:
        return source.reshape(-1, columns)[entry.row : entry.row + stop : entry.step]
    block = rows_of(source)[entry.row : entry.row + columns]
    return block[:, entry.column : entry.column + stop : entry.step].T


def computed(found: Architecture, expert: ExpertEntry, x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """The outputs of an expert for rows x [T, H]."""
    hidden, width = found.hidden_size, found.intermediate_size

    def linear(
        part: MatrixEntry, bias: MatrixEntry | None, inputs: torch.Tensor, outputs: int
    ) -> torch.Tensor:
        product = inputs @ matrix(part, outputs, inputs.shape[1], tensors).T
        return product if bias is None else product + matrix(bias, outputs, 1, tensors).reshape(-1)

    up = linear(expert.up, expert.up_bias, x, width).numpy()
    gate = None if expert.gate is None else linear(expert.gate, expert.gate_bias, x, width).numpy()
    inner = torch.from_numpy(found.activation.activation(gate, up))
    return linear(expert.down, expert.down_bias, inner, hidden)


@pytest.mark.parametrize("family", DESCRIBED)
@torch.no_grad()
def test_a_published_checkpoint_makes_the_model(family: str) -> None:
    model: Any = random_model(shrunk(family_config(family)))
    tensors = published(model)
    found = described(model, tensors)
    assert found.unused == ()
    state = model.state_dict()
    for name, entry in found.dense.items():
        rows = [
            rows_of(tensors[part.tensor])[
                part.first : part.first + (part.count - 1) * part.step + 1 : part.step
            ]
            for part in entry.rows
        ]
        assert torch.equal(torch.cat(rows).reshape(entry.shape), state[name]), name
    model.set_experts_implementation("eager")
    x = torch.randn(3, found.hidden_size, generator=torch.Generator().manual_seed(0))
    for layer in found.layers:
        module = model.get_submodule(layer.module)
        for number in (0, found.num_experts - 1):
            wanted = module(x, torch.full((3, 1), number), torch.ones(3, 1))
            torch.testing.assert_close(computed(found, layer.experts[number], x, tensors), wanted)


@pytest.mark.parametrize("family", ["aria", "gemma4", "nemotron_h_omni", "qwen3_5_moe", "qwen4_exp"])
def test_the_language_model_of_several_modalities(family: str) -> None:
    """It is the same model as one whose checkpoint has nothing else."""
    config_class = CONFIG_MAPPING[family]
    whole = config_class()
    text = shrunk(family_config(whole.get_text_config(decoder=True).model_type))
    config = config_class.from_dict({**whole.to_dict(), "text_config": text.to_dict()})
    classes: Any = MODEL_FOR_MULTIMODAL_LM_MAPPING
    text_classes: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    with torch.device("meta"):
        model = classes[type(config)](config)
        alone = text_classes[type(text)](text)
    found = describe(language_config(config.to_dict()), shapes_of(published(model)))
    wanted = described(alone, published(alone))
    assert found.dense.keys() == wanted.dense.keys()
    assert [layer.module for layer in found.layers] == [layer.module for layer in wanted.layers]


@pytest.mark.parametrize(("family", "reason"), WITHOUT_INTERFACE.items())
def test_families_that_are_refused(family: str, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        describe(family_config(family), {})


def test_no_family_is_left_out() -> None:
    """A new version of transformers that has other families shows here."""
    assert set(MOE_FAMILIES) == {*DESCRIBED, *WITHOUT_INTERFACE}


def test_a_small_model_that_is_large_is_refused_before_it_takes_memory() -> None:
    """A size that shrinking leaves as it is: here 400 GB of a convolution's weights."""
    config = shrunk(family_config("qwen3_next"))
    config.linear_conv_kernel_dim = 10**9
    with pytest.raises(ValueError, match="too large"):
        random_model(config)
