"""Tiny models of each architecture, written as llama.cpp's conversion does, are read back as they were."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from bench.support.gguf.conversion import MODEL_TYPES, converted
from control_plane.partition.checkpoint.gguf.model import ARCHITECTURES
from control_plane.partition.checkpoint.reader import Checkpoint
from tests.support.models.gguf_files import plain, write_gguf
from tests.support.models.gguf_models import tiny_model

pytestmark = pytest.mark.slow

_NOT_IN_FILES = frozenset({"dtype", "torch_dtype", "architectures", "transformers_version", "_name_or_path"})
"""Keys that say nothing of what a model computes."""
_UNUSED = {"qwen3_5_moe_text": {"intermediate_size"}, "nemotron_h": {"intermediate_size"}}
"""Keys that count for none of the layers of a model."""


@pytest.fixture(scope="module", params=MODEL_TYPES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture
def checkpoint(model: PreTrainedModel, tmp_path: Path) -> Checkpoint:
    architecture, metadata, tensors = converted(model)
    file = write_gguf(
        tmp_path / "tiny.gguf", architecture, metadata, {name: plain(each) for name, each in tensors.items()}
    )
    return Checkpoint.open(file)


def test_all_architectures_are_tested() -> None:
    assert {converted(tiny_model(model_type))[0] for model_type in MODEL_TYPES} == set(ARCHITECTURES)


def test_tensors_are_those_of_the_model(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    assert set(checkpoint.tensors) == set(state)
    for name, wanted in state.items():
        tensor = checkpoint.tensors[name]
        assert tensor.shape == wanted.shape, name
        found = tensor.read(0, tensor.size).reshape(tensor.shape)
        np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-7, err_msg=name)


def test_any_piece_of_a_tensor_can_be_read(checkpoint: Checkpoint) -> None:
    for tensor in checkpoint.tensors.values():
        whole = tensor.read(0, tensor.size)
        for start, stop in ((0, 1), (tensor.size // 3, tensor.size // 3 * 2), (tensor.size - 1, tensor.size)):
            assert np.array_equal(tensor.read(start, stop - start), whole[start:stop]), tensor.name


def test_the_config_is_that_of_the_model(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    config = dict(checkpoint.config)
    read = AutoConfig.for_model(config.pop("model_type"), **config).to_dict()
    wanted, unused = model.config.to_dict(), _UNUSED.get(model.config.model_type, set())
    different = {
        key: (read.get(key), wanted[key])
        for key in wanted
        if key not in _NOT_IN_FILES | unused and read.get(key) != wanted[key]
    }
    assert different == {}


def test_the_model_answers_alike(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    config = dict(checkpoint.config)
    factory: Any = AutoModelForCausalLM
    read = factory.from_config(AutoConfig.for_model(config.pop("model_type"), **config)).float().eval()
    state = {
        name: torch.from_numpy(np.array(tensor.read(0, tensor.size)).reshape(tensor.shape))
        for name, tensor in checkpoint.tensors.items()
    }
    missing, unexpected = read.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    read.tie_weights()
    tokens = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8]])
    with torch.no_grad():
        torch.testing.assert_close(read(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4)
