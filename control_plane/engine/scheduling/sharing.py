"""The answers to one prompt compute it once: each takes over what another has computed.

One of them computes the prompt while the others wait. Then they copy its keys and values. If it ends before
they have the memory for that, it leaves them its own.
"""

from collections.abc import Iterable

from control_plane.engine.state.sequence import Sequence


def find_source(sequence: Sequence, others: Iterable[Sequence]) -> Sequence | None:
    """The one of the others that has computed most of the same prompt; None if there is none."""
    if sequence.prompt_key is None:
        return None
    same = (other for other in others if other.prompt_key is sequence.prompt_key)
    return max(same, key=lambda other: other.num_computed, default=None)


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
