"""An engine with real functions gives the unsplit model's answers in transformers' modules, in both ways."""

import asyncio
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from control_plane.engine.model.transformers_model.lockstep.model import LockstepModel
from control_plane.engine.model.transformers_model.ragged.model import RaggedModel
from control_plane.engine.state.sequence import SamplingParams, Sequence
from control_plane.partition.granularity import Granularity
from control_plane.partition.model.architecture import Way
from control_plane.partition.partitioner import partition
from tests.support.models.checkpoints import save_checkpoint, tiny_model
from tests.support.models.tiny_engine import all_tokens_of, greedy_answers
from tests.support.running import served

pytestmark = pytest.mark.slow

WAYS: dict[Way, type] = {"ragged": RaggedModel, "lockstep": LockstepModel}


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_the_unsplit_model_s(way: Way, tmp_path: Path) -> None:
    model = tiny_model("qwen2_moe", initializer_range=0.2)
    save_checkpoint(model, tmp_path / "model")
    manifest = partition(tmp_path / "model", tmp_path / "partition", granularity=Granularity(2, 2))
    replace(manifest, way=way).save(tmp_path / "partition")
    prompts = [torch.arange(3, 3 + length)[None] for length in (1, 30, 9)]

    async def answers() -> list[list[list[int]]]:
        async with served(tmp_path / "partition", max_batch_tokens=16, max_sequences=4) as serving:
            assert isinstance(serving.runner.model, WAYS[way])
            streams = [serving.engine.submit(choices(prompt[0].tolist())) for prompt in prompts]
            return [await all_tokens_of(stream) for stream in streams]

    for found, prompt in zip(asyncio.run(answers()), prompts, strict=True):
        assert found == greedy_answers(model, prompt, 20) * 2


def choices(prompt: list[int]) -> list[Sequence]:
    """Two answers to one prompt."""
    params, key = SamplingParams(20), object()
    return [Sequence("test", "tenant", prompt.copy(), params, prompt_key=key) for _ in range(2)]
