"""The memory of states: what is counted for a sequence is enough, and a freed lane has nothing of it."""

from pathlib import Path

import pytest

from control_plane.engine.model.transformers_model.lockstep.cache import tensors_of
from control_plane.engine.model.transformers_model.lockstep.states import SequenceStates
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.errors import EngineError, OutOfCache
from tests.support.models.tiny_families import SplitModel, prompts, rest

pytestmark = pytest.mark.slow


def states_of(split: SplitModel) -> SequenceStates:
    memory = split.memory()
    assert isinstance(memory, SequenceStates)
    return memory


def nbytes(memory: SequenceStates, lane: int) -> int:
    """The bytes of a lane's state."""
    storages = [tensor.untyped_storage() for tensor in tensors_of(memory._states[lane].cache)]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


@pytest.mark.parametrize("family", ["qwen3_next", "deepseek_v4", "nemotron_h", "gpt_oss", "axk2", "zaya"])
@pytest.mark.parametrize("length", [1, 100])
def test_the_pages_of_a_sequence_are_enough(family: str, length: int, tmp_path: Path) -> None:
    split = SplitModel.make(family, tmp_path, "lockstep")
    memory = states_of(split)
    (sequence,) = prompts(length)
    # After a prompt, a window still has all of its tokens.
    for start, number in ((0, length), (length, 1)):
        split.logits([Chunk(sequence, start, number)], memory)
        sequence.token_ids.append(5)
    counted = memory.pages.held(sequence) * split.model.page_nbytes
    used = nbytes(memory, memory.pages.lane(sequence))
    assert used <= counted
    # What is fixed counts twice, and a short sequence has filled neither its page nor its windows.
    assert length == 1 or counted <= 3 * used + split.model.page_nbytes


def test_a_freed_lane_has_no_state(tmp_path: Path) -> None:
    split = SplitModel.make("qwen3_next", tmp_path, "lockstep")
    memory = states_of(split)
    first, second = prompts(5, 5)
    split.logits([rest(first)], memory)
    lane = memory.pages.lane(first)
    memory.free(first)
    memory.pages.allocate(second, 6)
    assert memory.pages.lane(second) == lane
    with pytest.raises(EngineError, match="no state after 5 tokens"):
        memory.before(Chunk(second, 5, 1))
    memory.free(second)
    memory.free(second)
    assert memory.pages.num_free_pages == memory.pages.num_pages


def test_a_state_is_copied_as_a_whole(tmp_path: Path) -> None:
    split = SplitModel.make("qwen3_next", tmp_path, "lockstep")
    memory = states_of(split)
    source, target = prompts(9, 9)
    target.token_ids[:] = source.token_ids
    split.logits([rest(source)], memory)
    memory.pages.allocate(target, 9)
    with pytest.raises(ValueError, match="no state after 8 tokens"):
        memory.copy(source, target, 8)
    memory.copy(source, target, 9)
    for sequence, token in ((source, 4), (target, 7)):
        sequence.num_computed = 9
        sequence.token_ids.append(token)
    assert split.error([rest(source), rest(target)], memory) < 1e-4


def test_a_sequence_that_could_never_fit_is_refused(tmp_path: Path) -> None:
    split = SplitModel.make("qwen3_next", tmp_path, "lockstep")
    fixed = states_of(split).pages.pages_per_sequence
    memory = split.memory(num_pages=fixed + 2)
    assert memory.max_length == 32
    (sequence,) = prompts(16)
    memory.check_fits(sequence)
    (longer,) = prompts(17)
    with pytest.raises(OutOfCache):
        memory.check_fits(longer)
    assert split.memory(num_pages=fixed - 1).max_length == 0
