"""The description of a model's layer programs says what its config says."""

from pathlib import Path
from typing import Any

import pytest

from control_plane.architecture.choice import architecture_of
from control_plane.architecture.shrink import shrunk
from control_plane.architecture.trial import published, random_model
from control_plane.partition.model.architecture import Architecture
from control_plane.partition.model.program import Program
from tests.support.models.checkpoints import tiny_model
from tests.support.models.families import family_config


def described(family: str, **overrides: Any) -> Program:
    model = tiny_model(family, **overrides)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = architecture_of(model.config.to_dict(), shapes)
    assert found.way == "program"
    assert found.program is not None
    return found.program


def test_sizes_and_names() -> None:
    program = described("qwen3_moe", num_attention_heads=4, num_key_value_heads=2, head_dim=6)
    assert (program.kv_heads, program.head_dim, program.epsilon) == (2, 6, 1e-6)
    assert program.scaling == 6**-0.5
    assert program.context_length == 128
    layer = program.layers[1]
    assert layer.heads == 4
    assert layer.query_norm == "model.layers.1.self_attn.q_norm.weight"
    assert layer.router is not None
    assert layer.router.module == "model.layers.1.mlp.gate"
    assert layer.ffn is None


def test_yarn_lengthens_the_context() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 7.0, "original_max_position_embeddings": 64}
    assert described("mixtral", head_dim=12, rope_parameters=rope).context_length == 256


@pytest.mark.parametrize(
    ("family", "overrides", "windows"),
    [
        ("mixtral", {"sliding_window": 7}, [7, 7, 7]),
        ("qwen3_moe", {"sliding_window": 7}, [None, None, None]),
        ("qwen3_moe", {"sliding_window": 7, "use_sliding_window": True}, [7, 7, 7]),
        ("qwen2_moe", {"sliding_window": 7, "use_sliding_window": True}, [7, None, 7]),
        ("qwen2_moe", {"sliding_window": 7}, [None, None, None]),
    ],
    ids=str,
)
def test_windows(family: str, overrides: dict[str, Any], windows: list[int | None]) -> None:
    assert [layer.window for layer in described(family, **overrides).layers] == windows


def test_layers_without_experts_have_no_router() -> None:
    program = described("qwen2_moe", mlp_only_layers=[1])
    assert [layer.router is None for layer in program.layers] == [False, True, False]
    assert program.layers[1].ffn == "model.layers.1.mlp"
    assert program.layers[1].ffn_gate is None
    assert program.layers[0].ffn == "model.layers.0.mlp.shared_expert"
    assert program.layers[0].ffn_gate == "model.layers.0.mlp.shared_expert_gate.weight"


def test_what_weights_add_up_to() -> None:
    routers = [
        described(family, **overrides).layers[0].router
        for family, overrides in (("mixtral", {}), ("olmoe", {}), ("olmoe", {"norm_topk_prob": True}))
    ]
    assert [router and router.normalised for router in routers] == [True, False, True]


def architecture_of_family(folder: Path, family: str, **changes: Any) -> Architecture:
    """That of a small model of the family, whose config has other values."""
    config = shrunk(family_config(family))
    small = type(config).from_dict({**config.to_dict(), **changes})
    checkpoint = published(random_model(small), folder / "model")
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    return architecture_of(checkpoint.config, shapes)


def test_a_routers_numbers_are_the_models_own(tmp_path: Path) -> None:
    """The model of the trial has two groups, whatever the config says."""
    changes = {"n_group": 4, "topk_group": 3, "routed_scaling_factor": 2.5}
    program = architecture_of_family(tmp_path, "glm4_moe", **changes).program
    assert program is not None
    assert program.layers[0].router is None
    router = program.layers[1].router
    assert router is not None
    assert (router.groups, router.chosen_groups, router.scale, router.scores) == (4, 3, 2.5, "sigmoid")
    assert router.correction == "model.layers.1.mlp.gate.e_score_correction_bias"
    assert len(program.rotations[0].frequencies) * 4 == program.head_dim


def test_layers_without_positions(tmp_path: Path) -> None:
    program = architecture_of_family(tmp_path, "exaone_moe").program
    assert program is not None
    assert {layer.rotation is None for layer in program.layers if layer.window} == {False}
    assert {layer.rotation is None for layer in program.layers if not layer.window} == {True}


def test_a_number_that_programs_do_not_know_is_left_to_transformers(tmp_path: Path) -> None:
    """Logits of a small model are so far below the cap that a trial would not notice it."""
    found = architecture_of_family(tmp_path, "laguna", moe_router_logit_softcapping=1e4)
    assert (found.way, found.program) == ("ragged", None)


def test_a_tensor_that_programs_do_not_know_is_left_to_transformers(tmp_path: Path) -> None:
    found = architecture_of_family(tmp_path, "granitemoeshared", shared_intermediate_size=24)
    assert (found.way, found.program) == ("ragged", None)
