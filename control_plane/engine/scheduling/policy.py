"""Scheduling policies: who competes with whom for steps and memory.

The scheduler keeps one queue for each owner. A queue is served in the order of arrival; queues share steps by
their virtual token counters and memory by their weights. A policy decides which queue a sequence belongs to.
"""

from collections.abc import Mapping
from typing import Protocol

from control_plane.engine.state.sequence import Sequence


class SchedulingPolicy(Protocol):
    """How the scheduler treats sequences of different tenants."""

    @property
    def gives_way_to_newcomers(self) -> bool:
        """Whether a running step may be abandoned for a tenant that has nothing in it."""

    def owner(self, sequence: Sequence) -> str:
        """The owner of the queue that the sequence belongs to."""


class FairAcrossTenants:
    """Each tenant has a queue, so a tenant that sends a flood of requests delays its own ones only."""

    gives_way_to_newcomers = True

    def owner(self, sequence: Sequence) -> str:
        return sequence.tenant


class FirstComeFirstServed:
    """All sequences are in one queue, whichever tenant sends them."""

    gives_way_to_newcomers = False

    def owner(self, sequence: Sequence) -> str:
        return "all tenants"


POLICIES: Mapping[str, type[FairAcrossTenants] | type[FirstComeFirstServed]] = {
    "fair": FairAcrossTenants,
    "fcfs": FirstComeFirstServed,
}
"""The policies by their names in the configuration (`scheduling`)."""
