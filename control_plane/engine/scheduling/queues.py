"""The sequences of all owners, running and waiting."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from control_plane.engine.scheduling.policy import SchedulingPolicy
from control_plane.engine.scheduling.preemption import Holder
from control_plane.engine.scheduling.sharing import Sharing
from control_plane.engine.state.sequence import Sequence

NEXT_IN_TURN = 4
"""Waiting sequences of each queue that are likely to begin soon."""


@dataclass
class SequenceQueue:
    """One owner's sequences, running and waiting, each the oldest first."""

    weight: float
    running: list[Sequence] = field(default_factory=list)
    waiting: deque[Sequence] = field(default_factory=deque)

    @property
    def precedence(self) -> tuple[float, int]:
        """Tie-break: fewest running sequences per weight, then the shortest pending work."""
        return len(self.running) / self.weight, self.waiting[0].num_uncomputed if self.waiting else 0

    @property
    def is_new(self) -> bool:
        """Whether none of its running sequences has had a step yet."""
        return not any(sequence.num_charged for sequence in self.running)

    def begin(self, sequence: Sequence) -> None:
        """Let a waiting sequence run."""
        self.waiting.remove(sequence)
        self.running.append(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Let a running sequence wait, at the head."""
        self.running.remove(sequence)
        self.waiting.appendleft(sequence)

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting)


@dataclass
class Queues:
    """One queue for each owner. The policy says who owns a sequence.

    An owner's sequences in the background have a queue of their own, which gives way to the foreground: it
    competes only while that is empty.
    """

    policy: SchedulingPolicy
    sharing: Sharing = field(default_factory=Sharing)
    foreground: dict[str, SequenceQueue] = field(default_factory=dict)
    background: dict[str, SequenceQueue] = field(default_factory=dict)

    @property
    def competing(self) -> dict[str, SequenceQueue]:
        """The queues that do not give way to others."""
        return self.foreground or self.background

    @property
    def num_running(self) -> int:
        """Sequences that have memory."""
        return sum(len(queue.running) for queue in self.all().values())

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for memory."""
        return sum(len(queue.waiting) for queue in self.all().values())

    @property
    def num_competing(self) -> int:
        """Running sequences that do not give way."""
        return sum(len(queue.running) for queue in self.competing.values())

    def all(self) -> dict[str, SequenceQueue]:
        """The queues of both kinds."""
        return self.foreground | self.background

    def owner(self, sequence: Sequence) -> str:
        """The name of the sequence's queue."""
        owner = self.policy.owner(sequence)
        return f"{owner}, in the background" if sequence.background else owner

    def find(self, sequence: Sequence) -> SequenceQueue | None:
        """The queue of the sequence's owner; None if it has no sequences."""
        return self._of_its_kind(sequence).get(self.owner(sequence))

    def of(self, sequence: Sequence) -> SequenceQueue:
        """The queue that has the sequence."""
        return self._of_its_kind(sequence)[self.owner(sequence)]

    def add(self, sequence: Sequence) -> None:
        """Add a waiting sequence."""
        queue = self._of_its_kind(sequence).setdefault(self.owner(sequence), SequenceQueue(sequence.weight))
        queue.weight = sequence.weight
        queue.waiting.append(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Drop the empty queue that has had the sequence."""
        del self._of_its_kind(sequence)[self.owner(sequence)]

    def source(self, sequence: Sequence) -> Sequence | None:
        """The running sequence that this one can copy most of the same prompt from, if there is one."""
        return self.sharing.find_source(sequence, self.of(sequence).running)

    def next_in_turn(self) -> Iterator[Sequence]:
        """The first few sequences that wait in each queue."""
        for queue in self.all().values():
            yield from islice(queue.waiting, NEXT_IN_TURN)

    def giving_way(self) -> list[Sequence]:
        """The running sequences that give way to others, the newest of each owner first."""
        queues = self.background.values() if self.foreground else ()
        return [sequence for queue in queues for sequence in reversed(queue.running)]

    def holders(self, held: Callable[[Sequence], int]) -> dict[str, Holder[Sequence]]:
        """The amounts of a resource that running sequences hold, by owner, without those that give way."""
        return {
            owner: Holder([(sequence, held(sequence)) for sequence in queue.running], queue.weight)
            for owner, queue in self.competing.items()
            if queue.running
        }

    def _of_its_kind(self, sequence: Sequence) -> dict[str, SequenceQueue]:
        return self.background if sequence.background else self.foreground
