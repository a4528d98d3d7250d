"""The memory of running sequences, as the scheduler and the engine see it, whatever a model keeps in it."""

from abc import ABC, abstractmethod

from control_plane.engine.state.kv_pages import KVPages
from control_plane.engine.state.sequence import Sequence
from control_plane.errors import OutOfCache


class SequenceMemory(ABC):
    """Each running sequence has a lane, and pages of memory that `pages` counts."""

    max_length: int
    """Tokens of the longest sequence."""
    pages: KVPages

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all pages, which the memory takes when it is full."""

    @property
    @abstractmethod
    def keeps_prefixes(self) -> bool:
        """Whether it has what belongs to each part of a sequence's tokens. Otherwise only what belongs to all
        computed tokens is there, and can be copied."""

    @abstractmethod
    def free(self, sequence: Sequence) -> None:
        """Free the sequence's lane and memory. Does nothing for a sequence that holds none."""

    @abstractmethod
    def copy(self, source: Sequence, target: Sequence, length: int) -> None:
        """Copy what belongs to the first tokens to another sequence, which must have room for them.

        Without `keeps_prefixes`, `length` must be all computed tokens of the source.
        """

    def check_fits(self, sequence: Sequence) -> None:
        """Raises `OutOfCache` if the sequence could not run even alone."""
        if sequence.max_length > self.max_length:
            raise OutOfCache(
                f"{sequence.max_length} tokens do not fit into the KV cache of {self.pages.num_tokens}"
            )
