"""Answers are checked against the unsplit model: its own answers pass, others do not."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.comparison.greedy import MAX_SHORTFALL, GreedyAnswer, shortfall
from control_plane.errors import FaaSMoEError
from tests.support.models.checkpoints import save_checkpoint, tiny_model

pytestmark = pytest.mark.slow

PROMPTS = [[5, 9, 3, 7], [11, 2, 40]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("greedy") / "model"
    save_checkpoint(tiny_model("qwen2_moe", initializer_range=0.5), folder)
    return folder


@pytest.fixture(scope="module")
def tokens() -> Sequence[list[int]]:
    """Answers of the model itself."""
    unsplit: Any = tiny_model("qwen2_moe", initializer_range=0.5)
    return [
        unsplit.generate(torch.tensor([prompt]), max_new_tokens=6, min_new_tokens=6, do_sample=False)[
            0, len(prompt) :
        ].tolist()
        for prompt in PROMPTS
    ]


def check(model: Path, answers: Sequence[GreedyAnswer]) -> float:
    return asyncio.run(shortfall(model, answers, threads=1))


def test_the_models_own_answers_have_no_shortfall(model: Path, tokens: Sequence[list[int]]) -> None:
    answers = [GreedyAnswer(prompt, generated) for prompt, generated in zip(PROMPTS, tokens, strict=True)]
    assert check(model, answers) < 1e-3


def test_one_wrong_token_is_found(model: Path, tokens: Sequence[list[int]]) -> None:
    wrong = [*tokens[1][:3], (tokens[1][3] + 1) % 64, *tokens[1][4:]]
    assert (
        check(model, [GreedyAnswer(PROMPTS[0], tokens[0]), GreedyAnswer(PROMPTS[1], wrong)]) > MAX_SHORTFALL
    )


def test_a_model_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FaaSMoEError, match="could not check"):
        check(tmp_path, [GreedyAnswer([1], [2])])
