"""Fair service across tenants: the Virtual Token Counter (arXiv 2401.00588), with weights.

Each tenant has a counter of the service that it has had, divided by its weight; whoever's is least is
served next. A tenant that comes back is lifted to the least counter of those who wait: what it did not ask
for while it was away is not saved up.
"""

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

PROMPT_COST = 1.0
"""Of computing a prompt's token, in units of service."""
OUTPUT_COST = 2.0
"""Of computing a generated one; the paper's choice, and most prices'."""

Item = TypeVar("Item")


@dataclass
class VirtualTokenCounters:
    """The service that each tenant has had."""

    _service: dict[str, float] = field(default_factory=dict)
    _last: str = ""
    """The tenant that stopped waiting last."""

    def __getitem__(self, tenant: str) -> float:
        """The tenant's counter."""
        return self._service.get(tenant, 0.0)

    def begins_to_wait(self, tenant: str, waiting: Collection[str]) -> None:
        """Lift the tenant to the others who wait; when nobody does, to the one that did so last."""
        least = min((self[other] for other in waiting), default=self[self._last])
        self._service[tenant] = max(self[tenant], least)

    def stops_waiting(self, tenant: str) -> None:
        """All of the tenant's work is being done."""
        self._last = tenant

    def charge(self, tenant: str, cost: float, weight: float) -> None:
        """The tenant has been served."""
        self._service[tenant] = self[tenant] + cost / weight

    def retain(self, tenants: Collection[str]) -> None:
        """Forget all other tenants, but for those that have had more than a newcomer would start with."""
        floor = min(self[tenant] for tenant in (self._last, *tenants))
        self._service = {
            tenant: service
            for tenant, service in self._service.items()
            if tenant in tenants or tenant == self._last or service > floor
        }


def interleave(
    queues: Mapping[str, Iterable[Item]], counters: Mapping[str, float], price: Callable[[Item], float]
) -> Iterator[Item]:
    """All items in the order to serve them in: always the next one of whoever's counter is least by then.

    `price` is what an item adds to its owner's counter. Of equal counters the first in `queues` goes first.
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
