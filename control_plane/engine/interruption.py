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
    _asked: bool = False
    _started: float = 0.0

    def ask(self, tenant: str) -> None:
        """From another thread: the tenant has work now."""
        if self._tenants and tenant not in self._tenants:
            self._asked = True

    def begin(self, tenants: Set[str]) -> None:
        """A step with rows of these tenants begins; with none of them it is not to be interrupted."""
        self._asked = False
        self._started = self.clock()
        self._tenants = tenants

    def check(self) -> None:
        """Raises `Interrupted` when somebody has asked and there is credit for what has been done so far."""
        if not self._asked:
            return
        self._asked = False
        elapsed = self.clock() - self._started
        if elapsed <= self.credit:
            self.credit -= elapsed
            raise Interrupted

    def end(self) -> None:
        """The step came to its end."""
        self._tenants = frozenset()
        elapsed = self.clock() - self._started
        self.credit = min(self.credit + elapsed * WASTED_SHARE, MAX_CREDIT_SECONDS)
