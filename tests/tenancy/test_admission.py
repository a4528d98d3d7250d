"""Admission: tables of admitted and refused requests, and invariants over random sequences of requests."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from control_plane.errors import QueueFull, QuotaExceeded, RetryLater
from control_plane.tenancy.limits.admission import Admission, Allowance, Quota, Ticket
from control_plane.tenancy.tenants import Limits, Tenant

pytestmark = pytest.mark.slow

MANY = 10**9


def tenant(tenant_name: str = "acme", /, **limits: Any) -> Tenant:
    return Tenant(tenant_name, Limits(**limits))


@pytest.fixture
def admission() -> Admission:
    return Admission(max_queued_per_tenant=6)


def refusal(
    admission: Admission, who: Tenant, sequences: int = 1, tokens: int = 1, now: float = 0.0
) -> RetryLater:
    before = (admission.live_requests, admission.live_sequences, admission.quota(who, now))
    with pytest.raises(RetryLater) as caught:
        admission.admit(who, sequences, tokens, now)
    # A refusal must not change the state.
    assert (admission.live_requests, admission.live_sequences, admission.quota(who, now)) == before
    return caught.value


def retry_after(admission: Admission, who: Tenant, tokens: int, now: float) -> float | None:
    """Ask for admission. Returns the error's wait, or 0 if admitted."""
    try:
        admission.admit(who, 1, tokens, now)
    except QuotaExceeded as error:
        return error.retry_after
    return 0


def test_nothing_is_limited_by_default() -> None:
    admission = Admission(MANY)
    tickets = [admission.admit(tenant(), 3, MANY, 0.0) for _ in range(100)]
    assert (admission.live_requests, admission.live_sequences) == (100, 300)
    assert admission.quota(tenant(), 0.0) == Quota(None, None)
    for ticket in tickets:
        admission.release(ticket, 0, 0.0)
    assert (admission.live_requests, admission.live_sequences, admission.remembered) == (0, 0, 0)


@pytest.mark.parametrize(
    ("limits", "sequences", "tokens", "kind", "words", "retry_after"),
    [
        ({"rpm": 2}, 1, 1, QuotaExceeded, "2 requests per minute", 30.0),
        ({"tpm": 120}, 1, 30, QuotaExceeded, "120 tokens per minute", 5.0),
        ({"tpm": 120}, 1, 121, QuotaExceeded, "120 tokens per minute", None),
        ({"max_concurrency": 2}, 1, 1, QuotaExceeded, "2 requests at once", 1.0),
        ({}, 3, 1, QueueFull, "its 6", 1.0),
        ({}, 7, 1, QueueFull, "may have 6 waiting or running", None),
        ({"rpm": 2, "tpm": 120}, 1, 500, QuotaExceeded, "120 tokens per minute", None),
    ],
)
def test_refusals(
    admission: Admission,
    limits: dict[str, int],
    sequences: int,
    tokens: int,
    kind: type[RetryLater],
    words: str,
    retry_after: float | None,
) -> None:
    """After two requests of two sequences and 50 tokens each, the third request is refused."""
    who = tenant(**limits)
    for _ in range(2):
        admission.admit(who, 2, 50, 0.0)
    error = refusal(admission, who, sequences, tokens)
    assert type(error) is kind
    assert words in str(error)
    assert error.retry_after == pytest.approx(retry_after)


def test_a_release_makes_room(admission: Admission) -> None:
    who = tenant(max_concurrency=1)
    ticket = admission.admit(who, 6, 1, 0.0)
    assert type(refusal(admission, who)) is QuotaExceeded
    admission.release(ticket, 1, 0.0)
    admission.admit(who, 6, 1, 0.0)


def test_releasing_a_ticket_again_has_no_effect(admission: Admission) -> None:
    who = tenant(tpm=1000)
    first, second = (admission.admit(who, 2, 100, 0.0) for _ in range(2))
    for _ in range(3):
        admission.release(first, 10, 0.0)
    assert (admission.live_requests, admission.live_sequences) == (1, 2)
    assert admission.quota(who, 0.0).tokens == Allowance(1000, 890, pytest.approx(6.6))  # type: ignore[arg-type]
    admission.release(second, 100, 0.0)
    admission.release(second, 0, 0.0)
    assert (admission.live_requests, admission.live_sequences) == (0, 0)
    assert admission.quota(who, 0.0).tokens == Allowance(1000, 890, pytest.approx(6.6))  # type: ignore[arg-type]


