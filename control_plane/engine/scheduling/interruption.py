"""Lets a step give way to a tenant that has nothing in it.

Without this a newcomer waits for the end of whatever step it meets, which under another tenant's flood is
longer than its own. A step that gives way has changed nothing and is planned anew; what that wastes is
bounded by a share of the time in which steps came to their end.
"""

import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field

WASTED_SHARE = 0.1
"""Of the engine's time, at most, in steps that gave way."""
MAX_CREDIT_SECONDS = 1.0


class Interrupted(Exception):
    """The step gives way; it has changed nothing."""


@dataclass
class Interruption:
    """Between the side that submits, which asks, and the engine's thread, which looks between layers."""

    clock: Callable[[], float] = time.monotonic
    credit: float = 0.0
    """Seconds that may yet be wasted."""
    _tenants: Set[str] = field(default_factory=frozenset)
    """Those with rows in the current step."""
    _newcomers: set[str] = field(default_factory=set)
    """Those who have asked, and whom the engine's thread has not heard yet."""
    _started: float = 0.0

    def ask(self, tenant: str) -> None:
        """From another thread: the tenant has work now."""
        self._newcomers.add(tenant)

    def heard(self, tenant: str) -> None:
        """The tenant's work is part of what the next step is planned from."""
        self._newcomers.discard(tenant)

    def begin(self, tenants: Set[str]) -> None:
        """A step with rows of these tenants begins; with none of them it is not to be interrupted."""
        self._started = self.clock()
        self._tenants = tenants

    def check(self) -> None:
        """Raises `Interrupted` for a newcomer, if there is credit for what has been done so far."""
        if not self._tenants or self._newcomers <= self._tenants:
            return
        elapsed = self.clock() - self._started
        if elapsed <= self.credit:
            self.credit -= elapsed
            raise Interrupted

    def end(self) -> None:
        """The step came to its end."""
        self._tenants = frozenset()
        elapsed = self.clock() - self._started
        self.credit = min(self.credit + elapsed * WASTED_SHARE, MAX_CREDIT_SECONDS)
