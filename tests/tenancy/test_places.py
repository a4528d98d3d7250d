"""Places in the queue: whoever asks for one at a time gets it, however greedy the others are."""

import asyncio
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.errors import Overloaded, QueueFull, RetryLater
from control_plane.tenancy.limits.limiter import LocalLimiter
from control_plane.tenancy.limits.places import Places
from control_plane.tenancy.tenants import Limits, Tenant
from control_plane.tenancy.usage import Spent


def tenant(name: object, weight: float = 1.0) -> Tenant:
    return Tenant(str(name), Limits(weight=weight))


def fill(places: Places, *tenants: Tenant, at_once: int = 1) -> list[int]:
    """Take places for each tenant in turn until all are refused; returns how many each has."""
    held = Counter[str]()
    refused: set[str] = set()
    while len(refused) < len(tenants):
        for each in tenants:
            try:
                places.take(each, at_once)
                held[each.name] += at_once
            except QueueFull:
                refused.add(each.name)
    return [held[each.name] for each in tenants]


@pytest.mark.parametrize(
    ("max_queued", "greedy", "each"),
    [
        (1024, 1, 684),
        (1024, 2, 411),
        (1024, 9, 109),
        (1024, 100, 12),
        (8, 1, 7),
        (8, 3, 4),
        (1, 1, 2),
    ],
)
def test_shares_of_greedy_tenants(max_queued: int, greedy: int, each: int) -> None:
    places = Places(max_queued)
    found = fill(places, *(tenant(number) for number in range(greedy)))
    assert max(found) <= each
    assert min(found) >= each - 1
    assert places.held == sum(found)
    # Each of the others has a place.
    for number in range(max_queued - greedy):
        places.take(tenant(f"late-{number}"), 1)
    with pytest.raises(Overloaded, match="too many sequences") as caught:
        places.take(tenant("too-late"), 1)
    assert caught.value.retry_after == 1.0


def test_weights_divide_the_places() -> None:
    places = Places(1000)
    (heavy,) = fill(places, tenant("heavy", weight=3.0))
    (light,) = fill(places, tenant("light"))
    assert heavy - 1 == pytest.approx(1000 * 2 / 3, abs=1)
    # Of the remaining third, 2/3 of what is free: 2/5.
    assert light - 1 == pytest.approx(1000 / 3 * 2 / 5, abs=1)
    # Only relative weights count.
    assert fill(Places(1000), tenant("tiny", weight=0.001)) == fill(Places(1000), tenant("one"))


def test_a_request_for_many_sequences() -> None:
    places = Places(100)
    with pytest.raises(Overloaded, match="has 101 sequences, and the server takes 100") as caught:
        places.take(tenant("a"), 101)
    assert caught.value.retry_after is None
    places.take(tenant("a"), 100)
    with pytest.raises(Overloaded):
        places.take(tenant("b"), 3)
    places.take(tenant("b"), 1)
    with pytest.raises(
        QueueFull, match="has 1 sequences waiting or running, and 3 more would exceed"
    ) as full:
        places.take(tenant("b"), 3)
    assert full.value.retry_after == 1.0
    places.give_back("a", 100)
    places.take(tenant("b"), 50)


actions = st.lists(
    st.tuples(
        st.booleans(),  # ask, or end a request
        st.integers(0, 6),  # the tenant
        st.integers(1, 4),  # sequences
        st.sampled_from([0.001, 1.0, 2.0, 1000.0]),
    ),
    max_size=120,
)


async def unread(tenant: str) -> Spent:
    raise AssertionError(f"{tenant} has no budgets")


@settings(deadline=None)
@given(actions, st.sampled_from([8, 9, 20]), st.sampled_from([3, 100]))
def test_whoever_asks_one_at_a_time_is_never_refused(
    actions: list[tuple[bool, int, int, float]], max_queued: int, per_tenant: int
) -> None:
    """Whatever seven others do. No tenant exceeds its bound, and all together not theirs."""

    async def run() -> None:
        limiter = LocalLimiter(unread, max_queued, per_tenant)
        live = []
        for asks, name, sequences, weight in actions:
            if asks:
                with suppress(RetryLater):
                    live.append(await limiter.admit(tenant(name, weight), sequences, 1))
            elif live:
                await limiter.release(live.pop(name % len(live)), 1)
            held = Counter[str]()
            for ticket in live:
                held[ticket.tenant] += ticket.sequences
            assert max(held.values(), default=0) <= per_tenant
            assert held.total() - len(held) <= max_queued
            await limiter.release(await limiter.admit(tenant("modest", 0.001), 1, 1), 1)

    asyncio.run(run())