def test_the_quota_has_the_rest_and_the_time_until_it_is_refilled(admission: Admission) -> None:
    who = tenant(rpm=6, tpm=600)
    assert admission.quota(who, 0.0) == Quota(Allowance(6, 6, 0.0), Allowance(600, 600, 0.0))
    assert admission.remembered == 0
    ticket = admission.admit(who, 1, 300, 0.0)
    assert admission.quota(who, 0.0) == Quota(Allowance(6, 5, 10.0), Allowance(600, 300, 30.0))
    assert admission.quota(who, 5.0) == Quota(Allowance(6, 5, 5.0), Allowance(600, 350, 25.0))
    admission.release(ticket, 100, 5.0)
    assert admission.quota(who, 5.0) == Quota(Allowance(6, 5, 5.0), Allowance(600, 550, 5.0))
    assert admission.quota(who, 60.0) == Quota(Allowance(6, 6, 0.0), Allowance(600, 600, 0.0))


@pytest.mark.parametrize("limits", [{"rpm": 7}, {"tpm": 1000}])
@pytest.mark.parametrize("start", [0.0, 1234.5678, 86_400_000.1])
def test_a_request_after_the_wait_is_admitted(limits: dict[str, int], start: float) -> None:
    admission, who, now, waits = Admission(MANY), tenant(**limits), start, 0
    for _ in range(50):
        if wait := retry_after(admission, who, 333, now):
            waits += 1
            now += wait
            assert retry_after(admission, who, 333, now) == 0
    assert waits > 10
    assert now > start + 60


def test_refilled_tokens_are_not_refunded() -> None:
    """Otherwise a burst of twice the limit could follow a long request that generated few tokens."""
    admission, who = Admission(MANY), tenant(tpm=600)
    long = admission.admit(who, 1, 600, 0.0)
    admission.admit(who, 1, 600, 60.0)
    admission.release(long, 1, 60.0)
    assert type(refusal(admission, who, now=60.0)) is QuotaExceeded


def test_each_request_is_refunded_its_own_tokens() -> None:
    admission, who = Admission(MANY), tenant(tpm=600)
    tickets = [admission.admit(who, 1, 150, 0.0) for _ in range(4)]
    # Half of the oldest request's tokens are refilled.
    for ticket in reversed(tickets):
        admission.release(ticket, 10, 7.5)
    left = admission.quota(who, 7.5).tokens
    assert left is not None
    assert left.remaining == 600 - 3 * 10


@pytest.mark.parametrize(
    ("before", "after", "remaining"), [(100, 1000, 910), (100, 50, 0), (1000, 100, 10), (100, 100, 10)]
)
def test_changed_limits_apply_to_the_next_request(before: int, after: int, remaining: int) -> None:
    admission = Admission(MANY)
    admission.admit(tenant(tpm=before), 1, 90, 0.0)
    if remaining:
        admission.admit(tenant(tpm=after), 1, remaining, 0.0)
    error = refusal(admission, tenant(tpm=after))
    assert 0 < (error.retry_after or 0) < 60


def test_no_wait_exceeds_a_minute_after_a_limit_is_lowered() -> None:
    admission = Admission(MANY)
    admission.admit(tenant(rpm=100, tpm=1000), 1, 900, 0.0)
    assert refusal(admission, tenant(rpm=10, tpm=10), tokens=10).retry_after == pytest.approx(60)
    admission.admit(tenant(rpm=10, tpm=10), 1, 10, 60.0)


def test_limits_that_are_added_and_removed() -> None:
    admission = Admission(MANY)
    free = admission.admit(tenant(), 1, 500, 0.0)
    limited = admission.admit(tenant(tpm=100), 1, 100, 0.0)
    admission.release(free, 0, 0.0)
    assert type(refusal(admission, tenant(tpm=100))) is QuotaExceeded
    admission.admit(tenant(), 1, 500, 0.0)
    admission.release(limited, 0, 0.0)
    admission.admit(tenant(tpm=100), 1, 100, 0.0)


def test_tenants_do_not_share_limits(admission: Admission) -> None:
    admission.admit(tenant("acme", rpm=1), 1, 1, 0.0)
    admission.admit(tenant("bob", rpm=1), 1, 1, 0.0)
    assert type(refusal(admission, tenant("acme", rpm=1))) is QuotaExceeded


def test_accounts_of_many_tenants_are_dropped() -> None:
    admission = Admission(MANY)
    for number in range(20_000):
        now = number / 100
        admission.release(admission.admit(tenant(f"t{number}", rpm=60, tpm=60), 1, 9, now), 9, now)
        # At most the tenants of the last two minutes, at a hundred per second.
        assert admission.remembered <= 12_001
    admission.release(admission.admit(tenant("last"), 1, 1, 320.0), 1, 320.0)
    assert (admission.remembered, admission.live_requests, admission.live_sequences) == (0, 0, 0)


