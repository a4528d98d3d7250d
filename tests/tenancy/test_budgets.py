"""Tokens of a day and a month: what is counted, and which requests it leaves room for."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.errors import BudgetExceeded, QuotaExceeded
from control_plane.tenancy.limits.admission import Admission, Ticket
from control_plane.tenancy.limits.limiter import LocalLimiter
from control_plane.tenancy.periods import day_of, month_of
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.storage.store_thread import StoreThread
from control_plane.tenancy.tenants import Limits, Tenant
from control_plane.tenancy.usage import Booking, Entry, Spent
from tests.support.gateways.echo_gateway import asynchronous

pytestmark = pytest.mark.slow

MANY = 10**9
HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "faasmoe.db"
    with TenantStore.open(path):
        yield path


def moment(*date: int) -> float:
    return datetime(*date, tzinfo=UTC).timestamp()  # type: ignore[misc,arg-type]


def booking(tokens: int, at: float, tenant: str = "acme") -> Booking:
    return Booking(tenant, at, 1, tokens // 2, tokens - tokens // 2, 0.0, 0.0)


def book(store: TenantStore, *bookings: Booking) -> None:
    store.book([Entry(uuid4().hex, 1, bookings)])


def test_a_day_and_a_month_end_at_midnight_utc(path: Path) -> None:
    last = moment(2028, 2, 29, 23, 59, 59)
    with TenantStore.open(path) as store:
        book(store, booking(1, moment(2028, 1, 31, 23, 59)), booking(10, moment(2028, 2, 1)))
        book(store, booking(100, moment(2028, 2, 29)), booking(1000, moment(2028, 3, 1)))
        book(store, booking(10_000, last, tenant="bob"))
        assert store.spent("acme", last) == Spent(100, 110, 1.0, 1.0)
        assert store.spent("acme", last + 1) == Spent(1000, 1000, DAY, 31 * DAY)
        assert store.spent("acme", moment(2028, 12, 31, 12)) == Spent(0, 0, DAY / 2, DAY / 2)
        assert store.spent("eve", last).month == 0


@settings(deadline=None)
@given(st.floats(0, 4e9), st.lists(st.tuples(st.integers(-40, 40), st.integers(0, 99)), max_size=30))
def test_sums_equal_those_of_the_calendar(now: float, amounts: list[tuple[int, int]]) -> None:
    bookings = [booking(tokens, max(0.0, now + days * DAY)) for days, tokens in amounts]
    today = datetime.fromtimestamp(now, UTC)

    def total(form: str) -> int:
        return sum(
            each.prompt_tokens + each.generated_tokens
            for each in bookings
            if datetime.fromtimestamp(each.at, UTC).strftime(form) == today.strftime(form)
        )

    with TemporaryDirectory() as folder, TenantStore.open(Path(folder, "faasmoe.db")) as store:
        book(store, *bookings)
        spent = store.spent("acme", now)
    assert (spent.day, spent.month) == (total("%Y-%m-%d"), total("%Y-%m"))
    first, following = month_of(now)
    assert first <= day_of(now) < following
    assert datetime.fromtimestamp(now + spent.month_ends + 1, UTC).day == 1


@pytest.mark.parametrize(
    ("limits", "spent", "live", "tokens", "kind", "words", "retry_after"),
    [
        ({"tokens_per_day": 100}, (71, 71), 0, 30, BudgetExceeded, "100 tokens per day", 2 * HOUR),
        ({"tokens_per_month": 100}, (0, 71), 0, 30, BudgetExceeded, "100 tokens per month", 9 * DAY),
        # Both are used up: the day's renewal would not help.
        (
            {"tokens_per_day": 50, "tokens_per_month": 100},
            (50, 100),
            0,
            1,
            BudgetExceeded,
            "per month",
            9 * DAY,
        ),
        ({"tokens_per_day": 100}, (0, 0), 0, 101, BudgetExceeded, "may take 101 tokens", None),
        # Requests that run may return some.
        ({"tokens_per_day": 100}, (50, 50), 30, 30, QuotaExceeded, "in progress", 1.0),
    ],
)
def test_refusals(
    limits: dict[str, int],
    spent: tuple[int, int],
    live: int,
    tokens: int,
    kind: type[QuotaExceeded],
    words: str,
    retry_after: float | None,
) -> None:
    admission, who = Admission(MANY), Tenant("acme", Limits(**limits))
    booked = Spent(*spent, 2 * HOUR, 9 * DAY)
    if live:
        admission.admit(who, 1, live, 0.0, spent=booked)
    with pytest.raises(QuotaExceeded, match=words) as refused:
        admission.admit(who, 1, tokens, 0.0, spent=booked)
    assert type(refused.value) is kind
    assert refused.value.retry_after == retry_after
    assert admission.live_requests == (1 if live else 0)


def test_a_request_that_just_fits_is_admitted() -> None:
    admission, who = Admission(MANY), Tenant("acme", Limits(tokens_per_day=100, tokens_per_month=100))
    booked = Spent(40, 40, HOUR, HOUR)
    admission.admit(who, 1, 30, 0.0, spent=booked)
    admission.admit(who, 1, 30, 0.0, spent=booked)
    with pytest.raises(QuotaExceeded):
        admission.admit(who, 1, 1, 0.0, spent=booked)


@asynchronous
async def test_requests_at_once_do_not_exceed_a_budget(path: Path) -> None:
    """Forty requests of up to 10 tokens use 7 each: whatever the order, never more than 100 in all."""
    who = Tenant("acme", Limits(tokens_per_day=100))
    async with StoreThread.open(path, "tenants") as thread:
        limiter = LocalLimiter(lambda name: thread.run(lambda store: store.spent(name)), MANY, MANY)

        async def serve(ticket: Ticket) -> None:
            await asyncio.sleep(0)
            await thread.run(lambda store: book(store, booking(7, store._clock())))
            await limiter.release(ticket, 7)

        async def ask() -> bool:
            while True:
                try:
                    ticket = await limiter.admit(who, 1, 10)
                except BudgetExceeded:
                    return False
                except QuotaExceeded:
                    await asyncio.sleep(0.001)
                else:
                    await serve(ticket)
                    return True

        served = await asyncio.gather(*(ask() for _ in range(40)))
    # 13 requests use 91 tokens, and 9 are left, too few for one more.
    assert sum(served) == 13
