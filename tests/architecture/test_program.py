"""The description of a model's layer programs says what its config says."""

from typing import Any

import pytest

from control_plane.architecture.choice import architecture_of
from control_plane.partition.model.program import Program
from tests.support.models.checkpoints import tiny_model


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
