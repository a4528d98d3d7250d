"""The estimates of the dense part's importance are near what transformers' modules get as inputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.quantisation.dense_importance import DenseImportance
from functions.kernels.bfloat16 import Float32
from tests.support.models.checkpoints import save_checkpoint, tiny_model

LAYERS = 3
NORMS = ("input_layernorm", "post_attention_layernorm")


@pytest.fixture(scope="module")
def model() -> Any:
    """A model whose hidden states have channels of different sizes, which its layers change little."""
    made: Any = tiny_model("qwen2_moe", initializer_range=0.05)
    sizes = torch.exp(torch.randn(24, generator=torch.Generator().manual_seed(0)))
    norms = [getattr(each, name) for each in made.model.layers for name in NORMS]
    with torch.no_grad():
        made.model.embed_tokens.weight.normal_(generator=torch.Generator().manual_seed(1)).mul_(sizes)
        for seed, norm in enumerate([*norms, made.model.norm]):
            norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(seed))
    return made


@pytest.fixture(scope="module")
def measured(model: Any) -> dict[str, Float32]:
    """The mean squares of the inputs of modules, by name."""
    squares = {}

    def record(name: str) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            squares[name] = inputs[0].reshape(-1, inputs[0].shape[-1]).square().mean(dim=0).numpy()

        return hook

    for name, module in model.named_modules():
        if name == "lm_head" or name.endswith(("proj", "experts")):
            module.register_forward_pre_hook(record(name))
    with torch.inference_mode():
        model(torch.randint(64, (1, 100), generator=torch.Generator().manual_seed(0)))
    return squares


@pytest.fixture(scope="module")
def importance(
    model: Any, measured: dict[str, Float32], tmp_path_factory: pytest.TempPathFactory
) -> DenseImportance:
    folder: Path = save_checkpoint(model, tmp_path_factory.mktemp("importance") / "model")
    checkpoint = Checkpoint.open(folder)
    tensors = checkpoint.tensors
    layers = range(LAYERS)
    return DenseImportance(tensors, {each: measured[f"model.layers.{each}.mlp.experts"] for each in layers})


@pytest.mark.parametrize(
    "module", ["model.layers.1.self_attn.q_proj", "model.layers.2.self_attn.v_proj", "lm_head"]
)
def test_linear_layers_after_norms(
    importance: DenseImportance, measured: dict[str, Float32], module: str
) -> None:
    estimate = importance.of_linear(module)
    assert estimate is not None
    assert np.corrcoef(np.log(estimate), np.log(measured[module]))[0, 1] > 0.98


def test_shared_experts(importance: DenseImportance, measured: dict[str, Float32]) -> None:
    module = "model.layers.1.mlp.shared_expert"
    estimate = importance.of_gated(module)
    assert estimate is not None
    np.testing.assert_allclose(estimate.gate_up, measured[f"{module}.up_proj"], rtol=1e-5)
    down = measured[f"{module}.down_proj"]
    assert np.corrcoef(np.log(estimate.down), np.log(down))[0, 1] > 0.8


def test_nothing_is_known_of_others(importance: DenseImportance) -> None:
    assert importance.of_linear("model.layers.1.self_attn.o_proj") is None
    assert importance.of_linear("model.layers.9.self_attn.q_proj") is None
    assert importance.of_gated("model.layers.9.mlp") is None
