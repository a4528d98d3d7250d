"""Every family, split at several granularities, gives the answers of transformers' unsplit model."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from control_plane.engine.loader import load_model
from control_plane.engine.model.program_model import ProgramModel
from control_plane.partition.granularity import Granularity
from control_plane.partition.partitioner import partition
from tests.support.models.checkpoints import FAMILIES, save_checkpoint, tiny_model
from tests.support.models.tiny_engine import greedy_answers, tokens_of
from tests.support.running import sequence, served

pytestmark = pytest.mark.slow

MAX_TOKENS = 24
PROMPT_LENGTHS = (1, 7, 30)

# Weights ten times larger than a fresh model's: experts and routing then decide the logits.
LARGE_WEIGHTS: dict[str, Any] = {"initializer_range": 0.2}

SCALED_ROPES: list[dict[str, Any]] = [
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0, "attention_factor": 1.5},
    {"rope_type": "linear", "factor": 2.5},
]

CASES: list[tuple[str, dict[str, Any], Granularity]] = [
    *((family, {}, Granularity(1, 1)) for family in FAMILIES),
    *((family, {}, Granularity(5, 3)) for family in FAMILIES),
    *((family, {}, Granularity(2, 2)) for family in FAMILIES),
    ("qwen2_moe", {"mlp_only_layers": [1]}, Granularity(5, 2)),
    ("qwen3_moe", {"num_key_value_heads": 1}, Granularity(5, 3)),
    ("mixtral", {"sliding_window": 8, "num_key_value_heads": 1}, Granularity(5, 3)),
    ("olmoe", {"tie_word_embeddings": True}, Granularity(5, 3)),
    # The longest prompt and its answer reach beyond the first 32 positions.
    *(
        (family, {"max_position_embeddings": 32, "rope_parameters": rope, "head_dim": 12}, Granularity(5, 3))
        for family, rope in zip(FAMILIES, SCALED_ROPES, strict=True)
    ),
]


def prompts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 64, (1, length), generator=generator) for length in PROMPT_LENGTHS]


@pytest.mark.parametrize(("family", "overrides", "granularity"), CASES, ids=str)
def test_greedy_tokens_and_logits_equal_the_unsplit_models(
    family: str, overrides: dict[str, Any], granularity: Granularity, tmp_path: Path
) -> None:
    model = tiny_model(family, **LARGE_WEIGHTS, **overrides)
    save_checkpoint(model, tmp_path / "model")
    partition(tmp_path / "model", tmp_path / "partition", granularity=granularity)

    async def answers() -> tuple[list[torch.Tensor], list[list[int]]]:
        async with served(tmp_path / "partition") as serving:
            logits = [await asyncio.to_thread(serving.prompt_logits, prompt) for prompt in prompts()]
            streams = [serving.engine.submit([sequence(prompt, MAX_TOKENS)]) for prompt in prompts()]
            return logits, [await tokens_of(stream) for stream in streams]

    logits, tokens = asyncio.run(answers())

    assert tokens == [greedy_answers(model, prompt, MAX_TOKENS)[0] for prompt in prompts()]
    for ours, prompt in zip(logits, prompts(), strict=True):
        torch.testing.assert_close(ours, model(prompt).logits[0, -1], atol=1e-4, rtol=0)


def test_scaled_rotary_embeddings_without_a_head_size(tmp_path: Path) -> None:
    """Mixtral's config.json may leave it out, which transformers' own model cannot do with YaRN."""
    rope = {"rope_type": "yarn", "factor": 2.0}
    folder = save_checkpoint(tiny_model("mixtral", head_dim=12, rope_parameters=rope), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "head_dim": None}))
    manifest = partition(folder, tmp_path / "partition")
    model = load_model(tmp_path / "partition", manifest, threads=1)
    assert isinstance(model, ProgramModel)
    assert manifest.program is not None
    assert manifest.program.head_dim == 12


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 0.02), ("int8", 0.01), ("int4", 0.1)])
def test_lower_precision_stays_near_the_f32_model(
    family: str, dtype: str, bound: float, tmp_path: Path
) -> None:
    """The root mean square error of the logits, as a share of their own spread, stays under the bound."""
    model = tiny_model(family, hidden_size=64, num_experts_per_tok=4, initializer_range=0.1)
    save_checkpoint(model, tmp_path / "model")
    partition(tmp_path / "model", tmp_path / "partition", granularity=Granularity(3, 3), dtype=dtype)

    async def logits() -> list[torch.Tensor]:
        async with served(tmp_path / "partition") as serving:
            return [await asyncio.to_thread(serving.prompt_logits, prompt) for prompt in prompts()]

    for ours, prompt in zip(asyncio.run(logits()), prompts(), strict=True):
        reference = model(prompt).logits[0, -1]
        error = (ours.float() - reference).square().mean().sqrt() / reference.std()
        assert error < bound
