"""Shares the places of the queue among tenants, so that nobody is refused because others are greedy.

Each tenant has one place of its own, which nobody else can take. All others are shared by dynamic thresholds
(Choudhury and Hahne, https://doi.org/10.1109/90.664262): a tenant may hold twice as many of them as are
free. So one tenant gets two thirds of them, two get two fifths each, nine two nineteenths each, and some stay
free for those who come next. Nobody has to be driven out.
"""

from collections import Counter

from control_plane.errors import Overloaded, QueueFull
from control_plane.tenancy.tenants import Tenant

RETRY_SECONDS = 1.0
"""Retry-After in seconds where the wait depends on when other requests end."""
GREED = 2.0
"""Shared places that one tenant may hold, for each that is free.

With more, a single tenant may use more of the queue, and those who come next find less."""


class Places:
    """The sequences of all tenants that wait or run.

    At most `max_queued` share places, and at most as many tenants have a place of their own.
    """

    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued
        self._held: Counter[str] = Counter()
        self._weights: dict[str, float] = {}

    @property
    def held(self) -> int:
        """Places that are taken."""
        return self._held.total()

    def take(self, tenant: Tenant, sequences: int) -> None:
        """Take places for a request. Raises `QueueFull` or `Overloaded`, and then takes none."""
        if sequences > self._max_queued:
            raise Overloaded(
                f"the request has {sequences} sequences, and the server takes {self._max_queued}", None
            )
        if tenant.name in self._held:
            self._check_share(tenant, sequences)
        else:
            self._check_first(sequences)
        self._held[tenant.name] += sequences
        self._weights[tenant.name] = tenant.limits.weight

    def give_back(self, tenant: str, sequences: int) -> None:
        """Give back places that were taken."""
        self._held[tenant] -= sequences
        if not self._held[tenant]:
            del self._held[tenant], self._weights[tenant]

    @property
    def _free(self) -> int:
        """Places that are shared and free."""
        return self._max_queued - (self.held - len(self._held))

    def _check_first(self, sequences: int) -> None:
        """A tenant that holds nothing may have as much as is free, whatever its weight."""
        if len(self._held) >= self._max_queued or sequences - 1 > self._free:
            raise Overloaded("the server has too many sequences waiting or running", RETRY_SECONDS)

    def _check_share(self, tenant: Tenant, sequences: int) -> None:
        held, free = self._held[tenant.name], self._free
        # Relative to the largest weight: tenants with small weights only would leave the queue empty.
        weight = tenant.limits.weight / max(tenant.limits.weight, *self._weights.values())
        share = min(int(GREED * free * weight), held - 1 + free)
        if held - 1 + sequences > share:
            raise QueueFull(
                f"the tenant has {held} sequences waiting or running, and {sequences} more would exceed its "
                f"share of the queue, which is {share + 1} while so many wait",
                RETRY_SECONDS,
            )