def test_the_account_of_one_busy_tenant_is_dropped() -> None:
    admission, who = Admission(MANY), tenant(rpm=10**6, tpm=10**6)
    for number in range(20_000):
        admission.release(admission.admit(who, 1, 9, number / 1000), 5, number / 1000)
    assert admission.live_requests == 0
    admission.release(admission.admit(tenant("last"), 1, 1, 90.0), 1, 90.0)
    assert admission.remembered == 0


NAMES = st.sampled_from(["acme", "bob"])


class AnyRun(RuleBasedStateMachine):
    """Admits and releases requests of two tenants at random times."""

    @initialize(
        rpm=st.sampled_from([None, 1, 3, 10]),
        tpm=st.sampled_from([None, 30, 60, 600]),
        max_concurrency=st.sampled_from([None, None, 1, 4]),
        queued=st.sampled_from([MANY, 5, 9]),
    )
    def start(self, rpm: int | None, tpm: int | None, max_concurrency: int | None, queued: int) -> None:
        self.limits = Limits(rpm=rpm, tpm=tpm, max_concurrency=max_concurrency)
        self.queued = queued
        self.admission = Admission(queued)
        self.now = 1000.0
        self.live: list[Ticket] = []
        # (tenant, time, charged tokens without refunds) of all admitted requests.
        self.history: dict[Ticket, tuple[str, float, int]] = {}

    @rule(seconds=st.sampled_from([0.01, 1.0, 7.3, 30.0, 60.0, 300.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=NAMES, sequences=st.integers(1, 3), tokens=st.sampled_from([0, 1, 10, 30, 60]))
    def ask(self, name: str, sequences: int, tokens: int) -> None:
        who = Tenant(name, self.limits)
        quota = self.admission.quota(who, self.now)
        try:
            ticket = self.admission.admit(who, sequences, tokens, self.now)
        except RetryLater:
            assert self.admission.quota(who, self.now) == quota
        else:
            self.live.append(ticket)
            self.history[ticket] = (name, self.now, tokens)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    def end(self, data: st.DataObject, share: float) -> None:
        ticket = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        name, at, tokens = self.history[ticket]
        used = int(tokens * share)
        self.admission.release(ticket, used, self.now)
        self.admission.release(ticket, 0, self.now)
        self.history[ticket] = (name, at, used)

    @invariant()
    def live_requests_are_bounded_and_counted(self) -> None:
        assert self.admission.live_requests == len(self.live)
        assert self.admission.live_sequences == sum(ticket.sequences for ticket in self.live)
        for name in {ticket.tenant for ticket in self.live}:
            mine = [ticket for ticket in self.live if ticket.tenant == name]
            assert sum(ticket.sequences for ticket in mine) <= self.queued
            assert len(mine) <= (self.limits.max_concurrency or MANY)

    @invariant()
    def no_window_has_more_than_its_bucket(self) -> None:
        for when, requests, tokens in self.windows():
            minutes = 1 + (self.now - when) / 60
            assert requests <= (self.limits.rpm or MANY) * minutes * 1.001
            assert tokens <= (self.limits.tpm or MANY) * minutes * 1.001

    def windows(self) -> Iterator[tuple[float, int, int]]:
        """(begin, requests, tokens) of each tenant's windows of time that end now."""
        for name in ("acme", "bob"):
            requests = tokens = 0
            for owner, when, amount in reversed(self.history.values()):
                if owner == name:
                    requests += 1
                    tokens += amount
                    yield when, requests, tokens

    def teardown(self) -> None:
        if not hasattr(self, "admission"):
            return
        for ticket in self.live:
            self.admission.release(ticket, 0, self.now)
        assert (self.admission.live_requests, self.admission.live_sequences) == (0, 0)
        for name in ("acme", "bob"):
            who = Tenant(name, self.limits)
            quota = self.admission.quota(who, self.now + 60)
            for allowance in (quota.requests, quota.tokens):
                assert allowance is None or allowance.remaining == allowance.limit


test_any_run = AnyRun.TestCase


def test_usage_beyond_the_ticket_is_charged_even_after_a_refill(admission: Admission) -> None:
    """An answer without max_tokens may use more tokens than its ticket has."""
    who = tenant(tpm=1000)
    ticket = admission.admit(who, 1, 500, now=0.0)
    admission.release(ticket, used_tokens=5000, now=61.0)
    # 500 tokens are refilled by then. The other 4500 are refilled at 1000 per minute.
    assert retry_after(admission, who, 1, now=61.0) == pytest.approx(60 * 3501 / 1000)
    assert retry_after(admission, who, 1000, now=61.0 + 60 * 4.6) == 0
