"""A bad config.json is refused with an error that names the fault, and so is a model that cannot be split."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from control_plane.errors import UnsupportedModel
from tests.support.models.checkpoints import edit_config, refusal, save_checkpoint, tiny_model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tiny_model("qwen2_moe"), tmp_path_factory.mktemp("original") / "single")


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "in" / "single"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"a":' * 100_000, "is not JSON"),
        ('{"hidden_size": 24, "hidden_size": 25}', "is not JSON: an object has the same name twice"),
        ('{"a": ' + "1" * 5000 + "}", "is not JSON"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "is larger than 1 MiB"),
    ],
    ids=["cut", "list", "deep", "same name", "many digits", "large"],
)
def test_bad_config_json(checkpoint: Path, text: str, problem: str) -> None:
    (checkpoint / "config.json").write_text(text)
    assert f"config.json {problem}" in refusal(checkpoint)


def test_no_config_json(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert "config.json: No such file" in refusal(checkpoint)


@pytest.mark.parametrize("model_type", ["who_knows", None, 7])
def test_families_that_transformers_does_not_know(checkpoint: Path, model_type: Any) -> None:
    edit_config(checkpoint, model_type=model_type)
    message = refusal(checkpoint, UnsupportedModel)
    assert message == f"{checkpoint}: model type {model_type!r} is not known to transformers"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model_type": "llama"}, "LlamaForCausalLM has no experts that transformers' interface replaces"),
        ({"model_type": "vit"}, "transformers has no language model of type 'vit'"),
        ({"hidden_act": "tanh"}, "no kernel computes the activation of Qwen2MoeExperts"),
        ({"quantization_config": {"quant_method": "hqq"}}, "of quant_method 'hqq' are not supported"),
        ({"mlp_only_layers": [0, 1, 2]}, "has no experts"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rotary embeddings of type 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rotary embeddings of type 'longrope'"),
        ({"rope_parameters": {"rope_type": [1] * 1000}}, "rotary embeddings of type [1, 1, 1,"),
    ],
)
def test_variants_that_cannot_be_split(checkpoint: Path, change: dict[str, Any], problem: str) -> None:
    edit_config(checkpoint, **change)
    assert problem in refusal(checkpoint, UnsupportedModel)


@pytest.mark.parametrize(
    "key", ["hidden_size", "moe_intermediate_size", "num_experts_per_tok", "num_hidden_layers"]
)
@pytest.mark.parametrize(
    "value", ["24", 0, True, 2.0, 10**12, float("nan"), "x" * 10**5, [[[[[[[[1]]]]]]]] * 1000]
)
def test_sizes_in_config_json(checkpoint: Path, key: str, value: Any) -> None:
    edit_config(checkpoint, **{key: value})
    message = refusal(checkpoint)
    assert f"config.json: {key} is" in message
    assert len(message) < 400


@pytest.mark.parametrize("value", [5, "0", [[0]], [{}], [0.5], [True]])
def test_layers_without_experts_that_are_no_numbers(checkpoint: Path, value: Any) -> None:
    edit_config(checkpoint, mlp_only_layers=value)
    message = refusal(checkpoint)
    assert "config.json makes no model" in message or "a qwen2_moe model has no" in message


@pytest.mark.parametrize("value", ["x" * 10**5, [1] * 10**5, {"a": {"b": [1]}}])
def test_errors_quote_only_the_start_of_a_value(checkpoint: Path, value: Any) -> None:
    for key in ("model_type", "hidden_act"):
        before = (checkpoint / "config.json").read_text()
        edit_config(checkpoint, **{key: value})
        assert len(refusal(checkpoint)) < 400
        (checkpoint / "config.json").write_text(before)


@pytest.mark.parametrize(
    ("rope", "problem"),
    [
        (5, "rope_parameters is 5, not an object"),
        ({"rope_type": "yarn"}, "rope_parameters.factor is None, not a number above 0"),
        ({"rope_type": "linear", "factor": None}, "rope_parameters.factor is None"),
        ({"rope_type": "linear", "factor": True}, "rope_parameters.factor is True"),
        ({"rope_type": "linear", "factor": -1.0}, "rope_parameters.factor is -1.0"),
        ({"rope_type": "linear", "factor": float("inf")}, "rope_parameters.factor is inf"),
        ({"rope_type": "linear", "factor": "2" * 10**5}, "rope_parameters.factor is '22"),
        ({"rope_type": "llama3", "factor": 2.0}, "rope_parameters.low_freq_factor is None"),
        (
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0},
            "rope_parameters.original_max_position_embeddings is 0, not a number of tokens",
        ),
    ],
    ids=range(9),
)
def test_rotary_embeddings_that_make_no_sense(checkpoint: Path, rope: Any, problem: str) -> None:
    edit_config(checkpoint, rope_parameters=rope)
    message = refusal(checkpoint)
    assert f"config.json: {problem}" in message
    assert len(message) < 400
