"""The answers to one prompt compute it once: each takes over what another has computed.

One of them computes the prompt while the others wait. Then they copy its keys and values. If it ends before
they have the memory for that, it leaves them its own.

Where memory has no prefixes (`SequenceMemory.keeps_prefixes`), it has what the others can copy only while it
has computed just that: so its prompt ends with a step for the last token, and those that get no memory before
that step compute the prompt again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from control_plane.engine.state.sequence import Sequence


@dataclass(frozen=True)
class Sharing:
    """Which sequences can copy from which."""

    has_prefixes: bool = True
    """Whether memory has what belongs to each part of a sequence: `SequenceMemory.keeps_prefixes`."""
    chunks_prompts: bool = True
    """Whether several tokens can follow what was copied: `DenseModel.chunks_prompts`."""

    def find_source(self, sequence: Sequence, others: Iterable[Sequence]) -> Sequence | None:
        """The one of the others that has computed most of the same prompt; None if there is none."""
        if not self._can_copy(sequence):
            return None
        same = (
            other
            for other in others
            if other.prompt_key is sequence.prompt_key
            and (self.has_prefixes or other.num_computed == shared(sequence, other))
        )
        return max(same, key=lambda other: other.num_computed, default=None)

    def length(self, sequence: Sequence) -> int:
        """How many of a sequence's next tokens one step may compute, so that others can copy its prompt."""
        if self.has_prefixes or is_ready(sequence) or not self._can_copy(sequence):
            return sequence.num_uncomputed
        return sequence.num_prompt_tokens - 1 - sequence.num_computed

    def _can_copy(self, sequence: Sequence) -> bool:
        """Whether it has a prompt to share, and would compute no more than it can behind that."""
        has_answer = sequence.num_output_tokens > 0
        return sequence.prompt_key is not None and (self.chunks_prompts or not has_answer)


def is_ready(source: Sequence) -> bool:
    """Whether others can copy from it: it has all of the prompt but the last row, which each computes."""
    return source.num_computed >= source.num_prompt_tokens - 1


def shared(sequence: Sequence, source: Sequence) -> int:
    """How many tokens the sequence can copy: never its last one, whose row gives its next token."""
    return min(source.num_computed, sequence.num_prompt_tokens, len(sequence.token_ids) - 1)


def take_over(sequence: Sequence, source: Sequence) -> None:
    """Record that the source's keys and values were copied to the sequence, with its prompt logprobs."""
    sequence.num_computed = shared(sequence, source)
    sequence.num_charged = max(sequence.num_charged, sequence.num_computed)
    if len(sequence.prompt_logprobs) < len(source.prompt_logprobs):
        sequence.prompt_logprobs = source.prompt_logprobs.copy()
