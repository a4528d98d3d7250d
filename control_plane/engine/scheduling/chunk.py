"""The part of a sequence that one step computes."""

from dataclasses import dataclass

from control_plane.engine.scheduling.fairness import OUTPUT_COST, PROMPT_COST
from control_plane.engine.state.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """The tokens from `start` to `start + length` of one sequence."""

    sequence: Sequence
    start: int
    length: int

    @property
    def end(self) -> int:
        """Position of the first token after the chunk."""
        return self.start + self.length

    @property
    def token_ids(self) -> list[int]:
        """The chunk's tokens."""
        return self.sequence.token_ids[self.start : self.end]

    @property
    def is_last(self) -> bool:
        """Whether the chunk reaches the sequence's end, so that the next token can be sampled from it."""
        return self.end == len(self.sequence.token_ids)

    @property
    def service(self) -> float:
        """Cost of computing the chunk, in the units of `fairness`."""
        prompt = max(min(self.end, self.sequence.num_prompt_tokens) - self.start, 0)
        return prompt * PROMPT_COST + (self.length - prompt) * OUTPUT_COST
