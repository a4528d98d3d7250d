"""Abandons a running step when a tenant arrives that has nothing in it.

Without this, a new tenant waits for the end of the step that is running, which under another tenant's flood
takes longer than its own first step. An abandoned step has changed nothing; the next step is planned with the
newcomer. The time lost is bounded by a share of the time of completed steps.
"""

import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field

WASTED_SHARE = 0.1
"""The largest share of the engine's time that may be lost in abandoned steps."""
MAX_CREDIT_SECONDS = 1.0


class Interrupted(Exception):
    """The step is abandoned. It has changed nothing."""


@dataclass
class Interruption:
    """Shared by two threads: the event loop requests, the engine's thread checks between layers.

    Adding to a set and removing from it are atomic, so there is no lock.
    """

    clock: Callable[[], float] = time.monotonic
    credit: float = 0.0
    """Seconds that abandoned steps may still take."""
    _tenants: Set[str] = field(default_factory=frozenset)
    """The tenants with rows in the current step."""
    _newcomers: set[str] = field(default_factory=set)
    """The tenants that have sent a request which the engine's thread has not queued yet."""
    _started: float = 0.0

    def request(self, tenant: str) -> None:
        """The tenant has sent a request. Called from the event loop."""
        self._newcomers.add(tenant)

    def acknowledge(self, tenant: str) -> None:
        """The tenant's request is queued, so the next step is planned with it."""
        self._newcomers.discard(tenant)

    def begin(self, tenants: Set[str]) -> None:
        """Begin a step with rows of these tenants. If there are none, it cannot be interrupted."""
        self._started = self.clock()
        self._tenants = tenants

    def check(self) -> None:
        """Raise `Interrupted` if a newcomer is waiting and the credit covers the step's time so far."""
        if not self._tenants or self._newcomers <= self._tenants:
            return
        elapsed = self.clock() - self._started
        if elapsed <= self.credit:
            self.credit -= elapsed
            raise Interrupted

    def end(self) -> None:
        """The step is complete: a share of its time becomes credit."""
        self._tenants = frozenset()
        elapsed = self.clock() - self._started
        self.credit = min(self.credit + elapsed * WASTED_SHARE, MAX_CREDIT_SECONDS)
