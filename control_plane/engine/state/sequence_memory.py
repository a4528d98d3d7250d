"""The memory of running sequences, as the scheduler and the engine see it, whatever a model keeps in it."""

from abc import ABC, abstractmethod

from control_plane.engine.state.kv_pages import Holder, KVPages
from control_plane.engine.state.sequence import Sequence
from control_plane.errors import OutOfCache


class SequenceMemory(ABC):
    """Each running sequence has a lane, and pages of memory that `pages` counts.

    When the sequence ends, another holder may have them.
    """

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
        computed tokens is there, and what `keep` has kept."""

    @abstractmethod
    def usable(self, holder: Holder, length: int) -> int:
        """How many of a holder's first tokens can be copied, or kept by `trim`: at most `length`."""

    @abstractmethod
    def pages_to_keep(self, holder: Holder) -> int:
        """Pages that `keep` needs besides those that are held."""

    @abstractmethod
    def keep(self, holder: Holder) -> None:
        """Keep what belongs to all computed tokens, as `usable` then has it, whatever is computed later.

        There must be pages for it. What was kept before may go.
        """

    @abstractmethod
    def drop_kept(self, holder: Holder) -> int:
        """Drop what `keep` has kept; returns the number of pages that it took."""

    @abstractmethod
    def free(self, holder: Holder) -> None:
        """Free a lane and its memory. Does nothing for a holder that has none."""

    def trim(self, holder: Holder, length: int) -> None:
        """Free the memory behind the first tokens, of which so many must be `usable`."""
        self.pages.trim(holder, length)

    @abstractmethod
    def copy(self, source: Holder, target: Holder, length: int) -> None:
        """Copy what belongs to the first tokens to another holder, which must have room for them.

        So many of the source's must be `usable`.
        """

    def check_fits(self, sequence: Sequence) -> None:
        """Raises `OutOfCache` if the sequence could not run even alone."""
        if sequence.max_length > self.max_length:
            raise OutOfCache(
                f"{sequence.max_length} tokens do not fit into the KV cache of {self.pages.num_tokens}"
            )
