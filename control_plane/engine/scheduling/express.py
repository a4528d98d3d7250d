"""Gives newcomers steps of their own."""

from dataclasses import dataclass

from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.scheduling.queues import Queues
from control_plane.engine.state.sequence import Sequence

STEPS_BETWEEN_EXPRESS = 4
"""Least steps for all between two steps for newcomers alone, who could otherwise take most of the time."""


@dataclass
class Express:
    """Chooses the steps for newcomers alone.

    A newcomer has had no step yet. With a step of its own, it waits for its first token as long as at an idle
    engine. The others wait for that short step.
    """

    queues: Queues
    _steps_since: int = 0
    """Steps since the last one for newcomers alone."""
    _is_planned: bool = False
    """Whether the planned step is for newcomers alone."""

    def plan(self, batch: dict[Sequence, Chunk]) -> dict[Sequence, Chunk]:
        """The newcomers' chunks alone, if there are any and no recent step was for newcomers alone."""
        newcomers = {sequence: chunk for sequence, chunk in batch.items() if self.queues.of(sequence).is_new}
        self._is_planned = (
            0 < len(newcomers) < len(batch)
            and self.queues.policy.gives_way_to_newcomers
            and self._steps_since >= STEPS_BETWEEN_EXPRESS
        )
        return newcomers if self._is_planned else batch

    def commit(self) -> None:
        """Note that the planned step succeeded."""
        self._steps_since = 0 if self._is_planned else self._steps_since + 1
