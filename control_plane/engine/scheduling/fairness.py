"""Fair service across tenants: the Virtual Token Counter (arXiv 2401.00588), with weights.

A counter holds the service that a tenant has had, divided by its weight. The tenant with the smallest
counter is served next. When a tenant comes back, its counter is raised to the smallest counter of the tenants
that are waiting, so that nobody can save up service by staying away.
"""

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

PROMPT_COST = 1.0
"""Service for one token of a prompt."""
OUTPUT_COST = 2.0
"""Service for one generated token: twice a prompt token's, as in the paper and in most price lists."""

Item = TypeVar("Item")


@dataclass
class VirtualTokenCounters:
    """The service that each tenant has had, divided by its weight. A tenant without a counter has 0."""

    _service: dict[str, float] = field(default_factory=dict)
    _last: str = ""
    """The tenant that stopped waiting last."""

    def __getitem__(self, tenant: str) -> float:
        return self._service.get(tenant, 0.0)

    def begins_to_wait(self, tenant: str, waiting: Collection[str]) -> None:
        """Raise the tenant's counter to the smallest of the `waiting` tenants' counters.

        If none is waiting, raise it to the counter of the tenant that stopped waiting last.
        """
        least = min((self[other] for other in waiting), default=self[self._last])
        self._service[tenant] = max(self[tenant], least)

    def stops_waiting(self, tenant: str) -> None:
        """Note that the last step served all of the tenant's work, or that the tenant has none left."""
        self._last = tenant

    def charge(self, tenant: str, cost: float, weight: float) -> None:
        """Add a served cost to the tenant's counter."""
        self._service[tenant] = self[tenant] + cost / weight

    def retain(self, tenants: Collection[str]) -> None:
        """Drop the counters of other tenants that are no higher than the one a new tenant starts with."""
        floor = min(self[tenant] for tenant in (self._last, *tenants))
        self._service = {
            tenant: service
            for tenant, service in self._service.items()
            if tenant in tenants or tenant == self._last or service > floor
        }


def interleave(
    queues: Mapping[str, Iterable[Item]], counters: Mapping[str, float], price: Callable[[Item], float]
) -> Iterator[Item]:
    """Yield all items in the order to serve them: always the next item of the smallest counter's owner.

    `price` is the amount that an item adds to its owner's counter. If counters are equal, the owner that is
    first in `queues` goes first.
    """
    iterators = [iter(queue) for queue in queues.values()]
    heap = [(counters[owner], number) for number, owner in enumerate(queues)]
    heapq.heapify(heap)
    while heap:
        counter, number = heap[0]
        item = next(iterators[number], None)
        if item is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (counter + price(item), number))
            yield item
