"""States of a ragged model: each row has its own sequence's, whatever else is in the step."""

from pathlib import Path

import pytest
import torch

from control_plane.engine.model.transformers_model.ragged.model import RaggedModel
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.hybrid_cache import HybridCache
from control_plane.engine.state.sequence import Sequence
from control_plane.errors import EngineError
from tests.support.models.family_configs import HYBRID
from tests.support.models.tiny_families import SplitModel, prompts, rest

pytestmark = pytest.mark.slow

BOUND = 1e-4


def advance(batch: list[Chunk], token: int | None = None) -> None:
    """Mark chunks as computed. Their sequences go on with the token."""
    for chunk in batch:
        chunk.sequence.num_computed = chunk.end
        if token is not None:
            chunk.sequence.token_ids.append(token)


def compute(split: SplitModel, memory: HybridCache, sequences: list[Sequence]) -> None:
    batch = [rest(sequence) for sequence in sequences]
    assert split.error(batch, memory) < BOUND
    advance(batch, 7)


def hybrid(family: str, folder: Path) -> tuple[SplitModel, HybridCache]:
    split = SplitModel.make(family, folder)
    assert isinstance(split.model, RaggedModel)
    memory = split.memory()
    assert isinstance(memory, HybridCache)
    return split, memory


@pytest.mark.parametrize("family", HYBRID)
def test_prompts_and_decoding_share_a_step(family: str, tmp_path: Path) -> None:
    """Rows that decode lie before, between and behind those of prompts, and come in another order."""
    split, memory = hybrid(family, tmp_path)
    first, second, third, long, short = prompts(6, 4, 5, 70, 1)
    compute(split, memory, [first, second, third])
    part = Chunk(long, 0, 2)
    batch = [rest(second), part, rest(first), rest(short), rest(third)]
    assert split.error(batch, memory) < BOUND
    advance([batch[0], *batch[2:]], 9)
    advance([part])
    compute(split, memory, [third, long, second])
    compute(split, memory, [long, short, first, second])


@pytest.mark.parametrize("family", ["qwen3_next", "nemotron_h"])
def test_a_row_does_not_depend_on_the_others(family: str, tmp_path: Path) -> None:
    split, memory = hybrid(family, tmp_path)
    sequences = prompts(12, 3, 8)
    compute(split, memory, sequences)
    alone = [split.logits([rest(sequence)], memory)[0] for sequence in sequences[:1]]
    other = SplitModel.make(family, tmp_path / "other")
    second = other.memory()
    again = prompts(12, 3, 8)
    assert isinstance(second, HybridCache)
    compute(other, second, again)
    together = other.logits([rest(sequence) for sequence in again], second)
    torch.testing.assert_close(alone[0], together[0], rtol=1e-4, atol=1e-5)


def test_answers_to_one_prompt_go_on_from_copies(tmp_path: Path) -> None:
    split, memory = hybrid("qwen3_next", tmp_path)
    source, target = prompts(9, 9)
    target.token_ids[:] = source.token_ids
    batch = [rest(source)]
    split.logits(batch, memory)
    memory.pages.allocate(target, 9)
    memory.copy(source, target, 9)
    for sequence, token in ((source, 4), (target, 7)):
        sequence.num_computed = 9
        sequence.token_ids.append(token)
    compute(split, memory, [target, source])


def test_a_lost_state_is_an_error(tmp_path: Path) -> None:
    split, memory = hybrid("qwen3_next", tmp_path)
    (sequence,) = prompts(5)
    split.logits([rest(sequence)], memory)
    memory.free(sequence)
    with pytest.raises(EngineError, match="no state after 5 tokens"):
        split.logits([Chunk(sequence, 5, 1)], memory)
